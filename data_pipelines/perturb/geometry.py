"""Perturbations of place: zooms, turns and flips. The frames keep their size, so the picture's tokens keep their number and positions."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipelines.perturb.checks import share, within
from data_pipelines.perturb.moves import mirrored, quarter_turned, tilted
from data_pipelines.perturb.resample import resampled
from mmrl.types import Media


@dataclass(frozen=True)
class ZoomIn:
    """Cuts out the middle, smaller by a factor U(low, high), and enlarges it to full size with Lanczos's filter.

    VideoSSR, arXiv:2511.06281: 1.3 to 1.5, drawn for each frame. The filter is `resample`'s. Pictures and videos.
    """

    low: float = 1.3
    """1 to `high`."""
    high: float = 1.5
    """`low` to 8."""
    per_frame: bool = True
    """False: one draw for all frames."""
    strength: float = 1.0
    """How far the factor is taken from 1, in [0, 1]."""

    def __post_init__(self) -> None:
        check_zoom(self)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        target = np.empty(media.frames.shape, np.uint8)
        whole = (0, 0, *media.frames.shape[1:3])
        resampled(media.frames, middles(self, media, rng).tolist(), target, [whole] * len(target))
        return Media(target, media.timestamps_s)


@dataclass(frozen=True)
class ZoomOut:
    """Shrinks the frame by a factor U(low, high) and puts it in the middle of a black one.

    VideoSSR, arXiv:2511.06281: 1.2 to 1.4; that each frame has its own draw and the filter is Lanczos's is ours, after its ZoomIn.
    The filter is `resample`'s. Pictures and videos.
    """

    low: float = 1.2
    """1 to `high`."""
    high: float = 1.4
    """`low` to 8."""
    per_frame: bool = True
    """False: one draw for all frames."""
    strength: float = 1.0
    """How far the factor is taken from 1, in [0, 1]."""

    def __post_init__(self) -> None:
        check_zoom(self)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        target = np.zeros(media.frames.shape, np.uint8)
        whole = (0, 0, *media.frames.shape[1:3])
        resampled(media.frames, [whole] * len(target), target, middles(self, media, rng).tolist())
        return Media(target, media.timestamps_s)


def check_zoom(zoom: ZoomIn | ZoomOut) -> None:
    within("low", zoom.low, 1, 8)
    within("high", zoom.high, zoom.low, 8)
    share("strength", zoom.strength)


def middles(zoom: ZoomIn | ZoomOut, media: Media, rng: np.random.Generator) -> np.ndarray:
    """int64 [F, 4]: top, left, height and width of the middle that is smaller by each frame's factor."""
    count, height, width, _ = media.frames.shape
    draws = np.broadcast_to(rng.random(count if zoom.per_frame else 1), count)
    factors = 1 + (zoom.low - 1 + (zoom.high - zoom.low) * draws) * zoom.strength
    sizes = np.maximum(1, (np.array([height, width]) / factors[:, None]).astype(np.int64))
    return np.concatenate([([height, width] - sizes) // 2, sizes], axis=1)


@dataclass(frozen=True)
class Rotate:
    """Turns every frame by 180 degrees (VideoSSR, arXiv:2511.06281; its authors' code also has 90 and 270). No randomness."""

    degrees: Literal[90, 180, 270] = 180
    """Anticlockwise. 90 and 270 need square frames, since the size must stay."""

    def __post_init__(self) -> None:
        if self.degrees not in (90, 180, 270):
            raise ValueError(f"degrees must be 90, 180 or 270; got {self.degrees}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        if self.degrees == 180:
            return Media(mirrored(media.frames, upside_down=True), media.timestamps_s)
        height, width = media.frames.shape[1:3]
        if height != width:
            raise ValueError(
                f"frames of {height} x {width} pixels cannot be turned by {self.degrees} degrees in place; use 180, or square frames"
            )
        return Media(quarter_turned(media.frames, anticlockwise=self.degrees == 90), media.timestamps_s)


@dataclass(frozen=True)
class Flip:
    """Mirrors every frame (VideoSSR's Mirror, arXiv:2511.06281: left and right). No randomness. Changes what text and "left" mean."""

    horizontal: bool = True
    """Left becomes right."""
    vertical: bool = False
    """Top becomes bottom."""

    def __post_init__(self) -> None:
        if not (self.horizontal or self.vertical):
            raise ValueError("horizontal and vertical are both false; a flip needs one of them")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        frames = mirrored(media.frames, upside_down=self.vertical) if self.horizontal else np.ascontiguousarray(media.frames[:, ::-1])
        return Media(frames, media.timestamps_s)


@dataclass(frozen=True)
class Tilt:
    """Turns every frame about its middle by one angle U(-degrees, degrees); corners that come into view are black.

    VOGUE, arXiv:2510.01444: 10 degrees. The size stays; nearest neighbour, as torchvision's RandomRotation, which its authors use. One
    draw for all frames. Pictures and videos.
    """

    degrees: float = 10.0
    """Largest angle, 0 to 180."""
    strength: float = 1.0
    """Factor on the angle, in [0, 1]."""

    def __post_init__(self) -> None:
        within("degrees", self.degrees, 0, 180)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        angle = self.degrees * self.strength * (2 * rng.random() - 1)
        if not angle:
            return media
        return Media(tilted(media.frames, angle), media.timestamps_s)
