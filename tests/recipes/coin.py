"""A reward from outside the project: half of every group has succeeded, whatever the model wrote."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mmrl.types import Group


@dataclass(frozen=True)
class Coin:
    """1 for every second completion of a group, else 0. The run whose folder is $COIN_HOLD never gets past its first checkpoint: it waits
    there to be killed."""

    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        held = Path(os.environ.get("COIN_HOLD", ""))
        while held.name and (held / "checkpoint-1").exists() and any(held.name in word for word in sys.argv):
            time.sleep(0.05)
        return np.arange(len(group.rollouts)).astype(np.float32) % 2


@dataclass(frozen=True)
class Broken:
    """Fails at every completion."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.full(len(group.rollouts), 1 / 0, np.float32)
