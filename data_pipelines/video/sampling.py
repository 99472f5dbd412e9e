"""Which frames of a video to keep. A sampler is called with what a header knows, `(num_frames, fps)`, and gives int64 [F] frame indices.

`QwenFrames` is the rule of the Qwen models, frame for frame; the others are plain ones. `KeyFrames` and `SceneFrames` also look at the
video, so they take a third argument.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from mmrl.seeding import stream

QwenRule = Literal["qwen_vl_utils", "qwen2_5_vl", "qwen3_vl"]
"""Whose arithmetic is followed: qwen-vl-utils 0.0.14, or the video processor of Qwen2.5-VL or of Qwen3-VL in transformers 5."""


@dataclass(frozen=True)
class UniformFrames:
    """The middles of `nframes` equal parts of the video, in whole numbers: floor((2i + 1) · N / (2 · nframes)). A video with fewer frames
    repeats some."""

    nframes: int
    """Frames to keep."""

    def __post_init__(self) -> None:
        _at_least(1, nframes=self.nframes)

    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """int64 [nframes], rising."""
        _check_video(num_frames, fps)
        return _middles(num_frames, self.nframes)


@dataclass(frozen=True)
class StrideFrames:
    """Every `stride`-th frame from the first on, up to `max_frames` of them."""

    stride: int
    """Frames from one to the next."""
    max_frames: int | None = None
    """None = to the end of the video."""

    def __post_init__(self) -> None:
        _at_least(1, stride=self.stride, max_frames=1 if self.max_frames is None else self.max_frames)

    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """int64 [F], rising."""
        _check_video(num_frames, fps)
        return np.arange(0, num_frames, self.stride, dtype=np.int64)[: self.max_frames]


@dataclass(frozen=True)
class SegmentFrames:
    """One frame at random from each of `nframes` equal parts of the video, for training (TSN, arXiv:1608.00859, section 3.1); for
    evaluation take `UniformFrames`, the parts' middles. A video with fewer frames repeats some.

    The draw is a function of seed, N and fps; for one of its own per video and epoch make the seed from them:
    `SegmentFrames(8, digest(seed, video, epoch))`.
    """

    nframes: int
    """Parts, and frames to keep."""
    seed: int
    """Key of the draw."""

    def __post_init__(self) -> None:
        _at_least(1, nframes=self.nframes)

    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """int64 [nframes], rising."""
        _check_video(num_frames, fps)
        bounds = np.arange(self.nframes + 1, dtype=np.int64) * num_frames // self.nframes
        low, high = bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1)
        return stream(int(self.seed), "segment", self.nframes, int(num_frames), float(fps)).integers(low, high)


@dataclass(frozen=True)
class VideoSSRFrames:
    """VideoSSR's frames (arXiv:2511.06281; released sample_frames.py): `nframes` at a whole step inside the middle 90 % of the video.

    start = int(0.05·N), end = int(0.95·N), step = (end - start) // nframes, frame i = start + i·step. A video too short for step >= 1
    is a ValueError: ask `fits` first.
    """

    nframes: int = 48
    """Frames to keep; the paper has 48."""

    def __post_init__(self) -> None:
        _at_least(1, nframes=self.nframes)

    def fits(self, num_frames: int) -> bool:
        """Whether a video of that many frames can give `nframes` different ones."""
        start, end = self._window(num_frames)
        return end - start >= self.nframes

    def sample_fps(self, num_frames: int, fps: float) -> float:
        """The rate that the model is told: nframes over the FULL duration, not the 90 % that is shown. All times of a task, truth
        included, live on this clock: frame i is at i / sample_fps seconds, the clip lasts N / fps."""
        _check_video(num_frames, fps)
        return self.nframes / (num_frames / fps)

    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """int64 [nframes], rising, no frame twice."""
        _check_video(num_frames, fps)
        if not self.fits(num_frames):
            raise ValueError(
                f"the middle 90 % of {num_frames} frames cannot give {self.nframes} different ones; take a longer video or fewer nframes"
            )
        start, end = self._window(num_frames)
        return start + np.arange(self.nframes, dtype=np.int64) * ((end - start) // self.nframes)

    @staticmethod
    def _window(num_frames: int) -> tuple[int, int]:
        return int(0.05 * num_frames), int(0.95 * num_frames)


@dataclass(frozen=True)
class QwenFrames:
    """The frames that a Qwen model is given, index for index as its own tools choose them, float rounding included.

    `rule` says whose:

    - "qwen_vl_utils" (the default: what the models' authors and most recipes use, for both families): an even number of frames from the
      first to the last, ends included. Its line is float32, as torch computes it with fused multiply-add.
    - "qwen2_5_vl": `Qwen2VLVideoProcessor.sample_frames`: an even number, each at the start of its part of the video, so never the last
      one. Where float error makes the processor ask for one frame behind the end (and fail), that index is left out.
    - "qwen3_vl": `Qwen3VLVideoProcessor.sample_frames`: ends included, any number, odd ones too.

    The processors know no start and end; the range is cut as qwen-vl-utils does and the rule then applies to its frames. Their min_frames
    and max_frames are those of the class unless a checkpoint says otherwise: 4 and 768, as here.
    Raises ValueError where the tool would fail: no such range, or fewer frames than asked for.
    """

    rule: QwenRule = "qwen_vl_utils"
    fps: float = 2.0
    """Frames to keep per second of video."""
    nframes: int | None = None
    """Frames to keep, whatever the duration; `fps`, `min_frames` and `max_frames` then do not count."""
    min_frames: int = 4
    """Frames to keep at least, as far as the video has them."""
    max_frames: int = 768
    """Frames to keep at most."""
    video_start: float | None = None
    """Seconds; None = the beginning. The first frame is the first one at or after it."""
    video_end: float | None = None
    """Seconds; None = the end. The last frame is the last one at or before it."""
    temporal_patch: int = 2
    """The count is a multiple of it (not with "qwen3_vl"): frames that the vision tower merges."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(QwenRule):
            raise ValueError(f"rule must be one of {', '.join(get_args(QwenRule))}; got {self.rule!r}")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be > 0 and finite; got {self.fps}")
        _at_least(1, nframes=1 if self.nframes is None else self.nframes, min_frames=self.min_frames, temporal_patch=self.temporal_patch)
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames must be at least min_frames = {self.min_frames}; got {self.max_frames}")

    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """int64 [F], rising."""
        _check_video(num_frames, fps)
        first, last = self._range(num_frames, fps)
        total = last - first + 1
        count = self._count(total, fps)
        least = 1 if self.rule == "qwen3_vl" else self.temporal_patch
        if count < least or (count > total and not (self.rule == "qwen3_vl" and self.nframes)):
            raise ValueError(f"{self} asks for {count} frames of {total}; it can give {least} to {total}. Change nframes or max_frames")
        if self.rule == "qwen_vl_utils":
            return _float32_line(first, last, count)
        if self.rule == "qwen2_5_vl":
            return first + _float32_starts(total, count)
        return first + np.linspace(0, total - 1, count).round().astype(np.int64)

    def _range(self, num_frames: int, fps: float) -> tuple[int, int]:
        """First and last frame that may be taken."""
        first, last, duration = 0, num_frames - 1, num_frames / fps
        if self.video_start is not None:
            first = math.ceil(min(max(self.video_start, 0.0), duration) * fps)
        if self.video_end is not None:
            last = min(math.floor(min(max(self.video_end, 0.0), duration) * fps), last)
        if first >= last and (self.video_start, self.video_end) != (None, None):
            raise ValueError(
                f"video_start = {self.video_start} and video_end = {self.video_end} leave frames {first} to {last} of a video of "
                f"{num_frames} frames at {fps:g} per second, {duration:.2f} s; give a longer range"
            )
        return first, last

    def _count(self, total: int, fps: float) -> int:
        size = self.temporal_patch
        if self.rule == "qwen3_vl":
            return self.nframes or min(max(int(total / fps * self.fps), self.min_frames), self.max_frames, total)
        if self.nframes:
            return round(self.nframes / size) * size
        low = math.ceil(self.min_frames / size) * size if self.rule == "qwen_vl_utils" else self.min_frames
        return math.floor(min(max(total / fps * self.fps, low), self.max_frames, total) / size) * size


@dataclass(frozen=True)
class KeyFrames:
    """Up to `nframes` of the video's key frames, evenly over their list: frames that decode without others, and that encoders put where
    the picture changes."""

    nframes: int
    """Frames to keep at most."""

    def __post_init__(self) -> None:
        _at_least(1, nframes=self.nframes)

    def __call__(self, num_frames: int, fps: float, keyframes: np.ndarray) -> np.ndarray:
        """int64 [F], rising, F = min(nframes, key frames). `keyframes`: integers [K >= 1], rising, in [0, num_frames)."""
        _check_video(num_frames, fps)
        keys = np.asarray(keyframes)
        sound = keys.ndim == 1 and len(keys) > 0 and keys.dtype.kind in "iu"
        if not sound or keys[0] < 0 or keys[-1] >= num_frames or (np.diff(keys) <= 0).any():
            raise ValueError(f"keyframes must be rising integers in [0, {num_frames}), at least one; got {keys!r}")
        keys = keys.astype(np.int64)
        return keys if len(keys) <= self.nframes else keys[_middles(len(keys), self.nframes)]


@dataclass(frozen=True)
class SceneFrames:
    """One frame, the middle, of each scene. The video is cut at its `nframes` - 1 largest changes of at least `threshold` (of equal ones
    the earlier); where there are fewer, the longest scene (of equal ones the first) is halved until there are `nframes` or one frame each.
    So a video without cuts gives frames evenly spread."""

    nframes: int
    """Scenes, and frames to keep, at most."""
    threshold: float = 20.0
    """Grey levels, 0 to 255: mean absolute difference of neighbouring thumbnails from which on they count as different scenes (ours)."""

    def __post_init__(self) -> None:
        _at_least(1, nframes=self.nframes)
        if not 0 < self.threshold <= 255:
            raise ValueError(f"threshold must be in (0, 255]; got {self.threshold}")

    def __call__(self, num_frames: int, fps: float, thumbnails: np.ndarray) -> np.ndarray:
        """int64 [F], rising, F = min(nframes, num_frames). `thumbnails`: uint8 [num_frames, h, w, 3], every frame made small."""
        _check_video(num_frames, fps)
        change = frame_changes(thumbnails)
        if len(change) != num_frames:
            raise ValueError(f"one thumbnail per frame is needed: {num_frames} frames, {len(change)} thumbnails")
        cuts = np.argsort(-change, kind="stable")[: self.nframes - 1]
        bounds = [0, *sorted(int(cut) for cut in cuts if change[cut] >= self.threshold), num_frames]
        while len(bounds) - 1 < min(self.nframes, num_frames):
            lengths = np.diff(bounds)
            longest = int(lengths.argmax())
            bounds.insert(longest + 1, bounds[longest] + int(lengths[longest]) // 2)
        return np.array([(low + high) // 2 for low, high in pairwise(bounds)], np.int64)


def frame_changes(frames: np.ndarray) -> np.ndarray:
    """float64 [N]: mean absolute difference of each frame from the one before, 0 to 255; 0 for the first. `frames`: uint8 [N, h, w, 3]."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [N, h, w, 3] with no empty axis; got {frames.dtype} {frames.shape}")
    changes = np.zeros(len(frames))
    for i in range(1, len(frames)):
        high, low = np.maximum(frames[i], frames[i - 1]), np.minimum(frames[i], frames[i - 1])
        changes[i] = (high - low).mean(dtype=np.float64)
    return changes


def _middles(total: int, count: int) -> np.ndarray:
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def _float32_line(first: int, last: int, count: int) -> np.ndarray:
    """`torch.linspace(first, last, count).round()`: float32 from both ends to the middle, each product and sum rounded once. The exact line
    would differ by a frame in some videos of more than ten thousand frames."""
    start, end = np.float32(first), np.float32(last if count > 1 else first)
    step = np.float64((end - start) / np.float32(count - 1)) if count > 1 else 0.0
    i = np.arange(count)
    line = np.where(i < count // 2, start + i * step, end - (count - 1 - i) * step)
    return line.astype(np.float32).round().astype(np.int64)


def _float32_starts(total: int, count: int) -> np.ndarray:
    """`torch.arange(0, total, total / count).int()` without an index >= total. Torch's vector kernel rounds the start of each block of 8 to
    float32 and counts on from there, two blocks at a time; the rest is plain."""
    step = total / count
    i = np.arange(count)
    block = np.where(i < math.ceil(total / step) // 16 * 16, i // 8 * 8, 0)
    base = (step * block).astype(np.float32).astype(np.float64)
    return (base + (i - block) * step).astype(np.float32).astype(np.int64)


def _check_video(num_frames: int, fps: float) -> None:
    if num_frames < 1 or not 0 < fps < math.inf:
        raise ValueError(f"a video needs at least one frame and a finite rate > 0; got {num_frames} frames at {fps} per second")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
