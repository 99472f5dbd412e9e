"""From a file, folder or picture to `Media`: exactly the frames that were asked for, at their true times, or a MediaError.

What a file is, is told by its content, not its name. See docs/video.md for formats, backends and limits.
"""

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.video.backends import Reader, choose, probe_with, read_with
from data_pipelines.video.pictures import Animation, FrameList, Frames, picture_kind, read_image, resized, rgb_of
from data_pipelines.video.records import Limits, VideoInfo
from mmrl.errors import MediaError
from mmrl.types import Media

__all__ = ["Frames", "Limits", "VideoInfo", "open_media", "probe", "read_frames"]

Video = str | os.PathLike[str] | Frames
"""A video file, an animation (GIF, APNG, WebP, AVIF), a folder of frames with its `timestamps.json`, or `Frames`."""
_ANIMATION, _FRAME_LIST = Animation(), FrameList()
_NO_LIMITS = Limits()


def probe(source: Video, *, backend: str | None = None, limits: Limits = _NO_LIMITS) -> VideoInfo:
    """Number, times and size of a video's frames. Reads the file's packets and decodes one frame.

    MediaError names the file and why it cannot be read. ValueError for an unknown backend.
    """
    return probe_with(*reader_of(source, backend), limits)


def read_frames(
    source: Video,
    indices: Sequence[int] | np.ndarray,
    size: tuple[int, int] | None = None,
    *,
    backend: str | None = None,
    limits: Limits = _NO_LIMITS,
) -> Media:
    """The frames `indices` (0 to num_frames - 1), in that order, repeats allowed: upright, uint8 [F, H, W, 3], with their seconds.

    `size` = (height, width) scales while decoding, bicubic with antialiasing; None keeps the video's own. `backend` is "pyav",
    "torchcodec" or "decord"; None takes $MMRL_VIDEO_BACKEND, else the best that works here.
    MediaError names the file and why it cannot be read: damage, an index outside, a limit. ValueError for empty or fractional indices,
    a size below 1, an unknown backend.
    """
    asked = checked_indices(indices)
    return read_with(*reader_of(source, backend), asked, checked_size(size), limits)


def open_media(
    source: Video | Image.Image,
    indices: Sequence[int] | np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    *,
    backend: str | None = None,
    limits: Limits = _NO_LIMITS,
) -> Media:
    """Anything that can be shown: a still picture (a file or in memory; no timestamps), or what `read_frames` takes. None = every frame.

    Raises as `read_frames`; ValueError for indices into a still picture other than [0].
    """
    asked, goal = None if indices is None else checked_indices(indices), checked_size(size)
    still = _still(source)
    if still is None:
        return read_with(*reader_of(source, backend), asked, goal, limits)
    if asked is not None and asked.tolist() != [0]:
        raise ValueError(f"a still picture has only frame 0; got {asked.tolist()}")
    return Media((still if goal is None else resized(still, goal))[None])


def _still(source: Any) -> np.ndarray | None:
    """uint8 [H, W, 3] of a still picture, None for anything else."""
    if isinstance(source, Image.Image):
        return rgb_of(source)
    if isinstance(source, Frames):
        return None
    path = Path(source)
    return read_image(path) if path.is_file() and picture_kind(path) == "still" else None


def reader_of(source: Any, backend: str | None = None) -> tuple[Reader, Any]:
    """What reads a source, and the source as it wants it."""
    if isinstance(source, Frames):
        return _FRAME_LIST, source
    path = Path(source)
    if path.is_dir():
        return _FRAME_LIST, Frames(path)
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    kind = picture_kind(path)
    if kind == "still":
        raise MediaError(f"{path}: is a still picture, not a video; read it with open_media, or give a folder of such pictures")
    return (_ANIMATION, path) if kind == "animation" else (choose(backend), path)


def checked_indices(indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [F]."""
    try:
        asked = np.array([operator.index(index) for index in indices], np.int64)
    except TypeError as error:
        raise ValueError(f"indices must be whole numbers; got {indices!r}") from error
    if not len(asked):
        raise ValueError("indices must name at least one frame; got none")
    return asked


def checked_size(size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = size
    if operator.index(height) < 1 or operator.index(width) < 1:
        raise ValueError(f"size must be (height, width), both 1 or more; got {size}")
    return int(height), int(width)
