"""Advantages whose baseline is the whole step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.advantages.baseline import SAME_REWARD, spread, totals
from mmrl.types import GroupRewards


@dataclass(frozen=True)
class BatchBaseline:
    """(R - mean) / (std + epsilon) over the rewards of all rollouts of the step, ddof = 1, on every token of the rollout.

    What is the same for a whole group, such as TTRV's entropy term (arXiv:2510.06783), is taken out by a baseline inside the group and
    stays here. Equal rewards in the whole step (spread < 1e-8), or fewer than two: exactly 0. NaN rewards: left out, advantage 0. A group
    of one is fine. Unlike `reinforce_pp` every rollout counts once, however long it is.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be > 0 and finite; got {self.epsilon}")

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        rewards = [totals(group) for group in groups]
        batch = np.concatenate(rewards) if rewards else np.empty(0)
        batch = batch[~np.isnan(batch)]
        if len(batch) < 2 or np.ptp(batch) < SAME_REWARD:
            return [spread(group, np.zeros(len(row))) for group, row in zip(groups, rewards, strict=True)]
        mean, scale = batch.mean(), batch.std(ddof=1) + self.epsilon
        return [spread(group, np.nan_to_num((row - mean) / scale, nan=0.0)) for group, row in zip(groups, rewards, strict=True)]
