"""ViSurf's third reward control: the label's row is switched off where the policy is as good."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from mmrl.advantages.baseline import totals
from mmrl.advantages.grpo import GRPO
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards

SmoothOn = Literal["reward", "accuracy"]


def _grpo() -> GRPO:
    return GRPO(epsilon=1e-6)


@dataclass(frozen=True)
class ViSurf:
    """The estimator `of` over a group's G rollouts and its label, whose reward is first smoothed (ViSurf, arXiv:2510.10606): if the best
    rollout earns as much as the label or more, the label's reward becomes the rollouts' mean, and its advantage is exactly 0.

    The label forfeits what it cannot earn, such as a reward for thinking, so a rollout in good form can reach its reward without being
    right; `smooth_on: accuracy` compares one reward only. A label without a reward (NaN) smooths nothing. ValueError for a group without
    a row of the arm "label".
    """

    of: AdvantageEstimator = field(default_factory=_grpo)
    """`{use: grpo, epsilon: 1.0e-6}`."""
    smooth_on: SmoothOn | None = "reward"
    """What is compared: the whole "reward", or "accuracy", the reward named so; null = never smoothed."""
    accuracy: str | None = None
    """Name of the reward that `smooth_on: accuracy` compares."""
    min_generations: ClassVar[int] = 2
    needs_arms: ClassVar[tuple[str, ...]] = ("label",)
    names_rewards: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __post_init__(self) -> None:
        if self.smooth_on is not None and self.smooth_on not in get_args(SmoothOn):
            raise ValueError(f"smooth_on must be reward, accuracy or null; got {self.smooth_on!r}")
        if (self.accuracy is None) == (self.smooth_on == "accuracy"):
            raise ValueError(f"accuracy names the reward of smooth_on: accuracy; got {self.accuracy!r} with smooth_on {self.smooth_on!r}")

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        smoothed = [self.smoothed(group) for group in groups]
        given = self.of([group for group, _ in smoothed])
        return [
            [np.zeros_like(row) if n in off else row for n, row in enumerate(rows)] for (_, off), rows in zip(smoothed, given, strict=True)
        ]

    def metrics(self, groups: Sequence[GroupRewards]) -> dict[str, float]:
        """visurf/smoothed: share of the groups whose label is switched off."""
        return {"visurf/smoothed": float(np.mean([bool(self.smoothed(group)[1]) for group in groups]))}

    def smoothed(self, group: GroupRewards) -> tuple[GroupRewards, frozenset[int]]:
        """The group with the label's reward as it counts, and the label's row if it is switched off."""
        labels = np.flatnonzero(np.array(group.arms) == "label")
        if not len(labels):
            raise ValueError(f"visurf needs a row of the arm 'label' in every group; got the arms {group.arms}")
        rewards = totals(group)
        compared = np.asarray(group.parts[self.accuracy], np.float64) if self.accuracy is not None else rewards
        own = np.delete(np.arange(len(rewards)), labels)
        scored = own[~np.isnan(rewards[own]) & ~np.isnan(compared[own])]
        off = [n for n in labels if self.smooth_on is not None and len(scored) and compared[scored].max() >= compared[n]]
        given = np.array(group.rewards, np.float64)
        extra = rewards - given  # rewards per token, if any, are not touched
        given[off] = rewards[scored].mean() - extra[off] if off else given[off]
        return replace(group, rewards=given), frozenset(int(n) for n in off)
