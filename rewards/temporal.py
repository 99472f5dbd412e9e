"""Rewards that compare a video with itself in another order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.protocols import Reward
from mmrl.types import Group


@dataclass(frozen=True)
class TemporalBonus:
    """`alpha` for a correct completion if the accuracy under ordered frames is at least `mu` times that under shuffled ones, else 0
    (T-GRPO of Video-R1, arXiv:2503.21776, eq. 1; alpha 0.3 there, mu 0.8 in the authors' code). Range {0, alpha}.

    The two accuracies are means of `accuracy` over the arms "plain" and "shuffled". Shuffled completions get 0. A group without either
    arm, as in an evaluation, is not scored. `accuracy` is computed here once more, so a costly one should keep its answers.
    """

    accuracy: Reward
    """How right a completion is, in [0, 1]."""
    alpha: float = 0.3
    mu: float = 0.8
    correct_above: float = 0.1
    """A completion is correct if its accuracy is above this (the authors' code)."""
    per_completion: ClassVar[bool] = False
    needs_arms: ClassVar[tuple[str, ...]] = ("plain", "shuffled")

    def __post_init__(self) -> None:
        for name in ("alpha", "mu", "correct_above"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be finite and 0 or more; got {getattr(self, name)}")

    def __call__(self, group: Group) -> np.ndarray:
        ordered, shuffled = (np.array([rollout.arm == arm for rollout in group.rollouts]) for arm in ("plain", "shuffled"))
        if not ordered.any() or not shuffled.any():
            return np.full(len(group.rollouts), np.nan, np.float32)
        accuracy = self.accuracy(group).astype(np.float64)
        if np.isnan(accuracy[ordered]).all() or np.isnan(accuracy[shuffled]).all():
            return np.full(len(group.rollouts), np.nan, np.float32)
        earned = np.nanmean(accuracy[ordered]) >= self.mu * np.nanmean(accuracy[shuffled])
        bonus = np.where(ordered & (accuracy > self.correct_above) & earned, self.alpha, 0.0)
        return np.where(np.isnan(accuracy), np.nan, bonus).astype(np.float32)
