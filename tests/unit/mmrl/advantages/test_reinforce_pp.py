import math

import numpy as np
import pytest

from mmrl.advantages.reinforce_pp import ReinforcePP, ReinforcePPBaseline


def whiten(tokens):
    """By the textbook, with plain floats."""
    mean = sum(tokens) / len(tokens)
    var = sum((x - mean) ** 2 for x in tokens) / (len(tokens) - 1)
    return [(x - mean) / math.sqrt(var + 1e-8) for x in tokens]


def flat(groups):
    return np.concatenate([row for group in groups for row in group])


@pytest.mark.parametrize("together", [True, False])
def test_two_rows_of_lengths_2_and_4(group, together):
    """Tokens 1 1 0 0 0 0: mean 1/3, var 4/15. The batch is the baseline, so groups of one do."""
    groups = [group([1.0, 0.0], [2, 4])] if together else [group([1.0], [2]), group([0.0], [4])]
    np.testing.assert_allclose(flat(ReinforcePP()(groups)), [1.290994] * 2 + [-0.645497] * 4, atol=1e-5)


def test_returns_are_discounted_from_the_last_token(group):
    """gamma 1/2, lengths 3 and 1, rewards 4 and 2: returns 1 2 4 | 2."""
    np.testing.assert_allclose(flat(ReinforcePP(gamma=0.5)([group([4.0, 2.0], [3, 1])])), whiten([1, 2, 4, 2]), atol=1e-5)


def test_token_rewards_count_from_their_token_on(group):
    """gamma 1/2: r = (-1, 0, -2 + 4) and (3 + 2): returns 2, 1 and 0 + 1/2 * 1 - 1 = -0.5 | 5."""
    groups = [group([4.0, 2.0], [3, 1], [[-1.0, 0.0, -2.0], [3.0]])]
    np.testing.assert_allclose(flat(ReinforcePP(gamma=0.5)(groups)), whiten([-0.5, 1.0, 2.0, 5.0]), atol=1e-5)


def test_group_of_equal_rewards_still_learns_from_the_batch(group):
    advantages = flat(ReinforcePP()([group([1.0, 1.0]), group([0.0, 0.0])]))
    np.testing.assert_allclose(advantages, whiten([1, 1, 0, 0]), atol=1e-5)
    assert flat(ReinforcePP()([group([0.7, 0.7], [3, 1]), group([0.7], [5])])).tolist() == [0.0] * 9


def test_failed_row_is_not_in_the_statistics(group):
    advantages = flat(ReinforcePP()([group([1.0, math.nan, 0.0], [2, 3, 4])]))
    np.testing.assert_allclose(advantages, [1.290994] * 2 + [0.0] * 3 + [-0.645497] * 4, atol=1e-5)


def test_baseline_variant_centres_on_the_group_first(group):
    """Rewards 1 0 | 5 5, lengths 1 3 | 1 1: x = .5 | -.5 -.5 -.5 | 0 | 0, then whitened: the equal group moves with the rest."""
    groups = [group([1.0, 0.0], [1, 3]), group([5.0, 5.0], [1, 1])]
    np.testing.assert_allclose(flat(ReinforcePPBaseline()(groups)), whiten([0.5, -0.5, -0.5, -0.5, 0.0, 0.0]), atol=1e-5)


def test_baseline_variant_leaves_a_failed_row_out_of_every_mean(group):
    advantages = flat(ReinforcePPBaseline()([group([1.0, math.nan, 0.0], [1, 4, 3])]))
    np.testing.assert_allclose(advantages[[0, 5, 6, 7]], whiten([0.5, -0.5, -0.5, -0.5]), atol=1e-5)
    assert advantages[1:5].tolist() == [0.0] * 4


@pytest.mark.parametrize("gamma", [0.0, 1.1, math.nan])
def test_gamma_range(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\]; got"):
        ReinforcePP(gamma=gamma)
