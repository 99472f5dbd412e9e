"""Group-relative advantages: GRPO, Dr. GRPO, and the batch-scaled form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from mmrl.advantages.baseline import centred, per_group, totals
from mmrl.types import GroupRewards

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class GRPO:
    """(R - mean of the group) / (std + epsilon), on every token of the rollout.

    `scale_rewards`: "group" divides by the group's own std (GRPO, arXiv:2402.03300, section 4.1.2), "batch" by the std over
    all rewards of the step (arXiv:2508.08221), "none" by 1 (Dr. GRPO, arXiv:2503.20783); TRL's key and values.
    std has ddof = 1. `epsilon` > 0: 1e-4 as in TRL; verl and EasyR1 have 1e-6.
    Equal rewards (spread < 1e-8): exactly 0. NaN rewards: left out of mean and std, advantage 0; with fewer than two rewards
    left, 0. A group of one: ValueError. Token rewards, where there are any, are added up into R.
    """

    scale_rewards: Scale = "group"
    epsilon: float = 1e-4
    min_generations: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.scale_rewards not in get_args(Scale):
            raise ValueError(f"scale_rewards must be one of {', '.join(get_args(Scale))}; got {self.scale_rewards!r}")
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be > 0 and finite; got {self.epsilon}")

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        if self.scale_rewards == "none":
            return per_group(groups, centred)
        if self.scale_rewards == "group":
            return per_group(groups, lambda rewards: self._scaled(centred(rewards), rewards))
        batch = np.concatenate([totals(group) for group in groups]) if groups else np.empty(0)
        return per_group(groups, lambda rewards: self._scaled(centred(rewards), batch))

    def _scaled(self, advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        if not advantages.any():  # equal rewards, or too few for a std
            return advantages
        return advantages / (np.nanstd(rewards, ddof=1) + self.epsilon)
