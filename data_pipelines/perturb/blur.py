"""Gaussian blur in whole numbers."""

import math
from dataclasses import dataclass

import numpy as np

from data_pipelines.perturb.checks import share, within
from mmrl.types import Media

STRIP = 1 << 16
"""16-bit values worked on at a time: three such strips fit a second-level cache."""


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; the border is repeated outwards (VideoSSR, arXiv:2511.06281: radius 2). Pictures and videos; no randomness.

    A sampled Gaussian out to 3 radii, its weights in 256ths, one pass down and one across, each rounded. Pillow's GaussianBlur is three box
    blurs that approximate the same Gaussian; on a photo at radius 2 the two differ by 0.4 levels in the mean.
    """

    radius: float = 2.0
    """Standard deviation in pixels, 0 to 16."""
    strength: float = 1.0
    """Factor on the radius, in [0, 1]."""

    def __post_init__(self) -> None:
        within("radius", self.radius, 0, 16)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        weights = gaussian_weights(self.radius * self.strength)
        return media if len(weights) == 1 else Media(blurred(media.frames, weights), media.timestamps_s)


def gaussian_weights(radius: float) -> list[int]:
    """Weights at distance 0, 1, 2, …: whole numbers, with both sides 256 in all."""
    if radius == 0:
        return [256]
    bell = [math.exp(-0.5 * (k / radius) ** 2) for k in range(math.ceil(3 * radius) + 1)]
    total = bell[0] + 2 * sum(bell[1:])
    sides = [round(256 * value / total) for value in bell[1:]]
    while sides and not sides[-1]:
        sides.pop()
    return [256 - 2 * sum(sides), *sides]


def blurred(frames: np.ndarray, weights: list[int]) -> np.ndarray:
    """`frames` uint8 [F, H, W, 3] under the same symmetric kernel down and across."""
    count, height, width, _ = frames.shape
    reach = len(weights) - 1
    line = (width + 2 * reach) * 3  # a row with its border
    strips = -(-height * line // STRIP)
    rows = -(-height // strips)
    target = np.empty_like(frames)
    sums, pairs = (np.empty((rows + 2 * reach) * line, np.uint16) for _ in range(2))
    tall = np.empty((rows + 2 * reach, width * 3), np.uint16)
    wide = np.zeros((rows, line), np.uint16)
    left, inside, right = np.split(wide, [3 * reach, line - 3 * reach], axis=1)
    for frame, into in zip(frames.reshape(count, height, -1), target.reshape(count, height, -1), strict=True):
        for top in range(0, height, rows):
            kept = min(rows, height - top)
            near = np.arange(top - reach, top + kept + reach).clip(0, height - 1)
            tall[: len(near)] = frame[near]
            down = _filtered(tall[: len(near)].reshape(-1), weights, width * 3, sums, pairs)
            inside[:kept] = down.reshape(kept, -1)
            left[:kept].reshape(kept, reach, 3)[...] = inside[:kept, None, :3]
            right[:kept].reshape(kept, reach, 3)[...] = inside[:kept, None, -3:]
            _filtered(wide.reshape(-1), weights, 3, sums, pairs)  # also where a row's border meets the next row: not taken over
            into[top : top + kept] = sums[: rows * line].reshape(rows, line)[:kept, : width * 3]
    return target


def _filtered(values: np.ndarray, weights: list[int], step: int, sums: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The kernel over a flat array whose neighbours lie `step` apart: `2 * reach * step` values fewer, rounded, at the start of `sums`."""
    edge = (len(weights) - 1) * step
    size = values.size - 2 * edge
    total, pair = sums[:size], pairs[:size]
    np.multiply(values[edge : edge + size], np.uint16(weights[0]), out=total)
    total += 128
    for k, weight in enumerate(weights[1:], 1):
        before, after = edge - k * step, edge + k * step
        np.add(values[before : before + size], values[after : after + size], out=pair)
        pair *= np.uint16(weight)
        total += pair
    total >>= 8
    return total
