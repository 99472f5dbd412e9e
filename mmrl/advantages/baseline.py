"""What the estimators share: total rewards, centring on the group, spreading over tokens."""

from collections.abc import Callable, Sequence

import numpy as np

from mmrl.types import GroupRewards

SAME_REWARD = 1e-8
"""Rewards of a group that spread less than this are equal: their advantages are exactly 0, not rounding noise over eps."""


def totals(group: GroupRewards) -> np.ndarray:
    """float64 [G]: each rollout's reward plus the sum of its token rewards; NaN where the reward failed.

    ValueError on an infinite reward: it would make NaN of its whole group.
    """
    rewards = np.asarray(group.rewards, np.float64)
    if group.token_rewards is not None:
        rewards = rewards + [np.sum(row, dtype=np.float64) for row in group.token_rewards]
    if np.isinf(rewards).any():
        raise ValueError(f"rewards must be finite, or NaN where a reward failed; got {rewards.tolist()}")
    return rewards


def centred(rewards: np.ndarray) -> np.ndarray:
    """float64 [G]: reward - mean of the group; exactly 0 for equal rewards, for NaN, and where fewer than two are left.

    ValueError for a group of one, whose reward is its own baseline.
    """
    if len(rewards) < 2:
        raise ValueError(
            "a group of one rollout has no group baseline: set num_generations to 2 or more, "
            "or use reinforce_pp, whose baseline is the whole batch"
        )
    scored = ~np.isnan(rewards)
    if scored.sum() < 2 or np.ptp(rewards[scored]) < SAME_REWARD:
        return np.zeros(len(rewards))
    return np.where(scored, rewards - rewards[scored].mean(), 0.0)


def spread(group: GroupRewards, advantages: np.ndarray) -> list[np.ndarray]:
    """G arrays float32 [T_i]: a rollout's advantage on each of its tokens."""
    return [np.full(length, advantage, np.float32) for length, advantage in zip(group.lengths, advantages, strict=True)]


def per_group(groups: Sequence[GroupRewards], estimate: Callable[[np.ndarray], np.ndarray]) -> list[list[np.ndarray]]:
    """`estimate`, rewards [G] -> advantages [G], on every group, spread over its tokens."""
    return [spread(group, estimate(totals(group))) for group in groups]
