"""What GRPO, Dr. GRPO, RLOO and REINFORCE++-baseline promise alike."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.advantages.grpo import GRPO
from mmrl.advantages.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from mmrl.advantages.rloo import RLOO
from mmrl.types import GroupRewards

WITHIN_GROUP = [GRPO(), GRPO(scale_rewards="none"), RLOO()]
GROUP_BASELINE = [*WITHIN_GROUP, GRPO(scale_rewards="batch"), ReinforcePPBaseline()]
ALL = [*GROUP_BASELINE, ReinforcePP(), ReinforcePP(gamma=0.9)]


@pytest.mark.parametrize("estimator", [*GROUP_BASELINE, ReinforcePP()], ids=repr)
@pytest.mark.parametrize("rewards", [[1.4666665] * 3, [1e-9, 0.0, 0.0]])
def test_equal_rewards_give_exactly_zero(group, estimator, rewards):
    """1.4666665 three times: in float32 the mean rounds, and (R - mean) / (std + 1e-6) can be -0.104. A spread below 1e-8 is equal."""
    ((*rows,),) = estimator([group(rewards, [2, 1, 3])])
    assert [row.tolist() for row in rows] == [[0.0, 0.0], [0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("estimator", GROUP_BASELINE, ids=repr)
def test_group_of_one_is_an_error_with_the_way_out(group, estimator):
    with pytest.raises(ValueError, match=r"set num_generations to 2 or more, or use reinforce_pp"):
        estimator([group([1.0, 0.0]), group([1.0])])


@pytest.mark.parametrize("estimator", WITHIN_GROUP, ids=repr)
def test_failed_reward_is_left_out_and_gets_zero(group, estimator):
    """The others get what they would get without it; two groups, so the failure stays in its own."""
    with_failure, other = estimator([group([1.0, math.nan, 0.0, 0.0]), group([0.0, 1.0])])
    without, _ = estimator([group([1.0, 0.0, 0.0]), group([0.0, 1.0])])
    assert with_failure[1].tolist() == [0.0]
    np.testing.assert_array_equal([with_failure[i] for i in (0, 2, 3)], without)
    np.testing.assert_array_equal(other, estimator([group([0.0, 1.0])])[0])


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@pytest.mark.parametrize("rewards", [[math.nan, math.nan], [math.nan, 3.0]])
def test_fewer_than_two_rewards_left(group, estimator, rewards):
    """In training this is bad luck, not a bad recipe: zeros, no error."""
    np.testing.assert_array_equal(estimator([group(rewards)]), [[[0.0], [0.0]]])


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_infinite_reward_is_an_error(group, estimator):
    with pytest.raises(ValueError, match=r"rewards must be finite, or NaN where a reward failed; got \[1.0, inf\]"):
        estimator([group([1.0, math.inf])])


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_one_float32_per_token_and_no_groups(group, estimator):
    rows = estimator([group([1.0, 0.0], [3, 5])])[0]
    assert [(row.shape, row.dtype) for row in rows] == [((3,), np.float32), ((5,), np.float32)]
    assert all(len(set(row.tolist())) == 1 for row in rows) or estimator == ReinforcePP(gamma=0.9)
    assert estimator([]) == []


@pytest.mark.parametrize("estimator", GROUP_BASELINE, ids=repr)
def test_token_rewards_are_added_up_into_the_reward(group, estimator):
    token_rewards = [[-0.25, -0.25], [0.5]]
    actual = estimator([group([1.0, 0.0], [2, 1], token_rewards)])
    for a, b in zip(actual[0], estimator([group([0.5, 0.5], [2, 1])])[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.concatenate(actual[0]).any()  # 1 - 0.5 = 0 + 0.5


@settings(max_examples=30, deadline=None)
@given(
    rewards=st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=6), min_size=1, max_size=3),
    shift=st.integers(-100, 100),
)
def test_constant_shift_changes_nothing(rewards, shift):
    """Of all estimators: every baseline moves along. Integers, so the shifted float32 rewards are exact."""

    def groups(add):
        return [GroupRewards(np.array(r, np.float32) + np.float32(add), np.arange(1, len(r) + 1)) for r in rewards]

    for estimator in [*GROUP_BASELINE, ReinforcePP()]:
        for before, after in zip(estimator(groups(0)), estimator(groups(shift)), strict=True):
            for a, b in zip(before, after, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_importing_the_estimators_does_not_load_torch():
    modules = (
        "mmrl.aggregate, mmrl.schedules, mmrl.advantages.grpo, mmrl.advantages.rloo, mmrl.advantages.reinforce_pp, mmrl.advantages.filters"
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
