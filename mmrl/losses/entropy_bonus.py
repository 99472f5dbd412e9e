"""Reward for staying undecided."""

from dataclasses import dataclass
from typing import ClassVar

from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.needs import needed
from mmrl.ops import masked


@dataclass(frozen=True)
class EntropyBonus:
    """-H per token, H the entropy in nats of the whole next-token distribution: a positive weight raises the entropy.

    Metric: entropy.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, x: LossInputs) -> TermOutput:
        entropy = masked(needed(x, "entropy"), x.mask)
        return TermOutput(-entropy, {"entropy": entropy.detach()})
