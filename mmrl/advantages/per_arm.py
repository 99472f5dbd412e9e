"""Advantages in which each arm of a group is a group of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmrl.advantages.grpo import GRPO
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards


@dataclass(frozen=True)
class PerArm:
    """The estimator `of`, given a group's rollouts of each arm as a group of their own: rollouts sampled in another way (under a perturbed
    picture, say) have a baseline of their own (VOGUE, arXiv:2510.01444, and PEARL, arXiv:2511.18437). ValueError where a group tells no
    arms apart."""

    of: AdvantageEstimator = field(default_factory=GRPO)

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        members = [_members(group) for group in groups]
        given = iter(self.of([_only(group, rows) for group, arms in zip(groups, members, strict=True) for rows in arms]))
        out: list[list[np.ndarray]] = []
        for group, arms in zip(groups, members, strict=True):
            advantages: dict[int, np.ndarray] = {}
            for rows in arms:
                advantages.update(zip(rows, next(given), strict=True))
            out.append([advantages[n] for n in range(len(group.rewards))])
        return out


def _members(group: GroupRewards) -> list[list[int]]:
    """The rollouts of each arm, arms in the order of their first."""
    if len(group.arms) != len(group.rewards):
        raise ValueError(f"per_arm needs the arm of each of {len(group.rewards)} rollouts; got {group.arms}")
    return [[n for n, arm in enumerate(group.arms) if arm == name] for name in dict.fromkeys(group.arms)]


def _only(group: GroupRewards, rows: Sequence[int]) -> GroupRewards:
    return replace(
        group,
        rewards=group.rewards[list(rows)],
        lengths=group.lengths[list(rows)],
        token_rewards=None if group.token_rewards is None else tuple(group.token_rewards[n] for n in rows),
        arms=tuple(group.arms[n] for n in rows),
        parts={name: part[list(rows)] for name, part in group.parts.items()},
    )
