"""Attention of packed spans on CUDA: the variable-length flash kernels, which take spans as they lie, without a copy or a rectangle.

Two makes of one kernel: the package flash-attn where it is installed (2.8 and newer), else the build inside torch. Both want half
precision; float32 on CUDA takes the plain kernel. Nothing here has run on a GPU yet: shapes and signs are tested on a CPU, with the
kernel's products written out in place of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmrl.models.spans import Spans


@dataclass(frozen=True)
class Bounds:
    """Spans that lie one after the other, as the kernels want them: cumulative lengths int32 [n + 1] and the longest."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int


Forward = Callable[[Tensor, Tensor, Tensor, Bounds, bool, float], tuple[Tensor, Tensor]]
"""(q [T, H, d], k, v [S, Hk, d], bounds, is_causal, scale) -> output [T, H, d] and log-sum-exp float32 [H, T]."""
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Bounds, bool, float], tuple[Tensor, Tensor, Tensor]]
"""(grad [T, H, d], q, k, v, output, log-sum-exp [H, T], bounds, is_causal, scale) -> gradients of q, k, v."""


class VarlenKernel:
    """Spans of all lengths in one call."""

    def __init__(self, forward: Forward, backward: Backward) -> None:
        self._forward, self._backward = forward, backward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
        cut = Cut(spans)
        if cut.is_empty:
            return torch.zeros_like(q), q.new_full(q.shape[:2], -math.inf, dtype=torch.float32)
        out, lse = self._forward(cut.queries(q), cut.keys(k), cut.keys(v), cut.bounds, spans.is_causal, scale)
        return cut.widen(out, q, 0.0), cut.widen(lse.t(), q, -math.inf)

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        cut = Cut(spans)
        if cut.is_empty:
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dq, dk, dv = self._backward(
            cut.queries(grad_out), cut.queries(q), cut.keys(k), cut.keys(v), cut.queries(out), cut.queries(lse).t().contiguous(),
            cut.bounds, spans.is_causal, scale,
        )  # fmt: skip
        return cut.widen(dq, q, 0.0), cut.widen_keys(dk, k), cut.widen_keys(dv, v)


@dataclass(frozen=True)
class Cut:
    """The part of the rows that the spans cover. Spans without queries or keys are left out; the others lie one after the other."""

    spans: Spans

    @cached_property
    def kept(self) -> list[int]:
        pairs = zip(self.spans.queries, self.spans.keys, strict=True)
        return [n for n, ((q0, q1), (k0, k1)) in enumerate(pairs) if q1 > q0 and k1 > k0]

    @property
    def is_empty(self) -> bool:
        return not self.kept

    @cached_property
    def rows(self) -> tuple[slice | Tensor, slice | Tensor]:
        return tuple(_rows([side[n] for n in self.kept], self.spans.device) for side in (self.spans.queries, self.spans.keys))  # pyright: ignore[reportReturnType]

    @cached_property
    def bounds(self) -> Bounds:
        lengths = [[side[n][1] - side[n][0] for n in self.kept] for side in (self.spans.queries, self.spans.keys)]
        queries, keys = (torch.tensor([0, *some], device=self.spans.device).cumsum(0, dtype=torch.int32) for some in lengths)
        return Bounds(queries, keys, max(lengths[0]), max(lengths[1]))

    def queries(self, x: Tensor) -> Tensor:
        return x[self.rows[0]]

    def keys(self, x: Tensor) -> Tensor:
        return x[self.rows[1]]

    def widen(self, values: Tensor, like: Tensor, fill: float) -> Tensor:
        """Rows that no span covers hold `fill`."""
        return self._widen(values, len(like), self.rows[0], fill)

    def widen_keys(self, values: Tensor, like: Tensor) -> Tensor:
        return self._widen(values, len(like), self.rows[1], 0.0)

    def _widen(self, values: Tensor, length: int, rows: slice | Tensor, fill: float) -> Tensor:
        if len(values) == length:
            return values.contiguous()
        out = values.new_full((length, *values.shape[1:]), fill)
        out[rows] = values
        return out


def _rows(spans: list[tuple[int, int]], device: torch.device) -> slice | Tensor:
    if all(a[1] == b[0] for a, b in pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(begin, end, device=device) for begin, end in spans])


def torch_flash() -> VarlenKernel:
    """torch's own build of the kernel."""

    def forward(q: Tensor, k: Tensor, v: Tensor, b: Bounds, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, b.queries, b.keys, b.longest_query, b.longest_key, 0.0, is_causal, False, scale=scale
        )
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, b: Bounds, is_causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, b.queries, b.keys, b.longest_query, b.longest_key, 0.0, is_causal, no_dropout,
            torch.empty(0, device=q.device), scale=scale,
        )  # fmt: skip

    return VarlenKernel(forward, backward)


def package_flash() -> VarlenKernel | None:
    """flash-attn's, or None where it is not installed."""
    try:
        from flash_attn import flash_attn_interface as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    library: Any = package

    def forward(q: Tensor, k: Tensor, v: Tensor, b: Bounds, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = library._flash_attn_varlen_forward(q, k, v, b.queries, b.keys, b.longest_query, b.longest_key, 0.0, scale, is_causal)
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, b: Bounds, is_causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        library._flash_attn_varlen_backward(
            grad, q, k, v, out, lse, dq, dk, dv, b.queries, b.keys, b.longest_query, b.longest_key, 0.0, scale, is_causal, -1, -1, 0.0,
            None, False,
        )  # fmt: skip
        return dq, dk, dv

    return VarlenKernel(forward, backward)
