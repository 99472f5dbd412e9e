"""Decoded frames on disk, so that nothing is decoded twice in a run or after a resume.

An entry is found by the content of the video file, the frames asked for and their size, so a file that changes is decoded anew and a copy
of a file is not. Which backend decoded it does not matter (what scales the frames does). Entries are memory-mapped: a hit reads only the
pixels that are looked at. The folder stays below its limit by dropping what was used longest ago. Any number of processes may share it.
"""

import fcntl
import json
import logging
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data_pipelines.video.backends import read_with
from data_pipelines.video.decode import Limits, Video, checked_indices, checked_size, reader_of
from mmrl.errors import MediaError
from mmrl.types import Media

FORMAT = 1
"""Part of every key; raised when decoding or the layout changes."""
MAGIC = b"mmrlframes"
_HEAD = struct.Struct("<10sHII")
"""Magic, format, bytes of the JSON that follows (shape, timestamps), CRC-32 of JSON and pixels."""
PAGE = 4096
"""Pixels begin at a multiple of this."""
SETTLED_S = 2.0
"""A file changed more recently than this may change again within the same tick of its clock, so its identity is not remembered."""
LOCKS = 256
LOW = 7 / 8
"""Share of the limit that a sweep leaves."""
ABANDONED_S = 3600.0
"""A file half written for this long is a stopped process's."""
_NO_LIMITS = Limits()
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """$MMRL_CACHE/frames, else ~/.cache/mmrl/frames."""
    return Path(os.environ.get("MMRL_CACHE") or Path.home() / ".cache" / "mmrl") / "frames"


