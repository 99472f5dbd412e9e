import itertools

import numpy as np
import pytest

from rewards.baselines import best_constant_span, counting_baseline, grounding_baseline, jigsaw_baseline
from rewards.spans import temporal_iou
from rewards.videossr import order_credit


def test_grounding():
    """Acceptance check 8."""
    guess, mean = grounding_baseline()
    assert guess == (10, 38)
    assert mean == pytest.approx(0.3060, abs=5e-5)


def test_the_whole_clip_earns_a_quarter():
    """Acceptance check 8: the mean of t / 48 over t = 8 to 16 is 12 / 48. Drawn in the same way, the best guess is not far from 0.306."""
    spans = [(s, s + t) for t in range(8, 17) for s in range(48 - t + 1)]
    chances = [1 / (48 - t + 1) for t in range(8, 17) for s in range(48 - t + 1)]
    assert np.average([temporal_iou((0, 48), span) for span in spans], weights=chances) == pytest.approx(0.25)
    assert np.average([temporal_iou((10, 38), span) for span in spans], weights=chances) == pytest.approx(grounding_baseline()[1])


@pytest.mark.parametrize(("most", "guess", "credit", "mean_total"), [(3, 3, 0.5831, 4.0), (4, 5, 0.5480, 6.25)])
def test_counting(most, guess, credit, mean_total):
    """Acceptance check 7, and the same by listing every draw: 1..most frames, each with 1..most instances."""
    assert counting_baseline(most) == (guess, pytest.approx(credit, abs=5e-5))
    draws = [
        (sum(instances), most ** -(frames + 1))
        for frames in range(1, most + 1)
        for instances in itertools.product(range(1, most + 1), repeat=frames)
    ]
    totals, chances = np.array(draws).T
    assert (chances.sum(), chances @ totals) == pytest.approx((1, mean_total))
    assert (totals.min(), totals.max()) == (1, most * most)
    by_hand = [chances @ np.maximum(0, 1 - abs(g - totals) / totals) for g in range(1, most * most + 1)]
    assert (np.argmax(by_hand) + 1, max(by_hand)) == (guess, pytest.approx(credit, abs=5e-5))


@pytest.mark.parametrize(("clips", "expected"), [(6, 0.351852), (8, 0.34375)])
def test_jigsaw(clips, expected):
    """Acceptance check 5."""
    assert jigsaw_baseline(clips) == pytest.approx(expected, abs=1e-6)


def test_jigsaw_formula_is_the_mean_over_all_orders():
    for clips in range(2, 8):
        digits = "123456789"[:clips]
        rewards = [order_credit("".join(order), digits) for order in itertools.permutations(digits)]
        assert jigsaw_baseline(clips) == pytest.approx(np.mean(rewards))


def test_best_span_of_annotations():
    """Two videos of three say 2 to 4, one says 6 to 8: guessing 2 to 4 earns 2/3. With the weight on the third, 6 to 8."""
    spans = [(2.0, 4.0), (2.0, 4.0), (6.0, 8.0)]
    assert best_constant_span(spans, 10, grid=10) == ((2, 4), pytest.approx(2 / 3))
    assert best_constant_span(spans, 10, grid=10, weights=[1, 1, 8]) == ((6, 8), pytest.approx(0.8))
    assert best_constant_span([(0.2, 0.4)], 1.0, grid=10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_constant_span([], 10), "spans must be"),
        (lambda: best_constant_span([(3, 2)], 10), "spans must be"),
        (lambda: best_constant_span([(1, 2)], 0), "need grid >= 1 and a finite horizon > 0; got 48 and 0"),
        (lambda: best_constant_span([(1, 2)], 10, weights=[0.0]), "weights must be 1 numbers >= 0 with a sum > 0"),
        (lambda: grounding_baseline(12), "need 1 <= shortest <= longest <= num_frames; got 8, 16, 12"),
        (lambda: counting_baseline(0), "most must be at least 1; got 0"),
        (lambda: jigsaw_baseline(1), "clips must be at least 2; got 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
