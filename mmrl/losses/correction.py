"""Weights for rollouts that an engine sampled from another distribution than the trainer's.

An inference engine computes other log-probabilities than the trainer for the same weights (kernels, precision, batch
shape). The decoupled form multiplies the surrogate by w = pi_old / pi_engine, where pi_old is the trainer's own forward at
the start of the step, after clipping and before aggregation; the denominators stay, and a KL term is never weighted.

w makes up for old -> engine and the surrogate's own ratio for now -> old, so nothing is counted twice. A loop that takes
`old_logps` straight from the engine ("bypass") leaves the whole correction to the ratio: w is then 1 everywhere and a
correction does nothing. top_p < 1 or top_k > 0 at sampling makes `sampling_logps` those of a truncated distribution, which
no weight here can mend.

Metrics of a corrected term: "sampling/importance_sampling_ratio/mean" (TRL's name, of the weights as applied), its
".../mean_square" (effective sample size = mean^2 / mean_square of the tokens) and ".../masked" (share of weight 0).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mmrl.batch import LossInputs
from mmrl.losses.needs import needed
from mmrl.ops import LOG_RATIO_CLAMP, masked
from mmrl.protocols import Correction

Level = Literal["token", "sequence"]
"""token: each token by its own ratio (calm, biased). sequence: all tokens of a row by the product (unbiased, noisy)."""


@dataclass(frozen=True)
class TruncatedImportance:
    """TIS: w = min(pi_old / pi_engine, cap) (fengyao.notion.site/off-policy-rl; verl's default is token level, cap 2)."""

    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"cap must be > 0; got {self.cap}")
        _check_level(self.level)

    def __call__(self, x: LossInputs) -> Float[Tensor, "b t"]:
        return importance_weights(x, self.level).clamp(max=self.cap)


@dataclass(frozen=True)
class MaskedImportance:
    """MIS: w = pi_old / pi_engine inside [low, high], 0 outside (IcePop, arXiv:2510.18855).

    TRL's default is `level: sequence, low: 0, high: 3`. The bounds are on pi_old / pi_engine; verl's rejection statistics
    named *_k1 are bounded on the inverse.
    """

    low: float = 0.5
    high: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"need 0 <= low < high; got low {self.low}, high {self.high}")
        _check_level(self.level)

    def __call__(self, x: LossInputs) -> Float[Tensor, "b t"]:
        w = importance_weights(x, self.level)
        return torch.where((w < self.low) | (w > self.high), torch.zeros_like(w), w)


def importance_weights(x: LossInputs, level: Level) -> Float[Tensor, "b t"]:
    """pi_old / pi_engine without gradient, its logarithm held in [-20, 20]; a row's product repeated over T at sequence level.

    1 where `mask` is False. A token the engine gives no log-probability for (NaN) makes the weight, and so the loss, NaN:
    it is not taken for on-policy.
    """
    gap = masked(x.old_logps - needed(x, "sampling_logps"), x.mask).detach()
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True).expand_as(gap)
    return masked(gap.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP), x.mask).exp()


def corrected(
    per_token: Float[Tensor, "b t"], correction: Correction | None, x: LossInputs
) -> tuple[Float[Tensor, "b t"], Mapping[str, Float[Tensor, "b t"]]]:
    """The surrogate's per-token loss times the correction's weights, and the metrics of the weights."""
    if correction is None:
        return per_token, {}
    w = correction(x)
    name = "sampling/importance_sampling_ratio"
    return w * per_token, {f"{name}/mean": w, f"{name}/mean_square": w.square(), f"{name}/masked": (w == 0).float()}


def _check_level(level: str) -> None:
    if level not in get_args(Level):
        raise ValueError(f"level must be token or sequence; got {level!r}")