@dataclass(frozen=True)
class FrameCache:
    """`read_frames` with a memory."""

    folder: str | None = None
    """None: `default_folder()`."""
    max_bytes: int = 16 * 2**30
    """Most that the entries take on disk."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be 1 or more; got {self.max_bytes}")

    @cached_property
    def root(self) -> Path:
        return Path(self.folder) if self.folder else default_folder()

    @cached_property
    def _verified(self) -> dict[Path, int]:
        """Entry -> its inode, where this process has compared the checksum."""
        return {}

    @cached_property
    def _digests(self) -> dict[Path, tuple[tuple[int, ...], str]]:
        """Video file -> its state, and the digest that it had in that state."""
        return {}

    @cached_property
    def _unswept(self) -> list[int]:
        """[bytes that this process wrote since it last looked at the folder's size]; starts full, so that its first write looks."""
        return [self.max_bytes]

    def read(
        self,
        source: Video,
        indices: Sequence[int] | np.ndarray,
        size: tuple[int, int] | None = None,
        *,
        backend: str | None = None,
        limits: Limits = _NO_LIMITS,
    ) -> Media:
        """What `read_frames` gives, frames read-only. Two processes that ask for the same at once decode it once.

        Frames given in memory, or as a list of pictures, are not kept. Raises as `read_frames`.
        """
        asked, goal = checked_indices(indices), checked_size(size)
        reader, place = reader_of(source, backend)
        if not isinstance(place, Path):
            return read_with(reader, place, asked, goal, limits)
        state = _state(place)
        key = self._key(self._content(place, state), asked, goal, reader.resizes)
        entry = self.root / key[:2] / key
        media = self._load(entry)
        if media is None:
            with _locked(self.root / "locks" / str(int(key[:4], 16) % LOCKS)):
                media = self._load(entry)
                if media is None:
                    media = read_with(reader, place, asked, goal, limits)
                    if _state(place) != state:
                        raise MediaError(f"{place}: was changed while it was read; read it again")
                    media = self._store(entry, media)
        return media

    def _key(self, content: str, indices: np.ndarray, size: tuple[int, int] | None, resizes: str) -> str:
        asked = blake2b(json.dumps([FORMAT, content, size, resizes if size else None]).encode(), digest_size=20)
        asked.update(indices.astype("<i8").tobytes())
        return asked.hexdigest()

    def _content(self, path: Path, state: tuple[int, ...]) -> str:
        """Digest of the whole file; remembered for as long as the file's inode, size and times stay."""
        if self._digests.get(path, ((), ""))[0] == state:
            return self._digests[path][1]
        name = blake2b(json.dumps(state).encode(), digest_size=20).hexdigest()
        memo = self.root / "files" / name[:2] / name
        known = memo.read_text() if memo.is_file() else ""
        if len(known) == 40:
            self._digests[path] = (state, known)
            return known
        started = time.time()
        digest = blake2b(digest_size=20)
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if started - max(state[-2:]) / 1e9 > SETTLED_S and _state(path) == state:
            self._write(memo, [digest.hexdigest().encode()])
        return digest.hexdigest()

    def _load(self, entry: Path) -> Media | None:
        """None if there is no such entry, or only a damaged one, which is removed."""
        try:
            with entry.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            media = _unpacked(whole, verify=self._verified.get(entry) != inode)
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.warning("%s: dropped, will be decoded again: %s", entry, error)
            entry.unlink(missing_ok=True)
            return None
        self._verified[entry] = inode
        with suppress(FileNotFoundError):  # another process has just dropped it; the pixels stay while they are mapped
            os.utime(entry)
        return media

    def _store(self, entry: Path, media: Media) -> Media:
        """The media as later hits will see it, or as it came if it cannot be kept."""
        media.frames.flags.writeable = False
        parts = _packed(media)
        size = sum(len(part) for part in parts)
        if size > self.max_bytes:
            return media
        try:
            self._write(entry, parts)
        except OSError as error:
            _log.warning("%s: frames not kept: %s", self.root, error)
            return media
        self._unswept[0] += size
        if self._unswept[0] >= self.max_bytes / 64:
            self._unswept[0] = 0
            self._sweep()
        return self._load(entry) or media

    def _write(self, place: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Whole or not at all."""
        for folder in (place.parent, self.root / "part"):
            folder.mkdir(parents=True, exist_ok=True)
        number, part = tempfile.mkstemp(dir=self.root / "part")
        try:
            with open(number, "wb") as file:
                file.writelines(parts)
            os.replace(part, place)
        except BaseException:
            os.unlink(part)
            raise

    def _sweep(self) -> None:
        """Drops the entries used longest ago until `LOW` of the limit is left. One process at a time; the others go on."""
        with _locked(self.root / "locks" / "sweep", wait=False) as mine:
            if not mine:
                return
            entries = []
            for folder in self.root.glob("[0-9a-f][0-9a-f]"):
                for entry in folder.iterdir():
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        entries.append((status.st_mtime_ns, status.st_size, entry))
            held = sum(size for _, size, _ in entries)
            if held > self.max_bytes * (1 - 1 / 64):
                for _, size, entry in sorted(entries):
                    if held <= self.max_bytes * LOW:
                        break
                    entry.unlink(missing_ok=True)
                    held -= size
            for part in (self.root / "part").iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - part.stat().st_mtime > ABANDONED_S:
                        part.unlink()


def _state(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def _locked(lock: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock between processes and threads; False if it is taken and we do not wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _packed(media: Media) -> list[bytes | memoryview]:
    seconds = None if media.timestamps_s is None else media.timestamps_s.tolist()
    about = json.dumps({"shape": media.frames.shape, "timestamps_s": seconds}).encode()
    pixels = media.frames.data.cast("B")
    head = _HEAD.pack(MAGIC, FORMAT, len(about), zlib.crc32(pixels, zlib.crc32(about)))
    return [head, about, bytes(-(len(head) + len(about)) % PAGE), pixels]


def _unpacked(whole: mmap.mmap, verify: bool) -> Media:
    """ValueError if it is not what `_packed` made."""
    if len(whole) < _HEAD.size:
        raise ValueError(f"only {len(whole)} bytes")
    magic, form, length, checksum = _HEAD.unpack_from(whole)
    start = -(-(_HEAD.size + length) // PAGE) * PAGE
    if (magic, form) != (MAGIC, FORMAT) or start >= len(whole):
        raise ValueError("not an entry of this format, or cut")
    view = memoryview(whole)
    about = view[_HEAD.size : _HEAD.size + length]
    if verify and zlib.crc32(view[start:], zlib.crc32(about)) != checksum:
        raise ValueError("its checksum is wrong")
    said = json.loads(bytes(about))
    frames = np.frombuffer(whole, np.uint8, offset=start).reshape(said["shape"])
    seconds = said["timestamps_s"]
    return Media(frames, None if seconds is None else np.array(seconds, np.float64))
