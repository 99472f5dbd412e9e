import numpy as np
import pytest
from PIL import Image

from data_pipelines.perturb.geometry import middles
from data_pipelines.perturb.moves import tilted
from data_pipelines.perturb.ops import Flip, Rotate, Tilt, ZoomIn, ZoomOut
from data_pipelines.perturb.resample import resampled
from mmrl.types import Media

LANCZOS = Image.Resampling.LANCZOS
SMALL = Media(np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3))


def first_channel(op, rng) -> list:
    return op(SMALL, rng).frames[0, :, :, 0].tolist()


@pytest.mark.parametrize(
    ("op", "expected"),  # of [[0, 3], [6, 9]]
    [
        (Rotate(180), [[9, 6], [3, 0]]),
        (Rotate(90), [[3, 9], [0, 6]]),
        (Rotate(270), [[6, 0], [9, 3]]),
        (Flip(), [[3, 0], [9, 6]]),
        (Flip(horizontal=False, vertical=True), [[6, 9], [0, 3]]),
        (Flip(vertical=True), [[9, 6], [3, 0]]),
    ],
)
def test_turns_and_flips_by_hand(op, expected, rng):
    assert first_channel(op, rng) == expected


def test_turns_and_flips_of_many_pixels(clip, rng):
    frames = clip.frames
    assert (Rotate(180)(clip, rng).frames == frames[:, ::-1, ::-1]).all()
    assert (Flip()(clip, rng).frames == frames[:, :, ::-1]).all()
    assert (Flip(horizontal=False, vertical=True)(clip, rng).frames == frames[:, ::-1]).all()


@pytest.mark.parametrize(
    "side", [1, 2, 3, 15, 16, 17, 18, 19, 33, 39, 40, 60]
)  # of words of two pixels and strips of 16 rows: all, and some left over
def test_quarter_turns(clip, rng, side):
    square = Media(clip.frames[:, 60 - side :, 5 : 5 + side])
    assert (Rotate(90)(square, rng).frames == np.rot90(square.frames, 1, (1, 2))).all()
    assert (Rotate(270)(square, rng).frames == np.rot90(square.frames, 3, (1, 2))).all()


def test_a_quarter_turn_of_a_frame_that_is_not_square_is_refused(clip, rng):
    with pytest.raises(ValueError, match="frames of 60 x 90 pixels cannot be turned by 90 degrees in place; use 180, or square frames"):
        Rotate(90)(clip, rng)


def test_the_caches_frames_are_taken_as_they_are(clip, rng):
    frames = clip.frames.copy()
    frames.flags.writeable = False
    for op in (Flip(), Rotate(180), Tilt(), ZoomIn()):
        assert (op(Media(frames), np.random.default_rng(1)).frames == op(clip, np.random.default_rng(1)).frames).all()


def test_zoom_in_is_the_middle_enlarged(picture, rng):
    after = ZoomIn(1.5, 1.5)(picture, rng).frames[0]
    middle = Image.fromarray(picture.frames[0]).crop((12, 15, 62, 75))  # 75 / 1.5 = 50 of 75 columns, 60 of 90 rows
    assert (after == np.asarray(middle.resize((75, 90), LANCZOS))).all()


def test_zoom_out_is_the_whole_shrunk_on_black(picture, rng):
    after = ZoomOut(1.25, 1.25)(picture, rng).frames[0].copy()  # 60 of 75 columns from 7, 72 of 90 rows from 9
    assert (after[9:81, 7:67] == np.asarray(Image.fromarray(picture.frames[0]).resize((60, 72), LANCZOS))).all()
    after[9:81, 7:67] = 0
    assert not after.any()


def test_zooms_draw_for_each_frame_or_once(rng):
    media = Media(np.zeros((200, 400, 300, 3), np.uint8))
    own = middles(ZoomIn(1.3, 1.5), media, rng)
    factors = 400 / own[:, 2]
    assert factors.min() == pytest.approx(1.3, abs=0.01)
    assert factors.max() == pytest.approx(1.5, abs=0.01)
    assert factors.mean() == pytest.approx(1.4, abs=0.02)
    shared = middles(ZoomIn(1.3, 1.5, per_frame=False), media, rng)
    assert (shared == shared[0]).all()
    assert (middles(ZoomIn(strength=0.0), media, rng) == (0, 0, 400, 300)).all()


@pytest.mark.parametrize(
    "sizes",
    [
        (60, 50, 90, 75),
        (90, 75, 72, 60),
        (7, 9, 40, 33),
        (150, 100, 11, 9),
        (1, 1, 5, 5),
        (64, 64, 64, 64),
        (600, 40, 650, 31),
        (257, 40, 259, 20),
    ],  # two taller than a band
)
def test_resampling_is_pillows_byte_for_byte(sizes):
    high, wide, to_high, to_wide = sizes
    frames = np.random.default_rng(sizes).integers(0, 256, (2, high, wide, 3), np.uint8)
    after = np.zeros((2, to_high, to_wide, 3), np.uint8)
    resampled(frames, [[0, 0, high, wide]] * 2, after, [[0, 0, to_high, to_wide]] * 2)
    for frame, expected in zip(after, frames, strict=True):
        assert (frame == np.asarray(Image.fromarray(expected).resize((to_wide, to_high), LANCZOS))).all()


@pytest.mark.parametrize("sizes", [(100, 120, 4, 121), (30, 28, 18, 116), (147, 13, 146, 14), (101, 101, 13, 60)])
def test_where_newer_pillows_go_down_first_the_two_differ_by_rounding(sizes):
    """Far from black and white, where the bytes between the passes are clipped."""
    high, wide, to_high, to_wide = sizes
    frames = np.random.default_rng(sizes).integers(64, 192, (1, high, wide, 3)).astype(np.uint8)
    after = np.zeros((1, to_high, to_wide, 3), np.uint8)
    resampled(frames, [[0, 0, high, wide]], after, [[0, 0, to_high, to_wide]])
    apart = np.abs(after[0].astype(int) - np.asarray(Image.fromarray(frames[0]).resize((to_wide, to_high), LANCZOS)))
    assert apart.max() <= 2


@pytest.mark.parametrize("degrees", [0.001, 7, -9.3, 90, 123.4, 180])
@pytest.mark.parametrize("shape", [(31, 47), (1, 9), (64, 64)])
def test_a_tilt_is_pillows_byte_for_byte(degrees, shape):
    frames = np.random.default_rng(shape).integers(0, 256, (2, *shape, 3), np.uint8)
    assert (
        tilted(frames, degrees) == [np.asarray(Image.fromarray(frame).rotate(degrees, Image.Resampling.NEAREST)) for frame in frames]
    ).all()


def test_tilt_is_one_angle_within_its_limit(clip):
    class Highest:
        def random(self) -> float:
            return 1.0

    after = Tilt(10)(clip, Highest()).frames
    for frame, expected in zip(after, clip.frames, strict=True):
        assert (frame == np.asarray(Image.fromarray(expected).rotate(10))).all()
    assert not after[:, 0, 0].any()  # a corner came into view


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZoomIn(0.9), r"low must lie in \[1, 8\]; got 0.9"),
        (lambda: ZoomOut(1.4, 1.2), r"high must lie in \[1.4, 8\]; got 1.2"),
        (lambda: Rotate(45), "degrees must be 90, 180 or 270; got 45"),
        (lambda: Flip(horizontal=False), "a flip needs one of them"),
        (lambda: Tilt(-3), r"degrees must lie in \[0, 180\]; got -3"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
