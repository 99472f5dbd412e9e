"""PEARL: what was seen weighs what was concluded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mmrl.advantages.grpo import GRPO
from mmrl.advantages.per_arm import PerArm
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards


def _grpo() -> GRPO:
    return GRPO(epsilon=1e-6)


@dataclass(frozen=True)
class PEARL:
    """The estimator `of` on each arm by itself; then the advantages of the arm "plain" are multiplied by min(mean of the reward
    `fidelity` over the arm "perception", cap) (PEARL, arXiv:2511.18437).

    The factor comes after normalisation, which would undo it before. It is at most `cap`, so no advantage grows. Where no perception
    answer was scored it is 0.
    """

    of: AdvantageEstimator = field(default_factory=_grpo)
    """`{use: grpo, epsilon: 1.0e-6}`."""
    fidelity: str = "checklist"
    """Name of the reward that says what share of the checklist an answer got right, in [0, 1]."""
    cap: float | None = 0.5
    """In (0, 1]; null = the arm "plain" keeps its advantages."""
    min_generations: ClassVar[int] = 2
    needs_arms: ClassVar[tuple[str, ...]] = ("plain", "perception")
    separates_arms: ClassVar[bool] = True
    names_rewards: ClassVar[tuple[str, ...]] = ("fidelity",)

    def __post_init__(self) -> None:
        if self.cap is not None and not 0 < self.cap <= 1:
            raise ValueError(f"cap must lie in (0, 1], or be null; got {self.cap}")

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        given = PerArm(self.of)(groups)
        if self.cap is None:
            return given
        factors = [np.float32(self.factor(group)) for group in groups]
        return [
            [factor * row if arm == "plain" else row for row, arm in zip(rows, group.arms, strict=True)]
            for group, rows, factor in zip(groups, given, factors, strict=True)
        ]

    def factor(self, group: GroupRewards) -> float:
        """min(mean fidelity, cap) of a group."""
        seen = np.asarray(group.parts[self.fidelity], np.float64)[np.array(group.arms) == "perception"]
        seen = seen[~np.isnan(seen)]
        return min(float(seen.mean()), self.cap or 1.0) if len(seen) else 0.0
