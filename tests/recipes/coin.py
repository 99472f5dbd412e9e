"""A reward from outside the project: half of every group has succeeded, whatever the model wrote."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.types import Group


@dataclass(frozen=True)
class Coin:
    """1 for every second completion of a group, else 0."""

    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        return np.arange(len(group.rollouts)).astype(np.float32) % 2


@dataclass(frozen=True)
class Broken:
    """Fails at every completion."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.full(len(group.rollouts), 1 / 0, np.float32)
