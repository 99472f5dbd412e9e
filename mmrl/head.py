"""The LM head in chunks of tokens: what a loss needs of the vocabulary, without ever holding tokens x vocabulary logits.

Letters: N tokens, D hidden width, V vocabulary, K banned ids. Half-precision input is computed in float32; float64 stays float64.
"""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrl import head_torch
from mmrl.head_torch import LogitMap
from mmrl.ops import check_temperature

_log = logging.getLogger(__name__)

CHOICE = "MMRL_HEAD_KERNELS"
"""Environment variable: torch or triton, the code that runs between the matrix products. Not set: Triton on CUDA if it is installed,
else torch. Triton on a CPU needs its interpreter (TRITON_INTERPRET=1), which is for tests. float64 always takes torch."""


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


@torch.no_grad()
def chunked_topk(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    k: int,
    *,
    temperature: float,
    banned_ids: Int[Tensor, " b"] | None = None,
    chunk: int = 512,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `k` likeliest tokens of every row, best first: log-probabilities in nats (of the whole vocabulary's softmax) and ids.

    No gradient. The other arguments are those of `chunked_logps_entropy`; `banned_ids` are distinct and never among the ids.
    """
    form = _form(temperature, softcap, banned_ids)
    hidden, weight = _operands(chunk, hidden, weight)
    allowed = len(weight) - (0 if banned_ids is None else len(banned_ids))
    if not 1 <= k <= allowed:
        raise ValueError(f"k must be from 1 to the {allowed} ids that are not banned; got {k}")
    logps = hidden.new_empty((len(hidden), k), dtype=_wide(hidden))
    ids = hidden.new_empty((len(hidden), k), dtype=torch.int64)
    buffer = _buffer(hidden, weight, chunk)
    with _no_autocast(hidden):
        for rows in _slices(len(hidden), chunk):
            z = _logits(head_torch, hidden[rows], weight, form, buffer)
            logps[rows], ids[rows] = z.topk(k, dim=1)
            logps[rows] -= head_torch.stats(z, ids[rows, 0], form, with_entropy=False)[0][:, None]
    return logps, ids


def chunked_kl(
    hidden_p: Float[Tensor, "n d"],
    weight_p: Float[Tensor, "v d"],
    hidden_q: Float[Tensor, "n e"],
    weight_q: Float[Tensor, "v e"],
    *,
    temperature: float,
    banned_ids: Int[Tensor, " k"] | None = None,
    chunk: int = 512,
    direction: Literal["forward", "reverse", "symmetric"] = "forward",
    softcap: float | None = None,
) -> Float[Tensor, " n"]:
    """The divergence, row by row in nats over the whole vocabulary, between p = softmax of hidden_p @ weight_p.T and q likewise.

    `direction`: forward is KL(p || q); reverse is KL(q || p); symmetric is their sum, sum_v (p - q)(log p - log q), so half of it is
    the visual uncertainty of VOGUE (arXiv:2510.01444). PAPO's perception term (arXiv:2507.06448) estimates forward, with p the policy
    and q its masked view, on the sampled tokens.
    Types, chunks, recomputation and the other arguments are those of `chunked_logps_entropy`, with two logits per chunk. Every input
    that requires a gradient gets one. The two weights may be one tensor, whose gradient then adds up both sides; to hold one side
    fixed, detach its hidden *and* its weight.
    """
    if hidden_p.shape[:1] != hidden_q.shape[:1] or weight_p.shape[:1] != weight_q.shape[:1]:
        shapes = [tuple(t.shape) for t in (hidden_p, weight_p, hidden_q, weight_q)]
        raise ValueError(f"need hidden_p [n, d], weight_p [v, d], hidden_q [n, e], weight_q [v, e]; got {shapes}")
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(_DIRECTIONS)}; got {direction!r}")
    form = _form(temperature, softcap, banned_ids)
    tied = weight_q is weight_p
    hidden_p, weight_p, hidden_q, weight_q = _operands(chunk, hidden_p, weight_p, hidden_q, weight_q)
    return _KL.apply(hidden_p, weight_p, hidden_q, None if tied else weight_q, form, chunk, _DIRECTIONS[direction])


_DIRECTIONS = {"forward": (1, 0), "reverse": (0, 1), "symmetric": (1, 1)}
"""How often KL(p || q) and KL(q || p) count."""


class _LogpsEntropy(torch.autograd.Function):
    """d logp_y / d z = 1[y] - p;   d H / d z_j = -p_j (log p_j + H);   z = logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, form: LogitMap, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        lse = hidden.new_empty(len(ids), dtype=_wide(hidden))
        logps = torch.empty_like(lse)
        entropies = torch.empty_like(lse) if with_entropy else None
        buffer, kernels = _buffer(hidden, weight, chunk), _kernels(hidden)
        with _no_autocast(hidden):
            for rows in _slices(len(ids), chunk):
                z = _logits(kernels, hidden[rows], weight, form, buffer)
                lse[rows], logps[rows], entropy = kernels.stats(z, ids[rows], form, with_entropy)
                if entropies is not None and entropy is not None:
                    entropies[rows] = entropy
        ctx.save_for_backward(hidden, weight, ids, lse, entropies)
        ctx.form, ctx.chunk, ctx.kernels = form, chunk, kernels
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
        kernels, kept, ctx.kept = ctx.kernels, ctx.kept, None  # overwritten below: a second backward computes it again
        buffer = _buffer(hidden, weight, ctx.chunk) if kept is None else kept
        grads = _Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        with _no_autocast(hidden):
            for rows in _slices(len(ids), ctx.chunk):
                z = _logits(kernels, hidden[rows], weight, ctx.form, buffer) if kept is None else buffer
                optional = (None if value is None else value[rows] for value in (entropies, grad_logps, grad_entropies))
                grads.add(rows, kernels.gradient(z, ids[rows], ctx.form, lse[rows], *optional, hidden.dtype))
        return *grads.result(), None, None, None, None


class _KL(torch.autograd.Function):
    """With gap = z_p - z_q:   d KL(p || q) / d z_p = p (gap - mean of gap under p),   d KL(p || q) / d z_q = q - p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_p: Tensor,
        weight_p: Tensor,
        hidden_q: Tensor,
        weight_q: Tensor | None,
        form: LogitMap,
        chunk: int,
        counts: tuple[int, int],
    ) -> Tensor:
        sides = ((hidden_p, weight_p), (hidden_q, weight_p if weight_q is None else weight_q))
        buffers, kernels = [_buffer(*side, chunk) for side in sides], _kernels(hidden_p)
        stats = hidden_p.new_empty((4, len(hidden_p)), dtype=_wide(hidden_p))  # of `kl_stats`
        with _no_autocast(hidden_p):
            for rows in _slices(len(hidden_p), chunk):
                stats[:, rows] = kernels.kl_stats(*_both_logits(kernels, sides, rows, form, buffers), form)
        ctx.save_for_backward(hidden_p, weight_p, hidden_q, weight_q, stats)
        ctx.form, ctx.chunk, ctx.counts, ctx.kernels = form, chunk, counts, kernels
        ctx.kept = buffers if len(hidden_p) <= chunk else None
        lse_p, lse_q, gap_p, gap_q = stats
        forward, reverse = gap_p - (lse_p - lse_q), (lse_p - lse_q) - gap_q
        return (forward * counts[0] + reverse * counts[1]).clamp_(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable  # its stub makes ctx positional-only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        hidden_p, weight_p, hidden_q, weight_q, stats = ctx.saved_tensors
        tied = weight_q is None
        sides = ((hidden_p, weight_p), (hidden_q, weight_p if tied else weight_q))
        kernels, kept, ctx.kept = ctx.kernels, ctx.kept, None  # overwritten below: a second backward computes them again
        buffers = [_buffer(*side, ctx.chunk) for side in sides] if kept is None else kept
        wants = ctx.needs_input_grad
        grads = [_Gradients(*sides[0], wants[0], wants[1]), _Gradients(*sides[1], wants[2], wants[3])]
        if tied:
            grads[1].grad_weight, grads[1].is_empty = grads[0].grad_weight, False  # p's product comes first
        wanted = (wants[0] or wants[1], wants[2] or wants[1 if tied else 3])
        with _no_autocast(hidden_p):
            for rows in _slices(len(hidden_p), ctx.chunk):
                z = _both_logits(kernels, sides, rows, ctx.form, buffers) if kept is None else buffers
                each = (grad[rows] * count for count in ctx.counts)
                both = kernels.kl_gradients(*z, ctx.form, stats[:, rows], *each, wanted, hidden_p.dtype)
                for side, grad_z in zip(grads, both, strict=True):
                    if grad_z is not None:
                        side.add(rows, grad_z)
        of_q = (grads[1].grad_hidden, None) if tied else grads[1].result()
        return *grads[0].result(), *of_q, None, None, None


def _both_logits(
    kernels: ModuleType, sides: Sequence[tuple[Tensor, Tensor]], rows: slice, form: LogitMap, buffers: Sequence[Tensor]
) -> list[Tensor]:
    return [_logits(kernels, hidden[rows], weight, form, buffer) for (hidden, weight), buffer in zip(sides, buffers, strict=True)]


class _Gradients:
    """The gradients of hidden [n, d] and weight [v, d], filled chunk by chunk; weight's adds up in float32 or wider."""

    def __init__(self, hidden: Tensor, weight: Tensor, want_hidden: bool, want_weight: bool) -> None:
        self.hidden, self.weight = hidden, weight
        self.grad_hidden = torch.empty_like(hidden) if want_hidden else None
        self.grad_weight = torch.empty_like(weight, dtype=_wide(weight)) if want_weight else None
        self.is_empty = True
        """Whether the first product is to overwrite `grad_weight`, which saves a pass of zeros over it."""

    def add(self, rows: slice, grad: Tensor) -> None:
        """`grad` [c, v] is the gradient of hidden[rows] @ weight.T, in the type of `hidden`, as the plain form would round it."""
        if self.grad_hidden is not None:
            self.grad_hidden[rows] = _matmul(grad, self.weight)
        if self.grad_weight is not None:
            _matmul(grad.t(), self.hidden[rows], out=self.grad_weight, add=not self.is_empty)
            self.is_empty = False

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        if self.grad_weight is None:
            return self.grad_hidden, None
        return self.grad_hidden, (self.grad_weight.zero_() if self.is_empty else self.grad_weight).to(self.weight.dtype)


def _kernels(hidden: Tensor) -> ModuleType:
    """What runs between the matrix products: `mmrl.head_triton` or `mmrl.head_torch`."""
    if _wide(hidden) != torch.float32:  # the Triton kernels compute in float32
        return head_torch
    return _choose(hidden.device.type, os.environ.get(CHOICE, ""))


@functools.cache  # so that the choice is logged once
def _choose(device: str, choice: str) -> ModuleType:
    if choice not in ("", "torch", "triton"):
        raise ValueError(f"{CHOICE} must be torch or triton, or not set; got {choice!r}")
    chosen = head_torch
    if choice == "triton" or (choice == "" and device == "cuda"):
        try:
            chosen = importlib.import_module("mmrl.head_triton")
        except ImportError as missing:
            if choice == "triton":
                raise
            _log.warning("LM head: Triton does not import (%s), plain torch takes its place", missing)
    _log.info("LM head on %s: %s", device, chosen.__name__)
    return chosen


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


def _logits(kernels: ModuleType, hidden: Tensor, weight: Tensor, form: LogitMap, buffer: Tensor) -> Tensor:
    z = _matmul(hidden, weight.t(), out=buffer[: len(hidden)], scale=kernels.product_scale(form))
    kernels.finish_(z, form)
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
