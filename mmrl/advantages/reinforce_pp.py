"""REINFORCE++: the whole batch is the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.advantages.baseline import SAME_REWARD, centred, totals
from mmrl.types import GroupRewards

WHITEN_EPSILON = 1e-8


@dataclass(frozen=True)
class ReinforcePP:
    """Discounted return per token, whitened over all tokens of the step (arXiv:2501.03262).

    ret_t = sum over s >= t of gamma^(s - t) r_s, with the reward on the last token and `token_rewards` (such as
    -beta * k1, the KL in the reward) on their own; A = (ret - mean) / sqrt(var + 1e-8), ddof = 1. `gamma` in (0, 1].
    Equal returns in the whole step (spread < 1e-8), or a single token: exactly 0; a group of equal rewards is not 0 when
    other groups differ. NaN rewards: left out of mean and var, advantage 0. A group of one is fine.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1]; got {self.gamma}")

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        for group in groups:
            totals(group)  # raises on an infinite reward
        return whitened([_returns(group, self.gamma) for group in groups])


@dataclass(frozen=True)
class ReinforcePPBaseline:
    """R - mean of the group on every token, then whitened over all tokens of the step (REINFORCE++-baseline, arXiv:2501.03262).

    A = (x - mean) / sqrt(var + 1e-8), ddof = 1. A group of equal rewards has x = 0 exactly; where long and short rollouts
    earn differently the token mean is not 0, and whitening moves that group by as much as every other. If all groups are
    such: exactly 0. NaN rewards: left out of every mean, advantage 0. A group of one: ValueError. Token rewards are added up
    into R.
    """

    min_generations: ClassVar[int] = 2

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        tokens = []
        for group in groups:
            rewards = totals(group)
            x = np.where(np.isnan(rewards), np.nan, centred(rewards))
            tokens.append([np.full(length, value) for length, value in zip(group.lengths, x, strict=True)])
        return whitened(tokens)


def whitened(groups: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Per group, per rollout float64 [T_i] -> float32 [T_i] with mean 0 and var 1 over all tokens; NaN tokens give 0."""
    rows = [row for group in groups for row in group]
    tokens = np.concatenate(rows) if rows else np.empty(0)
    tokens = tokens[~np.isnan(tokens)]
    if len(tokens) < 2 or np.ptp(tokens) < SAME_REWARD:
        return [[np.zeros(len(row), np.float32) for row in group] for group in groups]
    mean, scale = tokens.mean(), np.sqrt(tokens.var(ddof=1) + WHITEN_EPSILON)
    return [[np.where(np.isnan(row), 0.0, (row - mean) / scale).astype(np.float32) for row in group] for group in groups]


def _returns(group: GroupRewards, gamma: float) -> list[np.ndarray]:
    """G arrays float64 [T_i]. All rows at once, from the last column back: rows are laid out so that they end together."""
    lengths = [int(length) for length in group.lengths]
    longest = max(lengths, default=0)
    r = np.zeros((len(lengths), longest))
    if group.token_rewards is not None:
        for row, token_rewards, length in zip(r, group.token_rewards, lengths, strict=True):
            row[longest - length :] = token_rewards
    if longest:
        r[:, -1] += group.rewards
    for t in range(longest - 2, -1, -1):
        r[:, t] += gamma * r[:, t + 1]
    return [row[longest - length :] for row, length in zip(r, lengths, strict=True)]
