import numpy as np
import pytest

from mmrl.advantages.grpo import GRPO
from mmrl.advantages.per_arm import PerArm
from mmrl.types import GroupRewards


def test_every_arm_has_its_own_baseline():
    """Rewards 0 2 of one arm, 10 14 of the other, mixed: means 1 and 12."""
    group = GroupRewards(np.array([0, 10, 2, 14], np.float32), np.array([1, 2, 3, 1]), arms=("raw", "noisy", "raw", "noisy"))
    (rows,) = PerArm(GRPO(scale_rewards="none"))([group])
    assert [row.tolist() for row in rows] == [[-1.0], [-2.0, -2.0], [1.0, 1.0, 1.0], [2.0]]


def test_one_arm_is_the_estimator_itself():
    groups = [GroupRewards(np.array([0, 1, 1], np.float32), np.array([2, 1, 1]), arms=("plain",) * 3)] * 2
    for mine, own in zip(PerArm()(groups), GRPO()(groups), strict=True):
        assert all((a == b).all() for a, b in zip(mine, own, strict=True))


def test_a_group_without_arms_is_refused():
    with pytest.raises(ValueError, match="per_arm needs the arm of each of 2 rollouts"):
        PerArm()([GroupRewards(np.zeros(2, np.float32), np.ones(2, np.int64))])
