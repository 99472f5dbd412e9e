"""Spans of packed rows that attend to each other, and the kernels that compute them.

Rows (tokens) of all spans lie packed, without padding, `[T, heads, d]`. A kernel's forward returns the attention output and the log-sum-exp
of the scores; its backward takes an output and log-sum-exp that may cover more keys than these spans, which is what lets parts be merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spans:
    """Span i: query rows [queries[i][0], queries[i][1]) attend to key rows [keys[i][0], keys[i][1]); no row stands in two spans."""

    queries: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, int], ...]
    is_causal: bool
    """Row j of a span sees its keys 0 … j; False: all of its keys."""
    device: torch.device

    @staticmethod
    def causal(lengths: Sequence[int], device: torch.device) -> Spans:
        """Runs of `lengths` rows, one after the other, each causal in itself."""
        runs = tuple(spans_of(lengths))
        return Spans(runs, runs, True, device)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The spans as a few rectangles, for kernels that want rectangles."""
        return tuple(_blocks(self))


def spans_of(lengths: Sequence[int], start: int = 0) -> list[tuple[int, int]]:
    """[begin, end) of runs that lie one after the other."""
    ends = list(accumulate(lengths, initial=start))
    return list(pairwise(ends))


@dataclass(frozen=True, eq=False)
class Block:
    """n spans as a rectangle of m query rows and `length` keys each. Shorter spans are filled up with copies of row 0; `real_queries` says
    which of the n * m places are rows (None = all). Keys are filled up only in causal blocks, after every real row's keys."""

    n: int
    m: int
    length: int
    queries: slice | Tensor
    keys: slice | Tensor
    real_queries: Tensor | None
    real_keys: Tensor | None


def _blocks(spans: Spans) -> list[Block]:
    def shape(i: int) -> tuple[int, int]:
        (q0, q1), (k0, k1) = spans.queries[i], spans.keys[i]
        width = _rounded(q1 - q0)
        return (width, width) if spans.is_causal else (k1 - k0, width)

    wanted = [i for i in range(len(spans.queries)) if spans.queries[i][1] > spans.queries[i][0] and spans.keys[i][1] > spans.keys[i][0]]
    blocks = []
    for _, members in groupby(sorted(wanted, key=shape), key=shape):
        some = list(members)
        queries = [spans.queries[i] for i in some]
        keys = [spans.keys[i] for i in some]
        q_rows, q_real, m = _places(queries, spans.device)
        k_rows, k_real, length = (q_rows, q_real, m) if spans.is_causal else _places(keys, spans.device)
        blocks.append(Block(len(some), m, length, q_rows, k_rows, q_real, k_real))
    return blocks


def _rounded(length: int) -> int:
    """Up by a quarter at most, so that spans of about the same length share a block."""
    step = max(1, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def _places(spans: Sequence[tuple[int, int]], device: torch.device) -> tuple[slice | Tensor, Tensor | None, int]:
    """Row of every place of the rectangle, which places are rows (None = all), and its width."""
    width = max(end - begin for begin, end in spans)
    adjacent = all(a[1] == b[0] for a, b in pairwise(spans))
    if adjacent and all(end - begin == width for begin, end in spans):
        return slice(spans[0][0], spans[-1][1]), None, width
    place = torch.arange(width)
    rows = torch.stack([torch.where(place < end - begin, begin + place, 0) for begin, end in spans]).flatten()
    real = torch.stack([place < end - begin for begin, end in spans]).flatten()
    kept = None if bool(real.all()) else real.nonzero()[:, 0].to(device)
    return rows.to(device), kept, width


class SpanKernel(Protocol):
    """Attention of packed rows. H query heads over Hk key heads, H a multiple of Hk; lse float32 (float64 for float64 input), nats."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Float[Tensor, "t h d"], Float[Tensor, "t h"]]:
        """Output and log-sum-exp; 0 and -inf for rows outside every span."""
        ...

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v through these spans, given the output and log-sum-exp of all that the queries attend to."""
        ...


def _take(x: Tensor, rows: slice | Tensor, n: int) -> Tensor:
    """Rows of [T, …] as [n, width, …]; a view where they lie together."""
    some = x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
    return some.unflatten(0, (n, -1))


def _add(total: Tensor, rows: slice | Tensor, real: Tensor | None, values: Tensor) -> None:
    """Adds [n, width, …] to the rows it was taken from."""
    flat = values.flatten(0, 1)
    if isinstance(rows, slice):
        total[rows] += flat
    elif real is None:
        total.index_add_(0, rows, flat)
    else:
        total.index_add_(0, rows[real], flat[real])


def _put(out: Tensor, rows: slice | Tensor, real: Tensor | None, values: Tensor) -> None:
    flat = values.flatten(0, 1)
    if isinstance(rows, slice):
        out[rows] = flat
    elif real is None:
        out.index_copy_(0, rows, flat)
    else:
        out.index_copy_(0, rows[real], flat[real])


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


Flash = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
"""(q [n, h, m, d], k, v [n, h, l, d], is_causal, scale) -> output and log-sum-exp."""
FlashBackward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor, Tensor]]
"""(gradient, q, k, v, output, log-sum-exp, is_causal, scale) -> gradients of q, k, v."""


