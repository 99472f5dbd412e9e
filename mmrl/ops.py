"""Tensor primitives of the losses: log-probabilities, entropy, KL estimators, masks.

Letters: B rows, T tokens, V vocabulary. Half-precision input is computed in float32; float64 stays float64. `mask` is True where a
token counts.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_CLAMP = 20.0
"""Nats. exp(20) = 4.9e8 is still finite in float32; beyond it the gradient is 0."""


def masked(values: Float[Tensor, "*s"], mask: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`values` where `mask`, else 0 with zero gradient, whatever `values` holds there (NaN * 0 would be NaN)."""
    return torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Float[Tensor, "*s"], mask: Bool[Tensor, "*s"]) -> Float[Tensor, ""]:
    """Mean over the True tokens of all rows together; NaN when there is none."""
    return masked(values, mask).sum() / mask.sum()


def log_ratio(logps: Float[Tensor, "*s"], old_logps: Float[Tensor, "*s"], mask: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log(pi / pi_old) in nats, held in [-20, 20]; 0 where `mask` is False."""
    return masked(logps - old_logps, mask).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)


def token_logps(logits: Float[Tensor, "*s v"], ids: Int[Tensor, "*s"], *, temperature: float) -> Float[Tensor, "*s"]:
    """Log-probability in nats of `ids[..., i]` under `logits[..., i, :]` (already shifted), float32.

    A logit of -inf has probability 0. Padding gets values too; the caller masks.
    """
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def entropy(logits: Float[Tensor, "*s v"], *, temperature: float) -> Float[Tensor, "*s"]:
    """Entropy in nats of softmax(logits / temperature), float32, in [0, log V].

    Logits of -inf (a vocabulary mask) contribute 0 and get zero gradient; a row must keep at least one finite logit.
    """
    logps = _scaled(logits, temperature).log_softmax(-1)
    return -(logps.exp() * logps.masked_fill(logps == -torch.inf, 0.0)).sum(-1)


def kl_k1(logps: Float[Tensor, "*s"], ref_logps: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """logps - ref_logps: unbiased for KL(pi || ref) on samples of pi, of either sign. As a loss its expected gradient is 0.

    All three estimators are Schulman's (joschu.net/blog/kl-approx.html), with |ref_logps - logps| held at 20 nats.
    """
    return -_ref_log_ratio(logps, ref_logps)


def kl_k2(logps: Float[Tensor, "*s"], ref_logps: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """(logps - ref_logps)^2 / 2: biased in value, >= 0. As a loss its expected gradient is that of KL(pi || ref)."""
    return 0.5 * _ref_log_ratio(logps, ref_logps).square()


def kl_k3(logps: Float[Tensor, "*s"], ref_logps: Float[Tensor, "*s"], *, cap: float = torch.inf) -> Float[Tensor, "*s"]:
    """exp(x) - x - 1 with x = ref_logps - logps: unbiased for KL(pi || ref), >= 0. As a loss: the gradient of KL(ref || pi).

    Values above `cap` are held there, with zero gradient (verl and EasyR1: 10; TRL: none).
    """
    x = _ref_log_ratio(logps, ref_logps)
    # expm1: at |x| = 1e-4 the plain form loses every digit in float32.
    return (torch.expm1(x) - x).clamp(max=cap)


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless `temperature` is > 0 and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be > 0 and finite; got {temperature}")


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    check_temperature(temperature)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _ref_log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    return (ref_logps - logps).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
