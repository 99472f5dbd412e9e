"""The LM head in chunks of tokens: what a loss needs of the vocabulary, without ever holding tokens x vocabulary logits.

Letters: N tokens, D hidden width, V vocabulary, K banned ids. Half-precision input is computed in float32; float64 stays float64.
"""

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrl import head_torch
from mmrl.head_torch import LogitMap
from mmrl.ops import check_temperature


def chunked_logps_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    ids: Int[Tensor, " n"],
    *,
    temperature: float,
    banned_ids: Int[Tensor, " k"] | None = None,
    chunk: int = 512,
    with_entropy: bool = False,
    softcap: float | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """`ops.token_logps` and `ops.entropy` of logits = hidden @ weight.T with one [chunk, v] of logits at a time.

    Both results are in nats, float32 (float64 for float64 input), and differentiable once with respect to `hidden` and `weight`; the
    gradient of `weight` adds up in float32. If all rows fit one chunk, its logits are kept for the backward (3 matrix products); else
    the backward computes them again, chunk by chunk (4). Entropy is None unless `with_entropy`; left out of the loss, it costs the
    backward nothing. `ids` int64 [n]: the token that hidden[i] predicts. `banned_ids` int64 [k] have probability 0 and no gradient; a
    banned target has log-probability -inf. `softcap`: logits are softcap * tanh(logits / softcap) before the temperature, as in
    Gemma 2 (arXiv:2408.00118, section 2).
    """
    if ids.shape != hidden.shape[:1]:
        raise ValueError(f"need ids [n], hidden [n, d]; got {tuple(ids.shape)}, {tuple(hidden.shape)}")
    form = _form(temperature, softcap, banned_ids)
    hidden, weight = _operands(chunk, hidden, weight)
    logps, entropies = _LogpsEntropy.apply(hidden, weight, ids, form, chunk, with_entropy)
    return logps, entropies


class _LogpsEntropy(torch.autograd.Function):
    """d logp_y / d z = 1[y] - p;   d H / d z_j = -p_j (log p_j + H);   z = logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, form: LogitMap, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        lse = hidden.new_empty(len(ids), dtype=_wide(hidden))
        logps = torch.empty_like(lse)
        entropies = torch.empty_like(lse) if with_entropy else None
        buffer = _buffer(hidden, weight, chunk)
        with _no_autocast(hidden):
            for rows in _slices(len(ids), chunk):
                z = _logits(hidden[rows], weight, form, buffer)
                lse[rows], logps[rows], entropy = head_torch.stats(z, ids[rows], form, with_entropy)
                if entropies is not None:
                    entropies[rows] = entropy
        ctx.save_for_backward(hidden, weight, ids, lse, entropies)
        ctx.form, ctx.chunk = form, chunk
        ctx.kept = buffer if len(ids) <= chunk else None
        ctx.set_materialize_grads(False)
        return logps, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable  # its stub makes ctx positional-only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad_logps, grad_entropies = grad_outputs
        hidden, weight, ids, lse, entropies = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, None  # overwritten below: a second backward computes it again
        buffer = _buffer(hidden, weight, ctx.chunk) if kept is None else kept
        grads = _Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        with _no_autocast(hidden):
            for rows in _slices(len(ids), ctx.chunk):
                z = _logits(hidden[rows], weight, ctx.form, buffer) if kept is None else kept
                values = (None if value is None else value[rows] for value in (lse, entropies, grad_logps, grad_entropies))
                grads.add(rows, head_torch.gradient(z, ids[rows], ctx.form, *values))
        return *grads.result(), None, None, None, None


class _Gradients:
    """The gradients of hidden [n, d] and weight [v, d], filled chunk by chunk; weight's adds up in float32 or wider."""

    def __init__(self, hidden: Tensor, weight: Tensor, want_hidden: bool, want_weight: bool) -> None:
        self.hidden, self.weight = hidden, weight
        self.grad_hidden = torch.empty_like(hidden) if want_hidden else None
        self.grad_weight = torch.zeros_like(weight, dtype=_wide(weight)) if want_weight else None

    def add(self, rows: slice, grad: Tensor) -> None:
        """`grad` [c, v] is the gradient of hidden[rows] @ weight.T, rounded here as the plain form would round it."""
        grad = grad.to(self.hidden.dtype)
        if self.grad_hidden is not None:
            self.grad_hidden[rows] = _matmul(grad, self.weight)
        if self.grad_weight is not None:
            _matmul(grad.t(), self.hidden[rows], out=self.grad_weight, add=True)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        return self.grad_hidden, None if self.grad_weight is None else self.grad_weight.to(self.weight.dtype)


def _form(temperature: float, softcap: float | None, banned_ids: Tensor | None) -> LogitMap:
    check_temperature(temperature)
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"softcap must be > 0 and finite, or None; got {softcap}")
    return LogitMap(temperature, softcap, banned_ids)


def _operands(chunk: int, *operands: Tensor) -> list[Tensor]:
    """(hidden, weight) pairs, checked, in the one type that they are multiplied in."""
    for hidden, weight in zip(operands[::2], operands[1::2], strict=True):
        if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(f"need hidden [n, d], weight [v, d]; got {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1 row; got {chunk}")
    dtype = operands[0].dtype
    for operand in operands[1:]:
        dtype = torch.promote_types(dtype, operand.dtype)
    if dtype.itemsize < 4 and operands[0].device.type != "cuda":  # only CUDA has a half-precision product with a float32 result
        dtype = torch.float32
    return [operand.to(dtype) for operand in operands]


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _buffer(hidden: Tensor, weight: Tensor, chunk: int) -> Tensor:
    """Room for the logits of one chunk. One for all chunks: fresh memory costs the CPU more than a pass over it."""
    return hidden.new_empty((min(chunk, len(hidden)), len(weight)), dtype=_wide(hidden))


def _logits(hidden: Tensor, weight: Tensor, form: LogitMap, buffer: Tensor) -> Tensor:
    z = _matmul(hidden, weight.t(), out=buffer[: len(hidden)], scale=head_torch.product_scale(form))
    head_torch.finish_(z, form)
    return z


def _matmul(a: Tensor, b: Tensor, *, out: Tensor | None = None, add: bool = False, scale: float = 1.0) -> Tensor:
    """scale * a @ b in float32 or wider, into `out` or on top of it (`add`). Half precision arrives here on CUDA only."""
    if out is None:
        out = a.new_empty((len(a), b.shape[1]), dtype=_wide(a))
    mixed = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
    return torch.addmm(out, a, b, beta=int(add), alpha=scale, out=out, **mixed)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def _no_autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(like.device.type, enabled=False)
