import itertools
from collections import Counter

import numpy as np
import pytest

from mmrl.errors import RewardError
from mmrl.types import Task
from rewards.videossr import KINDS, VideoSSR, order_credit, read_counts


def task(kind: str | None, solution: str = "", **meta) -> Task:
    return Task("ssr/1", (), (), solution, {"kind": kind, **meta})


def counts(circle: int, square: int, triangle: int) -> Task:
    return task("counting", counts={"triangle": triangle, "circle": circle, "square": square})


@pytest.mark.parametrize(
    ("truth", "text", "expected", "exact"),
    [
        ((6, 2, 5), "4,3,5", 0.722222, 1 / 3),  # (0.6667 + 0.5 + 1) / 3
        ((3, 2, 3), "3, 2, 2", 0.888889, 2 / 3),
        ((6, 2, 5), "12,4,10", 0, 0),
        ((6, 2, 5), "6,2", 0, 0),
        ((6, 2, 5), "6,2,5,0", 0, 0),
        ((6, 2, 5), "6 circles, 2 squares, 5 triangles", 1, 1),
        ((0, 2, 5), "0,2,5", 1, 1),
        ((0, 2, 5), "1,2,5", 2 / 3, 2 / 3),
        ((6, 2, 5), "007,2,5", (5 / 6 + 2) / 3, 2 / 3),
        ((6, 2, 5), "9" * 5000 + ",2,5", 2 / 3, 2 / 3),  # more digits than int() takes
        ((6, 2, 5), "", 0, 0),
    ],
)
def test_counting(truth, text, expected, exact):
    """Acceptance check 2."""
    assert VideoSSR().value(counts(*truth), text) == pytest.approx(expected, abs=1e-6)
    assert VideoSSR(exact=True).value(counts(*truth), text) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("truth", "text", "expected"),
    [
        ("341562", "431562", 0.888889),  # two neighbours changed places: 1 - 2 / 18
        ("341526", "641523", 0.444444),  # 6 and 3 changed places: 1 - 10 / 18; by digit values it would be 1 - 6 / 18
        ("15827463", "51827463", 0.9375),  # 1 - 2 / 32
        ("123456", "654321", 0),
        ("123456", "112345", 0),
        ("341562", " 341562\n", 1),
        ("341562", "3 4 1 5 6 2", 0),
        ("341562", "34156", 0),
        ("341562", "The order is 341562", 0),
        ("213", "231", 0.5),  # three clips: 1 - 2 / 4
    ],
)
def test_jigsaw(truth, text, expected):
    """Acceptance check 3."""
    assert VideoSSR().value(task("jigsaw", truth), text) == pytest.approx(expected, abs=1e-6)
    assert VideoSSR(exact=True).value(task("jigsaw", truth), text) == (expected == 1)


def test_mean_over_all_orders():
    """Acceptance check 5: 720 orders of 6, 10 levels, 36 orders at exactly 0 (the first three clips behind the last three)."""
    rewards = [order_credit("".join(order), "123456") for order in itertools.permutations("123456")]
    assert np.mean(rewards) == pytest.approx(0.351852, abs=1e-6)
    assert len({round(reward, 9) for reward in rewards}) == 10
    assert Counter(rewards)[0.0] == 36


@pytest.mark.parametrize(
    ("text", "expected", "exact"), [("14-26", 0.375, 0.375), ("10-20", 1, 1), ("20-10", 0, 0), ("from 10 to 20", 0, 0), ("30-40", 0, 0)]
)
def test_grounding(text, expected, exact):
    """Acceptance check 1."""
    clip = task("grounding", span_s=[10, 20])
    assert VideoSSR().value(clip, text) == expected
    assert VideoSSR(exact=True).value(clip, text) == exact


def test_kinds_are_the_contract_with_the_generators():
    assert set(KINDS) == {"grounding", "counting", "jigsaw"}


@pytest.mark.parametrize("kind", ["shuffled", "", None, 3])
def test_unknown_kind(kind):
    with pytest.raises(RewardError, match=rf"task ssr/1: meta kind must be one of grounding, counting, jigsaw; got {kind!r}"):
        VideoSSR().value(task(kind, "123"), "123")


@pytest.mark.parametrize("meta", [{}, {"counts": [1, 2, 3]}, {"counts": {"circle": 1, "square": 2}}])
def test_counts_that_are_not_there(meta):
    with pytest.raises(RewardError, match="task ssr/1: meta counts must give a whole number >= 0 for each of circle, square, triangle"):
        VideoSSR().value(task("counting", **meta), "1,2,3")


def test_counts_must_be_whole_numbers():
    with pytest.raises(RewardError, match="whole number"):
        VideoSSR().value(counts(1, -2, 3), "1,2,3")


@pytest.mark.parametrize("solution", ["", "1", "121", " 12"])
def test_a_jigsaw_needs_different_clips(solution):
    with pytest.raises(RewardError, match="task ssr/1: the solution of a jigsaw must be two or more different characters"):
        VideoSSR().value(task("jigsaw", solution), "12")


def test_read_counts():
    assert read_counts("1 and 02, 3.5") == (1, 2, 3, 5)


def test_group_of_float32(make_group):
    values = VideoSSR()(make_group(["431562", "341562"], "341562", {"kind": "jigsaw"}))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [8 / 9, 1], rtol=1e-6)