class BlockKernel:
    """Kernels over rectangles. Without a causal mask the query heads of one key head are folded into rows, and keys are never repeated."""

    def __init__(self, name: str, flash: Flash, flash_backward: FlashBackward) -> None:
        self.name, self.flash, self.flash_backward = name, flash, flash_backward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
        T, H, d = q.shape
        covers = spans.is_causal  # every row has its own span
        out = torch.empty((T, H, d), dtype=q.dtype, device=q.device) if covers else q.new_zeros(T, H, d)
        lse = q.new_full((T, H), -math.inf, dtype=_lse_dtype(q))
        for block in spans.blocks:
            heads = _Heads(H, k.shape[1], block, spans.is_causal)
            o, part = self.flash(heads.queries(q), heads.keys(k), heads.keys(v), spans.is_causal, scale)
            _put(out, block.queries, block.real_queries, heads.rows(o))
            _put(lse, block.queries, block.real_queries, heads.rows(part[..., None])[..., 0])
        return out, lse

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for block in spans.blocks:
            heads = _Heads(q.shape[1], k.shape[1], block, spans.is_causal)
            grad, total = heads.queries(grad_out), heads.queries(lse[..., None])[..., 0]
            if block.real_queries is not None:  # the fill must not count: its output has no gradient, and its probabilities are 0
                grad, total = heads.blank(grad, 0.0), heads.blank(total[..., None], 1e30)[..., 0]
            a, b, c = self.flash_backward(
                grad, heads.queries(q), heads.keys(k), heads.keys(v), heads.queries(out), total.contiguous(), spans.is_causal, scale
            )
            _add(dq, block.queries, block.real_queries, heads.rows(a))
            _add(dk, block.keys, block.real_keys, heads.key_rows(b))
            _add(dv, block.keys, block.real_keys, heads.key_rows(c))
        return dq, dk, dv


@dataclass(frozen=True)
class _Heads:
    """Packed rows <-> what a batched kernel takes: [n, H, m, d] with keys repeated (causal), or [n, Hk, H / Hk * m, d]."""

    H: int
    Hk: int
    block: Block
    is_causal: bool

    def queries(self, x: Tensor) -> Tensor:
        some = _take(x, self.block.queries, self.block.n)
        if self.is_causal:
            return some.transpose(1, 2)
        return some.unflatten(2, (self.Hk, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def rows(self, x: Tensor) -> Tensor:
        if self.is_causal:
            return x.transpose(1, 2)
        return x.unflatten(2, (self.H // self.Hk, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    def keys(self, x: Tensor) -> Tensor:
        some = _take(x, self.block.keys, self.block.n).transpose(1, 2)
        return some.repeat_interleave(self.H // self.Hk, 1) if self.is_causal and self.Hk != self.H else some

    def key_rows(self, x: Tensor) -> Tensor:
        if self.is_causal and self.Hk != self.H:
            x = x.unflatten(1, (self.Hk, -1)).sum(2)
        return x.transpose(1, 2)

    def blank(self, x: Tensor, value: float) -> Tensor:
        """`x` (queries' shape) with the fill set to `value`."""
        assert self.block.real_queries is not None
        is_fill = torch.ones(self.block.n * self.block.m, dtype=torch.bool, device=x.device)
        is_fill[self.block.real_queries] = False
        fill = is_fill.view(self.block.n, 1, self.block.m, 1)
        if not self.is_causal:
            fill = fill.repeat(1, 1, self.H // self.Hk, 1)
        return x.masked_fill(fill, value)


def flash_on_cpu() -> BlockKernel:
    """ATen's flash kernels for CPUs: float64, float32, bfloat16, float16."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return BlockKernel(
        "flash_on_cpu",
        lambda q, k, v, is_causal, scale: forward(q, k, v, 0.0, is_causal, scale=scale),
        lambda grad, q, k, v, out, lse, is_causal, scale: backward(grad, q, k, v, out, lse, 0.0, is_causal, scale=scale),
    )


def plain() -> BlockKernel:
    """Scores in full, on any device: the reference that the others are checked against."""
    return BlockKernel("plain", _plain, _plain_backward)


def _plain(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, is_causal, scale)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ v.to(scores.dtype)).to(q.dtype), lse


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, wide_q, wide_k, wide_v, wide_out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
    p = (_scores(q, k, is_causal, scale) - lse[..., None]).exp()
    ds = p * (grad @ wide_v.mT - (grad * wide_out).sum(-1, keepdim=True)) * scale
    return (ds @ wide_k).to(q.dtype), (ds.mT @ wide_q).to(k.dtype), (p.mT @ grad).to(v.dtype)


def _scores(q: Tensor, k: Tensor, is_causal: bool, scale: float) -> Tensor:
    scores = (q @ k.mT).to(_lse_dtype(q)) * scale
    if not is_causal:
        return scores
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~seen, -math.inf)
