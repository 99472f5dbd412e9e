"""The decoders, which of them works here, and one way to read with any of them."""

import logging
import os
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.video import isolate
from data_pipelines.video.backend_decord import Decord
from data_pipelines.video.backend_pyav import PyAV
from data_pipelines.video.backend_torchcodec import TorchCodec
from data_pipelines.video.records import Deadline, Limits, Scan, VideoInfo
from mmrl.errors import MediaError
from mmrl.types import Media

VARIABLE = "MMRL_VIDEO_BACKEND"
PROBE_CLIP = Path(__file__).with_name("probe_clip.mp4")
"""12 frames of 64 x 48 pixels; the bits of a frame's number are four bars, highest first. B-frames; keyframes at 0 and 6."""
PROBE_TICKS = (0, 1, 2, 4, 5, 6, 9, 10, 11, 12, 16, 17)
"""When the probe clip's frames are shown, in units of 40 ms."""
_log = logging.getLogger(__name__)


class Reader(Protocol):
    """A backend, or what reads animations and folders of frames."""

    name: str
    in_process: bool
    """Whether it can be trusted to check its deadline and not to crash."""
    resizes: str
    """What scales its frames; equal names give equal bytes, up to the decoder."""

    def scan(self, path: Any, limits: Limits, deadline: Deadline, /) -> Scan: ...

    def read(
        self, path: Any, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline, /
    ) -> np.ndarray: ...


class Backend(Reader, Protocol):
    def require(self) -> None:
        """Imports the decoder; any exception means that it is not usable."""
        ...


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (PyAV(), TorchCodec(), Decord())}
"""Best first."""


def choose(name: str | None = None) -> Backend:
    """The backend of that name, else the one that $MMRL_VIDEO_BACKEND names, else the first that decodes the probe clip.

    ValueError for an unknown name, MediaError if it cannot be used, or if none can.
    """
    asked = name or os.environ.get(VARIABLE)
    if asked:
        if asked not in BACKENDS:
            raise ValueError(f"video backend {asked!r} is unknown; there are {', '.join(BACKENDS)}")
        problem = trouble(asked)
        if problem:
            raise MediaError(f"video backend {asked} is not usable: {problem}; leave {VARIABLE} and the argument out to take what is")
        _announce(asked, "as asked")
        return BACKENDS[asked]
    problems = {}
    for candidate in BACKENDS:
        problems[candidate] = trouble(candidate)
        if not problems[candidate]:
            _announce(candidate, "the first that decodes the probe clip")
            return BACKENDS[candidate]
    tried = "; ".join(f"{candidate}: {problem}" for candidate, problem in problems.items())
    raise MediaError(f"no video backend is usable; install one with `pip install av` ({tried})")


@cache
def _announce(name: str, why: str) -> None:
    """Once a process."""
    _log.info("video backend: %s, %s", name, why)


@cache
def trouble(name: str) -> str | None:
    """Why a backend cannot be used here; None if it decodes the probe clip rightly. Found once per process."""
    backend, asked = BACKENDS[name], np.array([7, 2, 11, 2])
    try:
        backend.require()
        media = read_with(backend, PROBE_CLIP, asked, None, Limits(seconds=30.0))
    except Exception as error:  # whatever an import of a broken binary package raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    bits = media.frames[:, 24, 8::16].mean(-1) > 128
    numbers = bits @ [8, 4, 2, 1]
    seconds = np.array(PROBE_TICKS)[asked] * 0.04
    if numbers.tolist() != asked.tolist() or media.timestamps_s is None or not np.allclose(media.timestamps_s, seconds, atol=1e-3):
        return f"asked for frames {asked.tolist()} of the probe clip, got {numbers.tolist()} at {media.timestamps_s}"
    return None


def probe_with(reader: Reader, source: Any, limits: Limits) -> VideoInfo:
    if _apart(reader, limits):
        return isolate.call(reader.name, "probe_here", source, limits)
    return probe_here(reader, source, limits)


def read_with(reader: Reader, source: Any, indices: np.ndarray | None, size: tuple[int, int] | None, limits: Limits) -> Media:
    """`indices` int64, in any order, repeats allowed; None = every frame."""
    if _apart(reader, limits):
        return isolate.call(reader.name, "read_here", source, limits, indices, size)
    return read_here(reader, source, indices, size, limits)


def _apart(reader: Reader, limits: Limits) -> bool:
    return reader.name in BACKENDS and (limits.isolated or not reader.in_process)


def probe_here(reader: Reader, source: Any, limits: Limits) -> VideoInfo:
    return _scan(reader, source, limits, Deadline(_place(source), limits)).info


def read_here(reader: Reader, source: Any, indices: np.ndarray | None, size: tuple[int, int] | None, limits: Limits) -> Media:
    deadline = Deadline(_place(source), limits)
    scan = _scan(reader, source, limits, deadline)
    count = scan.info.num_frames
    asked = np.arange(count) if indices is None else indices
    if asked.min() < 0 or asked.max() >= count:
        outside = asked[(asked < 0) | (asked >= count)]
        raise MediaError(f"{_place(source)}: frame {outside[0]} asked for, but it has {count} frames, 0 to {count - 1}")
    height, width = size or (scan.info.height, scan.info.width)
    if len(asked) * height * width > limits.total_pixels:
        raise MediaError(
            f"{_place(source)}: {len(asked)} frames of {width} x {height} pixels are more than {limits.total_pixels} pixels in all; "
            "ask for fewer or smaller frames, or raise Limits.total_pixels"
        )
    turned = (size[1], size[0]) if size and scan.quarter_turns % 2 else size
    wanted, places = np.unique(asked, return_inverse=True)
    frames = reader.read(source, scan, wanted, turned, limits, deadline)
    frames = np.rot90(frames, scan.quarter_turns, axes=(1, 2))
    if len(wanted) < len(asked) or (np.diff(asked) < 0).any():
        frames = frames[places]
    return Media(np.ascontiguousarray(frames), scan.info.timestamps_s[asked])


def _place(source: Any) -> Path:
    return source if isinstance(source, Path) else source.path


def _scan(reader: Reader, source: Any, limits: Limits, deadline: Deadline) -> Scan:
    """Kept for the files that were scanned last, as long as they stay unchanged."""
    if not isinstance(source, Path):
        return reader.scan(source, limits, deadline)
    status = source.stat()
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    kept = _kept(reader, source, limits, state)
    return kept(deadline)


@lru_cache(maxsize=256)
def _kept(reader: Reader, path: Path, limits: Limits, state: tuple[int, ...]) -> Callable[[Deadline], Scan]:
    found: list[Scan] = []

    def scan(deadline: Deadline) -> Scan:
        if not found:
            found.append(reader.scan(path, limits, deadline))
        return found[0]

    return scan
