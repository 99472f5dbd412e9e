"""Clipped importance weights in front of a plain policy gradient: a clipped token still learns, at a bounded rate.

Two papers, two spellings of the bound, hence two terms: in MiniMax's it is 1 + epsilon_high, in ScaleRL's an absolute number.
"5" means a weight of at most 6 in the first and at most 5 in the second.
"""

from dataclasses import dataclass
from typing import ClassVar

from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.clipped_surrogate import check_clip
from mmrl.losses.correction import corrected
from mmrl.losses.needs import add_needs
from mmrl.ops import log_ratio, masked
from mmrl.protocols import Correction


@dataclass(frozen=True)
class ClippedISPolicy:
    """-sg[clip(r, 1 - epsilon, 1 + epsilon_high)] A log pi per token (CISPO of MiniMax-M1, arXiv:2506.13585, eqs. 4-5).

    `epsilon` in (0, 1]: 1, the default, is no lower bound, as in the paper (verl writes 10). `epsilon_high` > 0: the paper
    gives no value, verl's recipe 0.2. The value of the loss means nothing; its gradient is -w A. Metrics: clip_ratio/low_mean
    and /high_mean, tokens whose weight is held at a bound, of either advantage sign.
    """

    epsilon: float = 1.0
    epsilon_high: float = 0.2
    correction: Correction | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_clip(self.epsilon, self.epsilon_high)
        if self.correction is not None:
            add_needs(self, "sampling_logps")

    def __call__(self, x: LossInputs) -> TermOutput:
        ratio = log_ratio(x.logps, x.old_logps, x.mask).exp().detach()
        weight = ratio.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        loss = -weight * masked(x.advantages, x.mask) * masked(x.logps, x.mask)
        loss, correction_metrics = corrected(loss, self.correction, x)
        held = {
            "clip_ratio/low_mean": (ratio < 1 - self.epsilon).float(),
            "clip_ratio/high_mean": (ratio > 1 + self.epsilon_high).float(),
        }
        return TermOutput(loss, {**held, **correction_metrics})


@dataclass(frozen=True)
class CappedISPolicy:
    """-sg[min(r, epsilon_max)] A log pi per token (ScaleRL, arXiv:2510.13786; TRL's loss_type "cispo", where the cap is named
    epsilon_high).

    `epsilon_max` > 0, no lower bound. Metric: cispo_clip_ratio as in TRL, the tokens with r > epsilon_max and A > 0.
    """

    epsilon_max: float = 5.0
    correction: Correction | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.epsilon_max > 0:
            raise ValueError(f"epsilon_max must be > 0; got {self.epsilon_max}")
        if self.correction is not None:
            add_needs(self, "sampling_logps")

    def __call__(self, x: LossInputs) -> TermOutput:
        advantages = masked(x.advantages, x.mask)
        ratio = log_ratio(x.logps, x.old_logps, x.mask).exp().detach()
        loss = -ratio.clamp(max=self.epsilon_max) * advantages * masked(x.logps, x.mask)
        loss, correction_metrics = corrected(loss, self.correction, x)
        return TermOutput(loss, {"cispo_clip_ratio": ((ratio > self.epsilon_max) & (advantages > 0)).float(), **correction_metrics})
