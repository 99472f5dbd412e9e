"""Perturbations of colour. All but the draws of ChannelSwap and Jitter are without randomness; a draw holds for all frames."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from data_pipelines.perturb.checks import share, within
from data_pipelines.perturb.pixels import LUMA, channel_means, grey, looked_up, permuted, saturated
from mmrl.types import Media

ORDERS = tuple(order for order in permutations(range(3)) if order != (0, 1, 2))
"""The five orders of the channels that change something."""


@dataclass(frozen=True)
class Saturation:
    """Moves every value away from its pixel's luminance L: L + factor * (value - L) (VideoSSR, arXiv:2511.06281: factor 2.0)."""

    factor: float = 2.0
    """0 is grey, 1 changes nothing; at most 4. Exact to 1/64 (above 2: 1/32)."""
    strength: float = 1.0
    """How far the factor is taken from 1, in [0, 1]."""

    def __post_init__(self) -> None:
        within("factor", self.factor, 0, 4)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        factor = 1 + (self.factor - 1) * self.strength
        return media if factor == 1 else Media(saturated(media.frames, factor), media.timestamps_s)


@dataclass(frozen=True)
class Grayscale:
    """Every channel becomes the pixel's luminance (VideoSSR, arXiv:2511.06281)."""

    strength: float = 1.0
    """1 is grey, 0 changes nothing."""

    def __post_init__(self) -> None:
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        if self.strength < 1:
            return Saturation(1 - self.strength)(media, rng)
        return Media(grey(media.frames), media.timestamps_s)


@dataclass(frozen=True)
class Invert:
    """255 - value (VideoSSR, arXiv:2511.06281)."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return Media(~media.frames, media.timestamps_s)


@dataclass(frozen=True)
class ChannelSwap:
    """Puts the colour channels in another order, the same in all frames (VideoSSR, arXiv:2511.06281, which does not say which order)."""

    order: tuple[int, int, int] | None = None
    """Channel c becomes channel order[c], e.g. [2, 1, 0]; null draws one of the five orders that change something."""

    def __post_init__(self) -> None:
        if self.order is not None and tuple(self.order) not in ORDERS:
            raise ValueError(f"order must be 0, 1 and 2 in another order than that; got {self.order}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        order = ORDERS[rng.integers(len(ORDERS))] if self.order is None else tuple(self.order)
        return Media(permuted(media.frames, order), media.timestamps_s)


@dataclass(frozen=True)
class Jitter:
    """Brightness times 1 + U(-b, b), then contrast times 1 + U(-c, c) about the mean luminance (VOGUE, arXiv:2510.01444: 0.15 each).

    One draw and one mean for all frames, so that a video does not flicker; values are rounded once. Pictures and videos.
    """

    brightness: float = 0.15
    """b, in [0, 1]."""
    contrast: float = 0.15
    """c, in [0, 1]."""
    strength: float = 1.0
    """Factor on both, in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "strength"):
            share(name, getattr(self, name))

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        light, contrast = 1 + self.strength * np.array([self.brightness, self.contrast]) * (2 * rng.random(2) - 1)
        if light == contrast == 1:
            return media
        lit = np.clip(light * np.arange(256), 0, 255)
        middle = light * float(channel_means(media.frames) @ LUMA) / 256
        table = np.rint(np.clip(middle + contrast * (lit - middle), 0, 255)).astype(np.uint8)
        return Media(looked_up(media.frames, table), media.timestamps_s)
