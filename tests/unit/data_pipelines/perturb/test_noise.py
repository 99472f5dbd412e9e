import math
from statistics import NormalDist

import numpy as np
import pytest

from data_pipelines.perturb.noise import noisy, remaining
from data_pipelines.perturb.ops import DiffusionNoise, GaussianNoise
from mmrl.types import Media


def grey(value: int, frames: int = 1, side: int = 600) -> Media:
    return Media(np.full((frames, side, side, 3), value, np.uint8), np.arange(frames) / 2 if frames > 1 else None)


@pytest.mark.parametrize(("sigma", "saturated", "deviation"), [(0.4, 0.2113, 0.3255), (0.2, 0.0124, None), (0.8, 0.532, None)])
def test_vogue_check_7_on_a_half_grey_picture(sigma, saturated, deviation, rng):
    frames = GaussianNoise(sigma)(grey(128), rng).frames
    assert np.isin(frames, (0, 255)).mean() == pytest.approx(saturated, abs=0.004)  # 128 / 255 is not quite a half; values are rounded
    if deviation:
        assert (frames / 255).std() == pytest.approx(deviation, abs=0.001)


def test_the_noise_is_normal_and_rounded(rng):
    noise = GaussianNoise(20 / 255)(grey(128), rng).frames.astype(int).ravel() - 128
    levels = np.arange(-60, 61)
    counted = np.searchsorted(np.sort(noise), levels, side="right") / noise.size
    exact = [NormalDist(0, 20).cdf(level + 0.5) for level in levels]
    assert np.abs(counted - exact).max() < 1.95 / math.sqrt(noise.size)  # Kolmogorov's distance: passed by chance 999 times in 1000


def test_the_table_is_normal_to_one_part_in_65536():
    class Counter:
        """Every 16-bit number once."""

        def integers(self, low: int, high: int, size: int, dtype: type) -> np.ndarray:
            return np.arange(65536, dtype="<u2").view("<u8")[:size]

    noise = noisy(np.full((1, 256, 256, 1), 128, np.uint8), np.array([20.0]), Counter())[0].astype(int).ravel() - 128
    for level in (-60, -20, -1, 0, 7, 33):
        assert (noise <= level).mean() == pytest.approx(NormalDist(0, 20).cdf(level + 0.5), abs=1 / 65536)
    assert noise.min() == -noise.max() == -86  # 4.3 sigma


def test_all_values_have_noise_of_their_own(rng):
    frames = GaussianNoise(0.1)(grey(128, frames=2, side=200), rng).frames.astype(float) - 128
    pairs = [
        (frames[0], frames[1]),
        (frames[..., 0], frames[..., 1]),
        (frames[:, 1:], frames[:, :-1]),
        (frames[:, :, 1:], frames[:, :, :-1]),
    ]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_videossr_draws_a_sigma_for_each_frame(rng):
    sigmas = GaussianNoise(35 / 255, 70 / 255)(grey(128, frames=40, side=60), rng).frames.std(axis=(1, 2, 3))
    assert 34 < sigmas.min() < 42
    assert 60 < sigmas.max() < 70


def test_diffusion_keeps_abar_of_the_picture(rng):
    betas = 1e-5 + (5e-3 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000)))
    products = np.cumprod(1 - betas)
    for step in (0, 1, 250, 500, 999):
        assert remaining(step) == pytest.approx(products[step], rel=1e-9)
    means, expected = [], []
    for step in (100, 300):
        frames = DiffusionNoise(step)(grey(140), rng).frames
        means += [frames.mean(), frames.std()]
        expected += [140 * math.sqrt(products[step]), 255 * math.sqrt(1 - products[step])]
    assert means == pytest.approx(expected, rel=0.02)  # too little noise to be cut off


def test_diffusion_at_0_leaves_the_picture(rng):
    assert DiffusionNoise(500, strength=0.001)(grey(9), rng).frames.tobytes() == grey(9).frames.tobytes()  # int(0.5) = step 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-0.1), r"sigma must lie in \[0, 1\]; got -0.1"),
        (lambda: GaussianNoise(0.3, 0.2), r"sigma_high must lie in \[0.3, 1\]; got 0.2"),
        (lambda: GaussianNoise(math.nan), "got nan"),
        (lambda: DiffusionNoise(1000), r"step must lie in \[1, 999\]; got 1000"),
        (lambda: DiffusionNoise(strength=2.0), r"strength must lie in \[0, 1\]; got 2.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
