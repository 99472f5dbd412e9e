"""Perturbations made of perturbations, and how much one shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.perturb.blur import Blur
from data_pipelines.perturb.checks import share
from data_pipelines.perturb.colour import ChannelSwap, Grayscale, Invert, Jitter, Saturation
from data_pipelines.perturb.geometry import Flip, Rotate, Tilt, ZoomIn, ZoomOut
from data_pipelines.perturb.noise import GaussianNoise
from data_pipelines.perturb.pixels import mean_change
from data_pipelines.perturb.temporal import Fast, FrameShuffle, Slow, StutterHold
from mmrl.types import Media

if TYPE_CHECKING:
    from mmrl.protocols import Perturbation


@dataclass(frozen=True)
class Segment:
    """Applies a perturbation to frames [start, start + length) and leaves the others as they are (VideoSSR's anomaly, arXiv:2511.06281)."""

    op: "Perturbation"
    """What is applied. It sees the segment's frames alone: a shuffle stays inside."""
    start: int
    """First frame, from 0."""
    length: int
    """Frames, 1 or more. VideoSSR: 8 to 16 of 48."""

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 1:
            raise ValueError(f"need start >= 0 and length >= 1; got {self.start} and {self.length}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        end = self.start + self.length
        if end > len(media.frames):
            raise ValueError(f"segment [{self.start}, {end}) does not lie in {len(media.frames)} frames")
        times = media.timestamps_s
        inner = self.op(Media(media.frames[self.start : end], None if times is None else times[self.start : end]), rng)
        frames = media.frames.copy()
        frames[self.start : end] = inner.frames
        return Media(frames, times)


@dataclass(frozen=True)
class Chain:
    """Applies perturbations one after another."""

    ops: "tuple[Perturbation, ...]"
    """In this order; each draws its own randomness."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        for op in self.ops:
            media = op(media, rng)
        return media


@dataclass(frozen=True)
class VogueView:
    """VOGUE's noisy view (arXiv:2510.01444): random flips, tilt, jitter of brightness and contrast, then Gaussian noise.

    Left-right and top-bottom flip with probability 0.5 each, angle up to 10 degrees, brightness and contrast up to 15 %: one draw for all
    frames; the noise is independent (video: inferred). At strength s the probabilities, the angle, the jitter and sigma are s times theirs;
    0 changes nothing. How often the view is used falls from 1 to 0 over training: a `linear` schedule. Pictures and videos.
    """

    sigma: float = 0.4
    """Standard deviation of the noise as a share of the range, in [0, 1]."""
    geometric: bool = True
    """False leaves flips and tilt out: for text, and for questions of left and right."""
    strength: float = 1.0
    """In [0, 1]."""

    def __post_init__(self) -> None:
        share("sigma", self.sigma)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        if self.geometric:
            across, down = (bool(draw) for draw in rng.random(2) < 0.5 * self.strength)
            if across or down:
                media = Flip(horizontal=across, vertical=down)(media, rng)
            media = Tilt(strength=self.strength)(media, rng)
        media = Jitter(strength=self.strength)(media, rng)
        return GaussianNoise(self.sigma, strength=self.strength)(media, rng)


VIDEOSSR_KINDS: "Mapping[str, Perturbation]" = {
    "saturation": Saturation(2.0),
    "noise": GaussianNoise(35 / 255, 70 / 255),
    "blur": Blur(2.0),
    "grayscale": Grayscale(),
    "invert": Invert(),
    "channel_swap": ChannelSwap(),
    "zoom_in": ZoomIn(1.3, 1.5),
    "zoom_out": ZoomOut(1.2, 1.4),
    "rotate": Rotate(180),
    "mirror": Flip(),
    "stutter_hold": StutterHold((2, 3, 4, 5)),
    "shuffle": FrameShuffle(),
    "slow": Slow(),
    "fast": Fast(),
}
"""Name -> the perturbation with VideoSSR's parameters (arXiv:2511.06281). Its Swap takes another clip: `Swap(other)`."""


def visibility(before: Media, after: Media, start: int = 0, length: int | None = None) -> float:
    """Mean absolute change of a value inside frames [start, start + length), in levels of 0 to 255; all frames by default.

    A grey video made grey, a symmetric scene mirrored and a still one shuffled give 0: VideoSSR's guard rejects what cannot be seen.
    Raises ValueError for media of different shapes, or a segment outside them.
    """
    end = len(before.frames) if length is None else start + length
    if not 0 <= start < end <= len(before.frames):
        raise ValueError(f"segment [{start}, {end}) does not lie in {len(before.frames)} frames")
    return mean_change(before.frames[start:end], after.frames[start:end])
