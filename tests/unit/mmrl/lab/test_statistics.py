"""Numbers that a table of Student's t, or a few pairs counted by hand, give too."""

import numpy as np
import pytest

from mmrl.lab.statistics import best, is_dead, kendall, ranks, spearman, t_interval, t_quantile

NAN = float("nan")


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (30, 2.04227), (1000, 1.96234)])
def test_quantiles_are_those_of_the_tables(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, rel=2e-6)


def test_no_degrees_of_freedom_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        t_quantile(0)


def test_interval_of_three_values():
    """Mean 2, std 1, so 2 -+ 4.30265 / sqrt(3)."""
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_interval_of_equal_values_and_of_too_few():
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)
    assert t_interval([0.5]) is None
    assert t_interval([]) is None


def test_equal_values_share_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 0.0])).tolist() == [3.5, 2.0, 3.5, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "rho", "tau"),
    [
        ([1, 2, 3, 4], [10, 30, 20, 40], 0.8, 4 / 6),  # d = 0, 1, 1, 0: 1 - 6 * 2 / 60; one of six pairs disagrees
        ([1, 2, 3], [3, 2, 1], -1.0, -1.0),
        (
            [0, 0, 1],
            [0, 1, 2],
            np.sqrt(3) / 2,
            2 / np.sqrt(6),
        ),  # ranks 1.5 1.5 3 against 1 2 3; two pairs untied in one, three in the other
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0, 0.0),
        ([1, 1, 1], [1, 2, 3], None, None),
    ],
)
def test_rank_correlations_by_hand(one, other, rho, tau):
    one, other = np.array(one, np.float32), np.array(other, np.float32)
    for found, expected in ((spearman(one, other), rho), (kendall(one, other), tau)):
        assert found is None if expected is None else found == pytest.approx(expected, abs=1e-12)
    assert spearman(other, one) == spearman(one, other)


@pytest.mark.parametrize(
    ("rewards", "dead"),
    [([1, 0], False), ([1, 1], True), ([1, 1 + 1e-9], True), ([1, NAN], True), ([NAN, NAN], True), ([1, NAN, 0], False)],
)
def test_a_group_without_spread_is_dead(rewards, dead):
    assert is_dead(np.array(rewards)) is dead


def test_the_best_are_all_that_share_the_highest_reward():
    assert best(np.array([1.0, NAN, 0.0, 1.0])) == {0, 3}
    assert best(np.array([NAN, NAN])) == set()
