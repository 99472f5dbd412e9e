"""PPO's clipped surrogate, on which GRPO, DAPO and most others stand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.correction import corrected
from mmrl.losses.needs import add_needs
from mmrl.ops import log_ratio, masked
from mmrl.protocols import Correction


@dataclass(frozen=True)
class ClippedSurrogate:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) per token, r = pi / pi_old (arXiv:1707.06347, eq. 7).

    `epsilon` in (0, 1], `epsilon_high` > 0: DAPO's clip-higher is 0.2 / 0.28 (arXiv:2503.14476), EasyR1's default 0.2 / 0.3.
    `epsilon: 1, epsilon_high: .inf` never clips. `dual_clip` c > 1 bounds the loss of a bad token (A < 0) by -c A
    (arXiv:1912.09729; 3 in verl and EasyR1); None = no bound. The log ratio is held in [-20, 20].
    Metrics, TRL's names: clip_ratio/low_mean (r < 1 - epsilon and A < 0), /high_mean (r > 1 + epsilon_high and A > 0),
    /region_mean (either); with dual clip also clip_ratio/dual_mean (r > c and A < 0).
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.2
    dual_clip: float | None = None
    correction: Correction | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_clip(self.epsilon, self.epsilon_high)
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip must be > 1 or null; got {self.dual_clip}")
        if self.correction is not None:
            add_needs(self, "sampling_logps")

    def __call__(self, x: LossInputs) -> TermOutput:
        advantages = masked(x.advantages, x.mask)
        ratio = log_ratio(x.logps, x.old_logps, x.mask).exp()
        loss = clip_loss(ratio, advantages, self.epsilon, self.epsilon_high)
        metrics = clip_metrics(ratio, advantages, self.epsilon, self.epsilon_high)
        if self.dual_clip is not None:
            bad = advantages < 0
            loss = torch.where(bad, torch.minimum(loss, -self.dual_clip * advantages), loss)
            metrics = {**metrics, "clip_ratio/dual_mean": ((ratio > self.dual_clip) & bad).float()}
        loss, correction_metrics = corrected(loss, self.correction, x)
        return TermOutput(loss, {**metrics, **correction_metrics})


def clip_loss(ratio: Float[Tensor, "b t"], advantages: Float[Tensor, "b t"], epsilon: float, epsilon_high: float) -> Float[Tensor, "b t"]:
    """-min(r A, clip(r) A)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clip_metrics(
    ratio: Float[Tensor, "b t"], advantages: Float[Tensor, "b t"], epsilon: float, epsilon_high: float
) -> Mapping[str, Float[Tensor, "b t"]]:
    """Where the clip holds the loss, i.e. where the gradient is 0."""
    low = (ratio < 1 - epsilon) & (advantages < 0)
    high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return {
        "clip_ratio/low_mean": low.float(),
        "clip_ratio/high_mean": high.float(),
        "clip_ratio/region_mean": (low | high).float(),
    }


def check_clip(epsilon: float, epsilon_high: float) -> None:
    """ValueError unless epsilon lies in (0, 1] and epsilon_high is positive."""
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must lie in (0, 1], 1 meaning no lower bound; got {epsilon}")
    if not epsilon_high > 0:
        raise ValueError(f"epsilon_high must be > 0; got {epsilon_high}")
