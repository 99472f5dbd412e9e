"""Pictures, animations and folders of frames, all by Pillow."""

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.video.records import Deadline, Limits, Scan, video_info
from mmrl.errors import MediaError

MAX_PIXELS = 64 * 2**20
"""Largest picture that is decoded, in pixels: a small file can claim a huge picture."""
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
FORMATS = (*ANIMATIONS, "JPEG", "BMP", "TIFF")
UNTIMED_MS = 100.0
"""How long an animation's frame stays that states 0: what browsers do."""
TIMES = "timestamps.json"
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged files."""


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] to uint8 [*size, 3] by Pillow's bicubic filter, antialiased: within 2 levels of torchvision's."""
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def read_image(path: Path, where: str = "") -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright as its EXIF data says; transparent parts lie on white. MediaError names `where` and the file."""
    place = f"{where}: {path}" if where else str(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(f"{place}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}; make it smaller")
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise MediaError(f"{place}: has {frames} frames; give them as pictures under videos")
            return rgb_of(image)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise MediaError(f"{place}: cannot be read as a picture: {error}") from error


def rgb_of(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture in memory, upright as its EXIF data says, transparent parts on white."""
    return _on_white(ImageOps.exif_transpose(image))


def _on_white(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


def picture_kind(path: Path) -> str | None:
    """ "still" or "animation" for a picture, by its content; None for what does not begin like one."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise MediaError(f"{path}: is empty (0 bytes)")
    begins = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    if not (head.startswith(begins) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")):
        return None
    with _opened(path) as image:
        return "animation" if image.format in ANIMATIONS and getattr(image, "is_animated", False) else "still"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise MediaError(f"{path}: cannot be read as a picture: {error or type(error).__name__}") from error


class Animation:
    """GIF, APNG, animated WebP and AVIF. Frames build on each other, so reading decodes from the first to the last one asked for."""

    name = "pillow"
    in_process = True
    resizes = "pillow-bicubic"

    def scan(self, path: Path, limits: Limits, deadline: Deadline) -> Scan:
        starts, now = [], 0.0
        for image in _frames(path, limits, deadline):
            starts.append(now)
            now += (image.info.get("duration") or UNTIMED_MS) / 1000
        if not starts:
            raise MediaError(f"{path}: no frame of it can be decoded")
        with _opened(path) as image:
            width, height = image.size
        return Scan(video_info(np.array(starts), now - starts[-1], None, width, height), quarter_turns=0)

    def read(
        self, path: Path, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline
    ) -> np.ndarray:
        frames = np.empty((len(wanted), *(size or (scan.info.height, scan.info.width)), 3), np.uint8)
        rows = {int(index): row for row, index in enumerate(wanted)}
        for index, image in enumerate(_frames(path, limits, deadline)):
            if index in rows:
                pixels = _on_white(image)
                frames[rows.pop(index)] = pixels if size is None else resized(pixels, size)
            if not rows:
                return frames
        raise MediaError(f"{path}: frame {min(rows)} cannot be decoded; the file is damaged or was changed")


def _frames(path: Path, limits: Limits, deadline: Deadline) -> Iterator[Image.Image]:
    """Each frame, loaded. A picture that stands in for an APNG where animations are not supported is not one of them."""
    with _opened(path) as image:
        if image.width * image.height > limits.frame_pixels:
            raise MediaError(
                f"{path}: frames of {image.width} x {image.height} pixels are more than {limits.frame_pixels}; make them smaller"
            )
        for index in count(1 if getattr(image, "default_image", False) else 0):
            deadline.check()
            try:
                image.seek(index)
            except EOFError:
                return
            image.load()
            yield image


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures that are the frames of a video."""

    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Image.Image]
    """A folder, taken in natural order (frame-2 before frame-10), or a list of paths and pictures in memory."""
    fps: float | None = None
    """Frames per second."""
    timestamps_s: Sequence[float] | None = None
    """Seconds, one a picture, increasing. With neither, the folder's `timestamps.json` says {"fps": ...} or {"timestamps_s": [...]}."""

    @property
    def path(self) -> Path:
        return Path(self.pictures) if isinstance(self.pictures, str | os.PathLike) else Path("<frames in memory>")

    def each(self) -> list[Path | Image.Image]:
        """The pictures in order."""
        if not isinstance(self.pictures, str | os.PathLike):
            return [picture if isinstance(picture, Image.Image) else Path(picture) for picture in self.pictures]
        folder = Path(self.pictures)
        names = [path.name for path in folder.iterdir() if path.name != TIMES and not path.name.startswith(".")]
        return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


class FrameList:
    """Reads `Frames`."""

    name = "pillow"
    in_process = True
    resizes = "pillow-bicubic"

    def scan(self, source: Frames, limits: Limits, deadline: Deadline) -> Scan:
        pictures = source.each()
        if not pictures:
            raise MediaError(f"{source.path}: holds no pictures")
        height, width, _ = _picture(pictures[0]).shape
        seconds = _seconds(source, len(pictures))
        return Scan(video_info(seconds, 0.0, source.fps, width, height), quarter_turns=0)

    def read(
        self, source: Frames, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline
    ) -> np.ndarray:
        height, width = size or (scan.info.height, scan.info.width)
        frames, pictures = np.empty((len(wanted), height, width, 3), np.uint8), source.each()
        for row, index in enumerate(wanted):
            deadline.check()
            pixels = _picture(pictures[index])
            if size is None and pixels.shape != (height, width, 3):
                has = f"{pixels.shape[1]} x {pixels.shape[0]}"
                raise MediaError(f"{source.path}: frame {index} has {has} pixels, frame 0 has {width} x {height}; give a size")
            frames[row] = pixels if size is None else resized(pixels, size)
        return frames


def _picture(picture: Path | Image.Image) -> np.ndarray:
    return rgb_of(picture) if isinstance(picture, Image.Image) else read_image(picture)


def _seconds(source: Frames, frames: int) -> np.ndarray:
    """float64 [frames]."""
    fps, given, where = source.fps, source.timestamps_s, str(source.path)
    if fps is None and given is None:
        file = source.path / TIMES
        if not file.is_file():
            raise MediaError(f"{where}: nothing says when its frames are shown; give fps or timestamps_s, or write {TIMES} into the folder")
        where = str(file)
        try:
            times = json.loads(file.read_text())
            fps, given = times.get("fps"), times.get("timestamps_s")
        except (OSError, ValueError, AttributeError) as error:
            raise MediaError(f'{where}: is not {{"fps": ...}} or {{"timestamps_s": [...]}}: {error}') from error
    if (fps is None) == (given is None):
        raise MediaError(f"{where}: give fps or timestamps_s, one of the two")
    try:
        seconds = np.asarray(given, np.float64) if given is not None else np.arange(frames) * (1 / float(fps or 0))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise MediaError(f"{where}: fps must be a number above 0, timestamps_s numbers; got {fps if given is None else given!r}") from error
    if seconds.shape != (frames,) or not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        raise MediaError(f"{where}: {frames} frames need {frames} increasing seconds; got {seconds.tolist()[:8]}")
    return seconds
