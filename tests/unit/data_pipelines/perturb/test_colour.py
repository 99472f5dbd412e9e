import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data_pipelines.perturb.colour import ORDERS
from data_pipelines.perturb.ops import ChannelSwap, Grayscale, Invert, Jitter, Saturation
from mmrl.seeding import stream
from mmrl.types import Media


def one(*rgb: int) -> Media:
    return Media(np.array(rgb, np.uint8).reshape(1, 1, 1, 3))


def by_pillow(media: Media, change) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in media.frames]).astype(int)


@pytest.mark.parametrize(
    ("rgb", "grey"),
    [((255, 0, 0), 77), ((0, 255, 0), 149), ((0, 0, 255), 29), ((90, 90, 90), 90), ((255, 255, 255), 255), ((100, 50, 200), 82)],
)
def test_luminance_by_hand(rgb, grey, rng):  # (77 R + 150 G + 29 B + 128) // 256
    assert Grayscale()(one(*rgb), rng).frames.ravel().tolist() == [grey] * 3


def test_luminance_is_pillows_within_1(clip, rng):
    difference = np.abs(Grayscale()(clip, rng).frames - by_pillow(clip, lambda image: image.convert("L").convert("RGB")))
    assert difference.max() <= 1


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(2.0, [118, 18, 255]), (0.0, [82, 82, 82]), (0.5, [91, 66, 141]), (4.0, [154, 0, 255])],
)
def test_saturation_by_hand(factor, expected, rng):  # 82 + factor * ([100, 50, 200] - 82), a half rounded up
    assert Saturation(factor)(one(100, 50, 200), rng).frames.ravel().tolist() == expected


def test_saturation_is_pillows_color_enhancement(clip, rng):
    difference = np.abs(Saturation(2.0)(clip, rng).frames - by_pillow(clip, lambda image: ImageEnhance.Color(image).enhance(2.0)))
    assert difference.max() <= 2
    assert difference.mean() < 0.7


def test_half_grey_lies_half_way(clip, rng):
    grey, half = Grayscale()(clip, rng).frames, Grayscale(strength=0.5)(clip, rng).frames
    assert np.abs(half - (grey.astype(float) + clip.frames) / 2).max() <= 0.5


def test_extreme_values_do_not_wrap_around(rng):
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8).reshape(1, 1, 8, 3)
    for factor in (2.0, 4.0):
        after = Saturation(factor)(Media(corners), rng).frames
        grey = Grayscale()(Media(corners), rng).frames.astype(float)
        assert (after == np.clip(grey + factor * (corners - grey), 0, 255)).all()


def test_invert(rng):
    assert Invert()(one(0, 100, 255), rng).frames.ravel().tolist() == [255, 155, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_channels_in_another_order(order, clip, rng):
    big = Media(np.tile(clip.frames, (1, 4, 4, 1)))  # more than one block
    assert (ChannelSwap(order)(big, rng).frames == big.frames[..., list(order)]).all()


def test_a_drawn_order_is_one_of_five_and_the_same_in_all_frames(clip):
    seen = set()
    for seed in range(60):
        after = ChannelSwap()(clip, stream(seed)).frames
        fitting = [order for order in ORDERS if (after == clip.frames[..., list(order)]).all()]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert seen == set(ORDERS)


def test_jitter_by_hand():
    class Draws:
        def random(self, size: int) -> np.ndarray:
            return np.array([1.0, 0.0])  # brighter by 15 %, contrast less by 15 %

    frames = np.array([[[[0, 0, 0], [200, 200, 200]]]], np.uint8)
    # lit: 0 and 230, mean 115; contrast 0.85: 115 -+ 0.85 * 115
    assert Jitter()(Media(frames), Draws()).frames[0, 0, :, 0].tolist() == [17, 213]


def test_jitter_is_pillows_brightness_then_contrast(picture):
    light, contrast = 1 + 0.15 * (2 * stream("jitter").random(2) - 1)
    after = Jitter()(picture, stream("jitter")).frames
    expected = by_pillow(picture, lambda image: ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(light)).enhance(contrast))
    assert np.abs(after - expected).max() <= 2


def test_jitter_is_one_table_for_all_frames(clip, rng):
    after = Jitter()(clip, rng).frames
    assert all(len(np.unique(after[clip.frames == value])) == 1 for value in np.unique(clip.frames))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Saturation(5.0), r"factor must lie in \[0, 4\]; got 5.0"),
        (lambda: ChannelSwap((0, 1, 2)), "order must be 0, 1 and 2 in another order"),
        (lambda: ChannelSwap((0, 0, 2)), "order must be 0, 1 and 2 in another order"),
        (lambda: Jitter(contrast=-1), r"contrast must lie in \[0, 1\]; got -1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
