"""Tensor primitives of the losses: log-probabilities, entropy, KL estimators, masks.

Letters: B rows, T tokens, V vocabulary, N tokens of a stream, D hidden width, K banned ids. Half-precision input is computed in
float32; float64 stays float64. `mask` is True where a token counts.
"""

import contextlib
from typing import Any

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


def chunked_logps_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    ids: Int[Tensor, " n"],
    *,
    temperature: float,
    banned_ids: Int[Tensor, " k"] | None = None,
    chunk: int = 256,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """`token_logps` and `entropy` of logits = hidden @ weight.T without ever holding [n, v], only a few [chunk, v].

    Both results are in nats, float32 (float64 for float64 input), and differentiable once with respect to `hidden` and
    `weight`; the backward computes the logits again, chunk by chunk, and sums the gradient of `weight` in float32.
    `ids` int64 [n]: the token that hidden[i] predicts. `banned_ids` int64 [k] have probability 0 and no gradient; a banned
    target has log-probability -inf. Entropy is None unless `with_entropy`.
    """
    if hidden.shape[1] != weight.shape[1] or ids.shape != hidden.shape[:1]:
        raise ValueError(f"need hidden [n, d], weight [v, d], ids [n]; got {[tuple(t.shape) for t in (hidden, weight, ids)]}")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 row; got {chunk}")
    _check_temperature(temperature)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if dtype.itemsize < 4 and hidden.device.type != "cuda":  # only CUDA has a half-precision product with a float32 result
        dtype = torch.float32
    logps, entropies = _ChunkedHead.apply(hidden.to(dtype), weight.to(dtype), ids, temperature, banned_ids, chunk, with_entropy)
    return logps, entropies


class _ChunkedHead(torch.autograd.Function):
    """d logp_y / d z = 1[y] - p;   d H / d z_j = -p_j (log p_j + H);   z = hidden @ weight.T / temperature."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        temperature: float,
        banned_ids: Tensor | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        lse = hidden.new_empty(len(ids), dtype=dtype)
        logps = torch.empty_like(lse)
        entropies = torch.empty_like(lse) if with_entropy else None
        with _no_autocast(hidden):
            for rows in _slices(len(ids), chunk):
                z = _logits(hidden[rows], weight, temperature, banned_ids)
                lse[rows] = z.logsumexp(1)
                logps[rows] = z.gather(1, ids[rows, None]).squeeze(1) - lse[rows]
                if entropies is not None:
                    p, logp = _softmax(z, lse[rows], banned_ids)
                    entropies[rows] = -p.mul_(logp).sum(1)
        ctx.save_for_backward(hidden, weight, ids, lse, entropies, banned_ids)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logps, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable  # its stub makes ctx positional-only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad_logps, grad_entropies = grad_outputs
        hidden, weight, ids, lse, entropies, banned_ids = ctx.saved_tensors
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if want_weight else None
        if grad_logps is None:
            grad_logps = torch.zeros_like(lse)
        with _no_autocast(hidden):
            for rows in _slices(len(ids), ctx.chunk):
                z = _logits(hidden[rows], weight, ctx.temperature, banned_ids)
                p, logp = _softmax(z, lse[rows], banned_ids)
                g = grad_logps[rows, None]
                if grad_entropies is None:
                    grad_z = p.mul_(-g)
                else:
                    grad_z = logp.add_(entropies[rows, None]).mul_(-grad_entropies[rows, None]).sub_(g).mul_(p)
                grad_z.scatter_add_(1, ids[rows, None], g)
                if banned_ids is not None:
                    grad_z.index_fill_(1, banned_ids, 0.0)
                # Rounded to the inputs' dtype as the plain form would round it; the products below add up in float32.
                grad_z = grad_z.div_(ctx.temperature).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = _matmul(grad_z, weight).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += _matmul(grad_z.t(), hidden[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None, None


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _logits(hidden: Tensor, weight: Tensor, temperature: float, banned_ids: Tensor | None) -> Tensor:
    z = _matmul(hidden, weight.t()).div_(temperature)
    return z if banned_ids is None else z.index_fill_(1, banned_ids, -torch.inf)


def _softmax(z: Tensor, lse: Tensor, banned_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """(p, log p) from logits, which are overwritten; log p is 0 for banned ids, so that p * log p is."""
    logp = z.sub_(lse[:, None])
    p = logp.exp()
    return p, logp if banned_ids is None else logp.index_fill_(1, banned_ids, 0.0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 or wider. Half precision arrives here on CUDA only."""
    return a @ b if a.dtype.itemsize >= 4 else torch.mm(a, b, out_dtype=torch.float32)


def _no_autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(like.device.type, enabled=False)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    _check_temperature(temperature)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be > 0 and finite; got {temperature}")


def _ref_log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    return (ref_logps - logps).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
