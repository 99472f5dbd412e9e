import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_pipelines.perturb.blur import gaussian_weights
from data_pipelines.perturb.ops import Blur
from mmrl.types import Media


def exact(frames: np.ndarray, radius: float) -> np.ndarray:
    """The sampled Gaussian in float64, the border repeated."""
    reach = int(np.ceil(3 * radius))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    bell /= bell.sum()
    out = frames.astype(float)
    for axis in (1, 2):
        padded = np.pad(out, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        out = sum(weight * np.take(padded, np.arange(k, k + out.shape[axis]), axis) for k, weight in enumerate(bell))
    return out


def test_weights_of_radius_2():
    weights = gaussian_weights(2.0)
    assert weights == [50, 45, 31, 17, 7, 2, 1]  # 256 * .199, .176, .121, .065, .027, .009, .002, and the middle takes what rounding left
    assert weights[0] + 2 * sum(weights[1:]) == 256


def test_a_single_bright_pixel(rng):
    frames = np.zeros((1, 15, 15, 3), np.uint8)
    frames[0, 7, 7, 2] = 255
    after = Blur(2.0)(Media(frames), rng).frames
    assert not after[..., :2].any()
    # down: round(255 * [50, 45] / 256) = [50, 45]; across: round([50, 45] * [50, 45] / 256)
    assert after[0, 7:9, 7:9, 2].tolist() == [[10, 9], [9, 8]]


@pytest.mark.parametrize("radius", [0.6, 1.0, 2.0, 5.0])
def test_it_is_the_gaussian(radius, clip, rng):
    after = Blur(radius)(clip, rng).frames
    difference = np.abs(after - exact(clip.frames, radius))
    assert difference.max() < 4
    assert difference.mean() < 0.8


def test_pillow_at_radius_2_is_near(picture, rng):
    pillow = np.asarray(Image.fromarray(picture.frames[0]).filter(ImageFilter.GaussianBlur(2)))
    difference = np.abs(Blur(2.0)(picture, rng).frames[0].astype(int) - pillow)
    assert difference.mean() < 0.6
    assert difference.max() <= 4


@pytest.mark.parametrize("value", [0, 1, 77, 254, 255])
def test_an_even_picture_stays_even(value, rng):
    frames = np.full((2, 9, 5, 3), value, np.uint8)
    assert (Blur(3.0)(Media(frames), rng).frames == value).all()


def test_frames_channels_and_strips_do_not_mix(rng):
    frames = np.zeros((2, 700, 40, 3), np.uint8)  # several strips high
    frames[0, :, :, 1] = 200
    after = Blur(2.0)(Media(frames), rng).frames
    assert (after == frames).all()


def test_a_strip_ends_without_a_seam(rng):
    tall = np.random.default_rng(1).integers(0, 256, (1, 900, 30, 3), np.uint8)
    whole = Blur(2.0)(Media(tall), rng).frames
    part = Blur(2.0)(Media(tall[:, 300:]), rng).frames
    assert (whole[:, 320:] == part[:, 20:]).all()
    assert np.abs(whole - exact(tall, 2.0)).mean() < 0.8


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 8, 3), (1, 8, 1, 3)])
def test_pictures_smaller_than_the_kernel(shape, rng):
    frames = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    assert np.abs(Blur(4.0)(Media(frames), rng).frames - exact(frames, 4.0)).max() < 3


def test_errors():
    with pytest.raises(ValueError, match=r"radius must lie in \[0, 16\]; got 17"):
        Blur(17)
