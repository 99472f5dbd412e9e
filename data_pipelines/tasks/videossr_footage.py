"""Raw material of VideoSSR's tasks: videos on disk, each known by its content, and synthetic clips."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import isqrt
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data_pipelines.tasks.clips import PATCH, synthetic_clip
from data_pipelines.tasks.keyed import split_of
from data_pipelines.video.budget import QwenPixels
from data_pipelines.video.cache import FrameCache
from data_pipelines.video.decode import probe
from data_pipelines.video.pictures import TIMES
from data_pipelines.video.sampling import VideoSSRFrames
from mmrl.errors import MediaError, TaskError

SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts",
    ".webm", ".wmv",
)  # fmt: skip
"""Files of a folder that are taken for videos; what they hold is told by their content. A file that is named itself needs none of these."""
SYNTHETIC_FPS = 1.0
"""Frames a second of a synthetic clip's clock."""


@dataclass(frozen=True)
class VideoFile:
    """A video on disk, and which of its frames are used at which size."""

    path: str
    content: str
    """Digest of its bytes, 40 hexadecimal digits; names it wherever it lies."""
    indices: tuple[int, ...]
    size: tuple[int, int]
    """(height, width) of the frames that are used."""
    sample_fps: float
    """Frames used over the FULL duration; all times of a task are on this clock."""
    duration_s: float

    @property
    def file(self) -> str:
        """Stands for it in an edit."""
        return self.path

    def read(self, indices: Sequence[int], size: tuple[int, int] | None) -> np.ndarray:
        """uint8 [F, H, W, 3]."""
        return FrameCache().read(self.path, indices, size).frames


@dataclass(frozen=True)
class SyntheticFile:
    """A synthetic clip, drawn when it is read."""

    split: Literal["train", "test"]
    seed: int
    index: int
    indices: tuple[int, ...]
    num_frames: int
    """Frames of the whole clip, of which `indices` are used."""
    size: tuple[int, int]
    sample_fps: float = SYNTHETIC_FPS

    @property
    def duration_s(self) -> float:
        return len(self.indices) / self.sample_fps

    @property
    def file(self) -> str:
        return f"synthetic clip {self.index}"

    @property
    def content(self) -> str:
        return f"synthetic-{self.split}-{self.seed}-{self.index}"

    def read(self, indices: Sequence[int], size: tuple[int, int] | None) -> np.ndarray:
        """uint8 [F, H, W, 3]; `size` is its own."""
        assert size in (None, self.size)
        height, width = self.size
        whole = synthetic_clip(self.split, self.seed, self.index, num_frames=self.num_frames, height=height, width=width)
        return whole.frames[list(indices)]


Footage = VideoFile | SyntheticFile


class Unusable(NamedTuple):
    """A video that gives no tasks, and why."""

    path: str
    reason: str


class Library(NamedTuple):
    videos: tuple[VideoFile, ...]
    """By content, so that names and places do not matter."""
    unusable: tuple[Unusable, ...]
    """By path."""

    def of_split(self, split: str) -> tuple[VideoFile, ...]:
        """Which split owns a video follows from its content; "all" takes every one."""
        return tuple(video for video in self.videos if split in ("all", split_of(int(video.content[:16], 16))))


@dataclass(frozen=True)
class Framing:
    """Which frames are taken, and how large."""

    frames: int
    factor: int
    min_pixels: int
    max_pixels: int

    @cached_property
    def sampler(self) -> VideoSSRFrames:
        return VideoSSRFrames(self.frames)

    @cached_property
    def pixels(self) -> QwenPixels:
        return QwenPixels(self.factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def synthetic(self, split: Literal["train", "test"], seed: int, index: int) -> SyntheticFile:
        """A square clip as large as `max_pixels` allows, just long enough for the sampler."""
        return SyntheticFile(split, seed, index, self._indices, self._length, (self.side, self.side))

    @cached_property
    def side(self) -> int:
        """Pixels of a synthetic clip's side."""
        return isqrt(self.max_pixels) // PATCH * PATCH

    @cached_property
    def _length(self) -> int:
        """The shortest video that gives `frames` frames."""
        return next(length for length in range(self.frames, 2 * self.frames + 8) if self.sampler.fits(length))

    @cached_property
    def _indices(self) -> tuple[int, ...]:
        return tuple(self.sampler(self._length, SYNTHETIC_FPS).tolist())

    def library(self, paths: Sequence[str], on_media_error: Literal["raise", "skip"]) -> Library:
        """All videos under `paths` (folders are searched through), one for each content.

        A video that is too short, or whose frames cannot get the size, is among the unusable. One that cannot be read raises its
        MediaError; with "skip" it is among the unusable too, and every frame that will be used is decoded now to find out.
        """
        found: dict[str, VideoFile] = {}
        unusable: list[Unusable] = []
        for path in videos_under(paths):
            try:
                video = self._opened(path)
                if on_media_error == "skip":
                    video.read(video.indices, video.size)
            except MediaError as error:
                if on_media_error == "raise":
                    raise
                unusable.append(Unusable(path, str(error).removeprefix(f"{path}: ")))
            except ValueError as error:  # too short, or too long and thin
                unusable.append(Unusable(path, str(error)))
            else:
                twin = found.setdefault(video.content, video)
                if twin is not video:
                    unusable.append(Unusable(path, f"is the same video as {twin.path}"))
        return Library(tuple(found[content] for content in sorted(found)), tuple(unusable))

    def _opened(self, path: str) -> VideoFile:
        """ValueError if it cannot be used, MediaError if it cannot be read."""
        seen = probe(path)
        indices = tuple(self.sampler(seen.num_frames, seen.fps).tolist())
        size = self.pixels.video_size(seen.height, seen.width, self.frames)
        sample_fps = self.sampler.sample_fps(seen.num_frames, seen.fps)
        return VideoFile(path, content_of(path), indices, size, sample_fps, seen.num_frames / seen.fps)


def videos_under(paths: Sequence[str]) -> list[str]:
    """Files and folders of frames, sorted, each once. TaskError for a path that is not there or a folder without videos."""
    found: set[str] = set()
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise TaskError(f"videossr: videos: no such file or folder {given!r}")
        here = {given} if path.is_file() else {str(one) for one in _inside(path)}
        if not here:
            raise TaskError(f"videossr: videos: no video in {given!r}; looked for {' '.join(SUFFIXES)} and folders with {TIMES}")
        found |= here
    return sorted(found)


def _inside(folder: Path) -> Iterator[Path]:
    if (folder / TIMES).is_file():
        yield folder
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _inside(path)
        elif path.suffix.lower() in SUFFIXES:
            yield path


def content_of(path: str) -> str:
    """Digest of a file's bytes, or of those of a folder's files and their names."""
    if Path(path).is_file():
        return FrameCache().content(path)
    digest = blake2b(digest_size=20)
    for file in sorted(one for one in Path(path).iterdir() if one.is_file()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()
