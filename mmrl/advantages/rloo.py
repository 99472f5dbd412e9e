"""REINFORCE leave-one-out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.advantages.baseline import centred, per_group
from mmrl.types import GroupRewards


@dataclass(frozen=True)
class RLOO:
    """R_i - mean of the group's other rewards = n / (n - 1) * (R_i - mean) for n rewards (arXiv:2402.14740).

    No std, no epsilon. Equal rewards (spread < 1e-8): exactly 0. NaN rewards: not among the others, advantage 0; with fewer
    than two rewards left, 0. A group of one: ValueError. Token rewards (a KL penalty, as in the paper) are added up into R.
    """

    min_generations: ClassVar[int] = 2

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        return per_group(groups, _leave_one_out)


def _leave_one_out(rewards: np.ndarray) -> np.ndarray:
    n = np.count_nonzero(~np.isnan(rewards))
    return centred(rewards) * (n / max(n - 1, 1))
