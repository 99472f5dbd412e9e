"""Gaussian noise: VOGUE's and VideoSSR's added noise, NoisyRollout's diffusion step."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import NormalDist

import numpy as np

from data_pipelines.perturb.checks import share, within
from mmrl.types import Media

SAMPLES = 1 << 16
"""Samples drawn at a time, and entries of the quantile table."""


@dataclass(frozen=True)
class GaussianNoise:
    """Adds N(0, sigma^2) to every value, clips and rounds to uint8 (VOGUE, arXiv:2510.01444; VideoSSR's Noise, arXiv:2511.06281).

    Every frame, pixel and channel has noise of its own. Pictures and videos.
    """

    sigma: float = 0.4
    """Standard deviation as a share of the whole range 0..255, in [0, 1]. VOGUE: 0.4 is best of 0.2, 0.4 and 0.8."""
    sigma_high: float | None = None
    """If given, each frame's own sigma is uniform between `sigma` and this. VideoSSR: 35/255 to 70/255."""
    strength: float = 1.0
    """Factor on sigma, in [0, 1]."""

    def __post_init__(self) -> None:
        within("sigma", self.sigma, 0, 1)
        if self.sigma_high is not None:
            within("sigma_high", self.sigma_high, self.sigma, 1)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        high = self.sigma if self.sigma_high is None else self.sigma_high
        sigmas = self.strength * (self.sigma + (high - self.sigma) * rng.random(len(media.frames)))
        return media if not sigmas.any() else Media(noisy(media.frames, sigmas * 255, rng), media.timestamps_s)


@dataclass(frozen=True)
class DiffusionNoise:
    """A forward diffusion step: sqrt(abar_t) x + sqrt(1 - abar_t) N(0, 1) on values in [0, 1], clipped (NoisyRollout, arXiv:2504.13055).

    1,000 steps, beta_t = 1e-5 + (5e-3 - 1e-5) sigmoid(u), u from -6 to 6 in even steps, abar_t = product of 1 - beta up to t (the authors'
    code; the noise of every frame is independent). t = int(step * strength): NoisyRollout anneals the strength by the schedule
    `sigmoid`. t = 0 leaves the picture as it is (there, noise of one level). Pictures and videos.
    """

    step: int = 500
    """1 to 999. NoisyRollout: 500 on Geometry3K, 450 on K12."""
    strength: float = 1.0
    """Factor on the step, in [0, 1]."""

    def __post_init__(self) -> None:
        within("step", self.step, 1, 999)
        share("strength", self.strength)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        step = int(self.step * self.strength)
        if not step:
            return media
        kept = remaining(step)
        sigmas = np.full(len(media.frames), 255 * math.sqrt(1 - kept))
        return Media(noisy(media.frames, sigmas, rng, gain=math.sqrt(kept)), media.timestamps_s)


@cache
def remaining(step: int) -> float:
    """abar_t: the share of the picture's variance that is left at a diffusion step."""
    betas = (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * t / 999)) for t in range(step + 1))
    return list(accumulate((1 - beta for beta in betas), lambda product, kept: product * kept))[-1]


@cache
def _quantiles() -> np.ndarray:
    """The normal distribution's quantiles at the middles of 65,536 equal bins, to 2^-20, so that no maths library matters."""
    lower = [round(NormalDist().inv_cdf((i + 0.5) / SAMPLES) * 2**20) for i in range(SAMPLES // 2)]
    return np.array(lower + [-value for value in reversed(lower)]) / 2**20


def noisy(frames: np.ndarray, sigmas: np.ndarray, rng: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """gain * frames plus Gaussian noise, rounded and clipped; `sigmas` float64 [F] in levels of 0 to 255, `gain` in [0, 1] to 1/256.

    16 random bits choose the noise of a value from a table of quantiles: its distribution function is exact to 2^-16, and it ends at
    4.3 sigma. The two terms are rounded each; with gain 1 that is rounding the sum.
    """
    target = np.empty(frames.shape, np.uint8)
    noise, faded, factor = np.empty(SAMPLES, np.int16), np.empty(SAMPLES, np.uint16), np.uint16(round(256 * gain))
    table = last = None
    for frame, into, sigma in zip(frames, target, sigmas, strict=True):
        if table is None or sigma != last:
            table, last = np.rint(_quantiles() * sigma).astype(np.int16), sigma
        source, sink = np.ascontiguousarray(frame).reshape(-1), into.reshape(-1)
        for start in range(0, source.size, SAMPLES):
            values = source[start : start + SAMPLES]
            size = values.size
            bits = rng.integers(0, 2**64, -(-size // 4), np.uint64).astype("<u8", copy=False).view("<u2")[:size]
            drawn, kept = np.take(table, bits, out=noise[:size], mode="clip"), faded[:size]
            kept[...] = values
            if factor < 256:
                kept *= factor
                kept += np.uint16(128)
                kept >>= 8
            drawn += kept.view(np.int16)
            np.clip(drawn, 0, 255, out=drawn)
            np.copyto(sink[start : start + SAMPLES], drawn, casting="unsafe")
    return target
