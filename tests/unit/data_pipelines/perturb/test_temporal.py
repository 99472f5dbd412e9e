from itertools import permutations

import numpy as np
import pytest

from data_pipelines.perturb.ops import Fast, FrameDrop, FrameShuffle, Freeze, Reverse, Slow, StutterHold, Swap
from mmrl.seeding import stream
from mmrl.types import Media


def order(media: Media) -> list[int]:
    """Which of the numbered frames is shown when."""
    assert (media.frames == media.frames[:, :1, :1, :1]).all()
    return (media.frames[:, 0, 0, 0] // 20).tolist()


class Draws:
    """Draws what it is told."""

    def __init__(self, *values: int) -> None:
        self.values = iter(values)

    def integers(self, high: int) -> int:
        return next(self.values)


@pytest.mark.parametrize(
    ("op", "draws", "expected"),
    [
        (Reverse(), (), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (Freeze(), (), [0] * 10),
        (Slow(2.0), (), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (Slow(1.5), (), [0, 0, 1, 2, 2, 3, 4, 4, 5, 6]),
        (Fast(2.0), (), [0, 2, 4, 6, 8, 9, 9, 9, 9, 9]),
        (Fast(1.5), (), [0, 1, 3, 4, 6, 7, 9, 9, 9, 9]),
        (StutterHold(), (0,), [0] * 5 + [5] * 5),  # n = 2: key frames 0 and 5
        (StutterHold(), (1,), [0] * 4 + [3] * 3 + [6] * 3),  # n = 3: 10 mod 3 = 1 more for the first
        (StutterHold(), (2,), [0] * 4 + [2] * 2 + [5] * 2 + [7] * 2),  # n = 4: 2 more for the first
        (StutterHold((3,)), (0,), [0] * 4 + [3] * 3 + [6] * 3),
    ],
)
def test_which_frame_is_shown_when(op, draws, expected, numbered):
    after = op(numbered, Draws(*draws))
    assert order(after) == expected
    assert after.timestamps_s is numbered.timestamps_s


def test_a_shuffle_gives_every_order_equally_often(numbered):
    three = Media(numbered.frames[:3], numbered.timestamps_s[:3])
    seen = [tuple(order(FrameShuffle()(three, stream("shuffle", i)))) for i in range(600)]
    for each in permutations(range(3)):
        assert 60 < seen.count(each) < 140  # 100 expected, standard deviation 9


def test_frames_are_dropped_and_their_places_filled(numbered, rng):
    black = FrameDrop(0.3)(numbered, rng)
    gone = [i for i, frame in enumerate(order(black)) if frame != i]
    assert len(gone) in (2, 3)  # frame 0 is black already
    assert not black.frames[gone].any()
    held = order(FrameDrop(0.3, fill="previous")(numbered, rng))
    assert held[0] == 0
    assert len(set(held)) == 7
    assert all(shown in (i, held[i - 1]) for i, shown in enumerate(held) if i)


def test_dropping_all_frames(numbered, rng):
    assert not FrameDrop(1.0)(numbered, rng).frames.any()
    assert order(FrameDrop(1.0, fill="previous")(numbered, rng)) == [0] * 10


def test_a_swap_shows_a_run_of_the_other_clip(numbered):
    four = Media(np.zeros((4, 4, 6, 3), np.uint8), np.arange(4.0))
    after = Swap(numbered)(four, Draws(5))
    assert order(after) == [5, 6, 7, 8]
    assert after.timestamps_s is four.timestamps_s
    assert {order(Swap(numbered)(four, stream(i)))[0] for i in range(80)} == set(range(7))


def test_a_swap_with_a_clip_that_does_not_fit(numbered, clip, rng):
    with pytest.raises(ValueError, match=r"the other clip has frames of shape \(12, 60, 90, 3\); 10 or more of 4 x 6 pixels are needed"):
        Swap(clip)(numbered, rng)
    with pytest.raises(ValueError, match="10 or more"):
        Swap(Media(numbered.frames[:9]))(numbered, rng)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StutterHold(()), "holds must be numbers of 1 or more"),
        (
            lambda: StutterHold()(Media(np.zeros((4, 1, 1, 3), np.uint8), np.arange(4.0)), None),
            "stutter_hold needs 5 or more frames; got 4",
        ),
        (lambda: FrameDrop(fill="white"), "fill must be 'black' or 'previous'; got 'white'"),
        (lambda: Slow(0.5), r"factor must lie in \[1, 64\]; got 0.5"),
        (lambda: Fast(0), "factor"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
