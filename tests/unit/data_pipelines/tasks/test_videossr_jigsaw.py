import itertools

import numpy as np
import pytest

from data_pipelines.tasks.videossr_jigsaw import answer, baseline, draw_order, frames_of, least_change
from mmrl.seeding import stream
from rewards.baselines import jigsaw_baseline
from rewards.videossr import order_credit


def test_the_answer_is_the_inverse_of_the_shown_order():
    """Acceptance check 4: clip 0 is shown third, clip 1 fourth, clip 2 first, …"""
    assert answer([2, 5, 0, 1, 3, 4]) == "341562"
    for order in itertools.permutations(range(4)):
        assert [order[int(place) - 1] for place in answer(order)] == [0, 1, 2, 3]


def test_clips_are_consecutive_frames():
    assert frames_of([2, 0, 1], 12) == [[8, 9, 10, 11], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_every_order_is_equally_likely():
    orders = [tuple(draw_order(stream("order", i), 3)) for i in range(3000)]
    numbers = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(numbers) == 3000
    assert min(numbers) > 420  # 500 expected, standard deviation 20


@pytest.mark.parametrize(("clips", "mean"), [(6, 0.351852), (8, 0.34375)])
def test_baseline(clips, mean):
    """Acceptance check 5, against the rewards' own count and, for 6, over all 720 orders."""
    found = baseline(clips)
    assert found.chance == found.constant == pytest.approx(mean, abs=1e-6)
    assert found.constant == pytest.approx(jigsaw_baseline(clips))
    if clips == 6:
        rewards = [order_credit(found.answer, answer(order)) for order in itertools.permutations(range(6))]
        assert np.mean(rewards) == pytest.approx(mean, abs=1e-6)
        assert rewards.count(1.0) / 720 == found.success_constant


def test_clips_that_could_be_exchanged_have_no_change():
    """Four clips of two frames: 0, 0 | 10, 10 | 10, 10 | 40, 40: the second and third are alike."""
    frames = np.repeat(np.array([0, 10, 10, 40], np.uint8), 2)[:, None, None, None] * np.ones((8, 4, 4, 3), np.uint8)
    assert least_change(frames, 4) == 0
    assert least_change(frames, 2) == pytest.approx((10 + 10 + 30 + 30) / 4)
