"""Controls: rewards that must not teach anything."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.protocols import Reward
from mmrl.seeding import stream
from mmrl.types import Group


@dataclass(frozen=True)
class Shuffled:
    """Another reward with its values dealt to the group's rollouts at random: same mean, same spread, no information. A method that still
    improves under it profits from something else than its reward (arXiv:2506.10947). Range: that of `reward`.

    The deal is keyed by seed, task and completions, so scoring a group again gives the same values.
    """

    reward: Reward
    seed: int = 0
    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        values = self.reward(group)
        order = stream(self.seed, "shuffled", group.task.id, *(r.completion.text for r in group.rollouts)).permutation(len(values))
        return values[order]
