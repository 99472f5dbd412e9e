"""Which size pictures and frames get: the pixel budgets of the Qwen models, (height, width) in, (height, width) out."""

import math
from dataclasses import dataclass
from typing import get_args

from data_pipelines.video.sampling import QwenFrames, QwenRule

MAX_RATIO = 200
"""Longest side over shortest side that any of the rules takes."""


@dataclass(frozen=True)
class QwenPixels:
    """Sizes as the Qwen models' own tools choose them: sides are multiples of `factor`, the aspect ratio is kept as far as that allows.

    `rule` says whose arithmetic is followed and what the three budgets mean; None takes the tool's own value:

    - "qwen_vl_utils": `fetch_image` and `fetch_video` of 0.0.14. `min_pixels` and `max_pixels` of a picture (4 and 16384 tokens, a token
      being factor²) or a frame (128 and 768 tokens); `total_pixels` over a whole video (115200 tokens), shared among pairs of frames, but a
      frame's share never falls below 1.05 · min_pixels. For a list of pictures as a video the tool resizes twice, first to multiples of
      2 · factor; here a video is a video, resized once.
    - "qwen2_5_vl": `Qwen2VLImageProcessor` and `Qwen2VLVideoProcessor`. `min_pixels` = shortest_edge and `max_pixels` = longest_edge of a
      picture (56², 28²·1280) or a frame (128·28², 768·28²); `total_pixels` is the budget of `cap_pixels_per_frame` (None = off, as there).
    - "qwen3_vl": `Qwen2VLImageProcessor` again, and `Qwen3VLVideoProcessor`, whose edges are of a whole video: `min_pixels` =
      shortest_edge (128·32²), `total_pixels` = longest_edge (768·32²); `max_pixels` is the cap of a frame that `cap_pixels_per_frame` sets
      (None = off).

    A checkpoint's preprocessor_config.json often has other edges than the class: pass them.
    """

    factor: int
    """Pixels per side of a vision token: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    rule: QwenRule = "qwen_vl_utils"
    min_pixels: int | None = None
    """Least pixels of a picture or frame; with "qwen3_vl" of a video."""
    max_pixels: int | None = None
    """Most pixels of a picture or frame."""
    total_pixels: int | None = None
    """Most pixels of a video, all frames together; two frames make one block of tokens, so with the first two rules they count once."""
    temporal_patch: int = 2
    """Frames that the vision tower merges."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(QwenRule):
            raise ValueError(f"rule must be one of {', '.join(get_args(QwenRule))}; got {self.rule!r}")
        for name in ("factor", "min_pixels", "max_pixels", "total_pixels", "temporal_patch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels must not be above max_pixels = {self.max_pixels}; got {self.min_pixels}")

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a picture. ValueError for a side ratio above 200, or a picture so thin that a side would become 0."""
        if self.rule == "qwen_vl_utils":
            low, high = 4 * self.factor**2, 16384 * self.factor**2
        else:
            low, high = 56 * 56, 28 * 28 * 1280
        return self._resized(height, width, self.min_pixels or low, self.max_pixels or high)

    def video_size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """(height, width) of each of a video's `num_frames` sampled frames. ValueError as for a picture, and for too few frames."""
        if self.rule == "qwen3_vl":
            return self._whole_video(height, width, num_frames)
        return self._resized(height, width, *self.frame_pixels(num_frames))

    def frame_pixels(self, num_frames: int) -> tuple[int, float]:
        """Least and most pixels of one of `num_frames` frames. ValueError with "qwen3_vl", whose budget has no such share."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1; got {num_frames}")
        token = self.factor**2
        if self.rule == "qwen_vl_utils":
            low = self.min_pixels or 128 * token
            total = self.total_pixels or 128000 * token * 0.9
            share = max(min(768 * token, total / num_frames * self.temporal_patch), int(low * 1.05))
            return low, min(self.max_pixels or share, share)
        if self.rule == "qwen2_5_vl":
            low, high = self.min_pixels or 128 * 28 * 28, self.max_pixels or 768 * 28 * 28
            if self.total_pixels:
                high = max(min(high, self.total_pixels * self.temporal_patch // num_frames), int(low * 1.05))
            return low, high
        raise ValueError("the rule qwen3_vl shares a budget among the whole video's pixels; ask video_size")

    def _resized(self, height: int, width: int, low: float, high: float) -> tuple[int, int]:
        """The multiples of factor nearest to the sides; scaled by the budget's root where their product is outside it."""
        _check_sides(height, width)
        if low > high:
            raise ValueError(f"the least number of pixels, {low}, is above the most, {high}; change min_pixels or max_pixels")
        theirs = self.rule == "qwen_vl_utils"
        rounded = [round(side / self.factor) * self.factor for side in (height, width)]
        if theirs:
            rounded = [max(self.factor, side) for side in rounded]
        if math.prod(rounded) > high:
            scale = math.sqrt((height * width) / high)
            rounded = [math.floor(side / scale / self.factor) * self.factor for side in (height, width)]
            if not theirs:
                rounded = [max(self.factor, side) for side in rounded]
        elif math.prod(rounded) < low:
            scale = math.sqrt(low / (height * width))
            rounded = [math.ceil(side * scale / self.factor) * self.factor for side in (height, width)]
        if 0 in rounded:
            raise ValueError(
                f"{height} x {width} pixels within {high:g} would get a side of 0 at factor {self.factor}; crop it or raise max_pixels"
            )
        return rounded[0], rounded[1]

    def _whole_video(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """Qwen3-VL: the product of frames, height and width is held inside the budget."""
        size, factor = self.temporal_patch, self.factor
        if num_frames < size:
            raise ValueError(f"the rule qwen3_vl needs at least temporal_patch = {size} frames; got {num_frames}")
        low, high = self.min_pixels or 128 * 32 * 32, self.total_pixels or 768 * 32 * 32
        if self.max_pixels:
            high = max(min(self.max_pixels, high // num_frames), int(low * 1.05)) * num_frames
        if min(height, width) > 0 and min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        _check_sides(height, width)
        frames = round(num_frames / size) * size
        rounded = [round(side / factor) * factor for side in (height, width)]
        if frames * math.prod(rounded) > high:
            scale = math.sqrt((num_frames * height * width) / high)
            rounded = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
        elif frames * math.prod(rounded) < low:
            scale = math.sqrt(low / (num_frames * height * width))
            rounded = [math.ceil(side * scale / factor) * factor for side in (height, width)]
        return rounded[0], rounded[1]


def timelens_input(factor: int, *, min_tokens: int = 64, total_tokens: int = 14336) -> tuple[QwenFrames, QwenPixels]:
    """TimeLens' frames and sizes (arXiv:2512.14698; released data/grounding.py): 2 frames per second, at most 2 · total / min = 448, and
    total_tokens · factor² · 2 / frames pixels for each. `factor`: 28 or 32; the paper's ablations have 16 and 3584 tokens.

    It passes both budgets to qwen-vl-utils, so that tool's bounds hold too: a frame gets at most 768 tokens, and its share does not fall
    below 1.05 times the least (at 448 frames: 67.2 tokens, where the formula alone gives 64).
    """
    frames = QwenFrames(fps=2.0, max_frames=2 * total_tokens // min_tokens)
    return frames, QwenPixels(factor, min_pixels=min_tokens * factor**2, total_pixels=total_tokens * factor**2)


def _check_sides(height: int, width: int) -> None:
    if min(height, width) < 1:
        raise ValueError(f"height and width must be at least 1; got {height} x {width}")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(f"{height} x {width}: the longer side is more than {MAX_RATIO} times the shorter; crop it first")
