"""Advantages in which each arm of a group is a group of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mmrl.advantages.baseline import spread
from mmrl.advantages.grpo import GRPO
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards


@dataclass(frozen=True)
class PerArm:
    """The estimator `of`, given a group's rollouts of each arm as a group of their own: rollouts sampled in another way (under a perturbed
    picture, say) have a baseline of their own (VOGUE, arXiv:2510.01444, and PEARL, arXiv:2511.18437). ValueError where a group tells no
    arms apart."""

    of: AdvantageEstimator = field(default_factory=GRPO)
    arms: tuple[str, ...] = ()
    """Arms that are looked at; the rollouts of others get 0 and are in no mean and no std, not even the step's. () = all."""
    min_generations: ClassVar[int] = 2
    separates_arms: ClassVar[bool] = True

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        members = [self._members(group) for group in groups]
        given = iter(self.of([_only(group, rows) for group, arms in zip(groups, members, strict=True) for rows in arms]))
        out: list[list[np.ndarray]] = []
        for group, arms in zip(groups, members, strict=True):
            advantages = dict(enumerate(spread(group, np.zeros(len(group.rewards)))))
            for rows in arms:
                advantages.update(zip(rows, next(given), strict=True))
            out.append([advantages[n] for n in range(len(group.rewards))])
        return out

    def _members(self, group: GroupRewards) -> list[list[int]]:
        """The rollouts of each arm, arms in the order of their first."""
        if len(group.arms) != len(group.rewards):
            raise ValueError(f"per_arm needs the arm of each of {len(group.rewards)} rollouts; got {group.arms}")
        names = [name for name in dict.fromkeys(group.arms) if not self.arms or name in self.arms]
        return [[n for n, arm in enumerate(group.arms) if arm == name] for name in names]


def _only(group: GroupRewards, rows: Sequence[int]) -> GroupRewards:
    return replace(
        group,
        rewards=group.rewards[list(rows)],
        lengths=group.lengths[list(rows)],
        token_rewards=None if group.token_rewards is None else tuple(group.token_rewards[n] for n in rows),
        arms=tuple(group.arms[n] for n in rows),
        parts={name: part[list(rows)] for name, part in group.parts.items()},
    )
