import math

import numpy as np
import pytest

from mmrl.advantages.grpo import GRPO

REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0]  # mean 0.4, std (ddof 1) sqrt(0.3) = 0.547723


def flat(groups):
    return np.array([row[0] for group in groups for row in group])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (GRPO(epsilon=1e-9), [1.095443, -0.730295, -0.730295, 1.095443, -0.730295]),
        (GRPO(scale_rewards="none"), [0.6, -0.4, -0.4, 0.6, -0.4]),
        (GRPO(epsilon=0.452277), [0.6, -0.4, -0.4, 0.6, -0.4]),  # std + epsilon = 1: epsilon is outside the root
    ],
)
def test_five_rewards(group, estimator, expected):
    np.testing.assert_allclose(flat(estimator([group(REWARDS)])), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [(GRPO(scale_rewards="none"), [0.4, 0, 0, -0.4]), (GRPO(epsilon=1e-9), [1.22474, 0, 0, -1.22474])],
)
def test_timelens_subtracts_the_mean_only(group, estimator, expected):
    """TimeLens (arXiv:2512.14698): rewards .9 .5 .5 .1, mean .5. With GRPO's std, sqrt(0.32 / 3), the ends would be at 1.22474."""
    np.testing.assert_allclose(flat(estimator([group([0.9, 0.5, 0.5, 0.1])])), expected, atol=1e-5)


def test_default_epsilon_is_trls(group):
    np.testing.assert_allclose(flat(GRPO()([group(REWARDS)])), np.array([0.6, -0.4, -0.4, 0.6, -0.4]) / (math.sqrt(0.3) + 1e-4), rtol=1e-6)


def test_batch_scale_divides_by_the_std_of_all_rewards(group):
    """Rewards 0 4 | 1 1 | 3 3 NaN: six rewards, mean 2, squares 4 + 4 + 1 + 1 + 1 + 1 = 12, std sqrt(12 / 5)."""
    groups = [group([0.0, 4.0]), group([1.0, 1.0]), group([3.0, 3.0, math.nan])]
    advantages = flat(GRPO(scale_rewards="batch", epsilon=1e-9)(groups))
    np.testing.assert_allclose(advantages[:2], np.array([-2.0, 2.0]) / math.sqrt(2.4), atol=1e-6)
    assert advantages[2:].tolist() == [0.0] * 5


def test_group_scale_of_one_group_does_not_see_the_others(group):
    alone = flat(GRPO()([group([0.0, 4.0])]))
    np.testing.assert_array_equal(flat(GRPO()([group([0.0, 4.0]), group([0.0, 100.0])]))[:2], alone)


def test_advantage_is_on_every_token(group):
    rows = GRPO(scale_rewards="none")([group([1.0, 0.0], [3, 1])])[0]
    assert [row.tolist() for row in rows] == [[0.5, 0.5, 0.5], [-0.5]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_rewards": "std"}, "scale_rewards must be one of group, batch, none; got 'std'"),
        ({"epsilon": 0.0}, "epsilon must be > 0 and finite; got 0.0"),
    ],
)
def test_ranges(fields, message):
    with pytest.raises(ValueError, match=message):
        GRPO(**fields)
