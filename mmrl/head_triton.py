"""The vocabulary axis of the LM head on CUDA: the functions of `mmrl.head_torch`, each one pass over a chunk of logits.

Letters: C rows of a chunk, V vocabulary. `z` is a chunk of hidden @ weight.T, [C, V] with contiguous rows, float32 or half precision;
temperature and soft cap are applied as it is read, in float32, and -inf marks a banned id. Results are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from mmrl.head_torch import LogitMap

BLOCK = 4096
"""Logits that one program reads at a time."""
WARPS = 8


def product_scale(form: LogitMap) -> float:
    return 1.0


def finish_(z: Tensor, form: LogitMap) -> None:
    if form.banned_ids is not None:
        z.index_fill_(1, form.banned_ids, -torch.inf)


def stats(z: Tensor, ids: Tensor, form: LogitMap, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    lse, logps, entropies = z.new_empty((3, len(z)), dtype=torch.float32)
    _launch(_stats, (len(z),), (z,), form, ids, lse, logps, entropies, WITH_ENTROPY=with_entropy)
    return lse, logps, entropies if with_entropy else None


def gradient(
    z: Tensor,
    ids: Tensor,
    form: LogitMap,
    lse: Tensor,
    entropies: Tensor | None,
    grad_logps: Tensor | None,
    grad_entropies: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = z if z.dtype == dtype else torch.empty_like(z, dtype=dtype)
    g = torch.zeros_like(lse) if grad_logps is None else grad_logps
    with_entropy = grad_entropies is not None
    of_entropy = (entropies, grad_entropies) if with_entropy else (lse, lse)  # not read
    _launch(_gradient, _grid(z), (z, out), form, ids, lse, g, *of_entropy, WITH_ENTROPY=with_entropy)
    return out


def kl_stats(z_p: Tensor, z_q: Tensor, form: LogitMap) -> Tensor:
    out = z_p.new_empty((4, len(z_p)), dtype=torch.float32)
    _launch(_kl_stats, (len(z_p),), (z_p, z_q), form, *out)
    return out


def kl_gradients(
    z_p: Tensor,
    z_q: Tensor,
    form: LogitMap,
    stats: Tensor,
    grad_forward: Tensor,
    grad_reverse: Tensor,
    wanted: tuple[bool, bool],
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    out_p, out_q = (
        torch.empty_like(z, dtype=dtype) if want and z.dtype != dtype else z for z, want in zip((z_p, z_q), wanted, strict=True)
    )
    chunks = (z_p, z_q, out_p, out_q)
    _launch(_kl_gradients, _grid(z_p), chunks, form, *stats, grad_forward, grad_reverse, WANT_P=wanted[0], WANT_Q=wanted[1])
    return out_p if wanted[0] else None, out_q if wanted[1] else None


def _launch(kernel: Any, grid: tuple[int, ...], chunks: tuple[Tensor, ...], form: LogitMap, *rows: Tensor | None, **flags: bool) -> None:
    """Arguments of every kernel: each chunk and its row stride, the tensors [C], V, temperature, cap, CAPPED, its flags."""
    strided = [value for chunk in chunks for value in (chunk, chunk.stride(0))]
    dense = [row if row is None else row.contiguous() for row in rows]  # the gradient of a sum is one number, expanded
    numbers = (chunks[0].shape[1], form.temperature, form.softcap or 1.0, form.softcap is not None)
    with torch.cuda.device_of(chunks[0]):
        kernel[grid](*strided, *dense, *numbers, **flags, BLOCK=BLOCK, num_warps=WARPS)


def _grid(z: Tensor) -> tuple[int, int]:
    return len(z), triton.cdiv(z.shape[1], BLOCK)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _logits(product, temperature, cap, CAPPED: tl.constexpr):
    if CAPPED:
        product = tl.where(product == float("-inf"), product, cap * _tanh(product / cap))
    return product / temperature


@triton.jit
def _row(ptr, start, vocabulary, BLOCK: tl.constexpr):
    """A block of a row in float32; past its end banned."""
    columns = start + tl.arange(0, BLOCK)
    return tl.load(ptr + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)


@triton.jit
def _stats(
    z, z_stride, ids, lse, logps, entropies, vocabulary, temperature, cap, CAPPED: tl.constexpr, WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Running over the row: top, the largest logit; total, the sum of e = exp(logit - top); dot, the sum of e * (logit - top).
    Entropy = log total - dot / total."""
    row = tl.program_id(0).to(tl.int64)
    z += row * z_stride
    top, total, dot = -1e30, 0.0, 0.0  # finite, so that a first block of banned ids makes no inf - inf
    for start in range(0, vocabulary, BLOCK):
        x = _logits(_row(z, start, vocabulary, BLOCK), temperature, cap, CAPPED)
        new_top = tl.maximum(top, tl.max(x, 0))
        terms = tl.exp(x - new_top)
        shrink = tl.exp(top - new_top)
        if WITH_ENTROPY:
            dot = shrink * (dot + total * (top - new_top)) + tl.sum(tl.where(terms > 0, terms * (x - new_top), 0.0), 0)
        total = shrink * total + tl.sum(terms, 0)
        top = new_top
    log_total = tl.log(total)
    tl.store(lse + row, top + log_total)
    target = tl.load(ids + row)
    inside = (target >= 0) & (target < vocabulary)  # an id out of range must not read elsewhere: NaN
    x = tl.load(z + target, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(logps + row, _logits(x, temperature, cap, CAPPED) - top - log_total)
    if WITH_ENTROPY:
        tl.store(entropies + row, log_total - dot / total)


@triton.jit
def _finish_gradient(grad, product, temperature, cap, CAPPED: tl.constexpr):
    """From the gradient of a logit to that of its product; 0 for a banned id, whose `grad` may be NaN."""
    if CAPPED:
        t = _tanh(product / cap)
        grad *= 1 - t * t
    return tl.where(product == float("-inf"), 0.0, grad / temperature)


@triton.jit
def _gradient(
    z, z_stride, out, out_stride, ids, lse, grad_logps, entropies, grad_entropies, vocabulary, temperature, cap, CAPPED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    product = _row(z + row * z_stride, start, vocabulary, BLOCK)
    logp = _logits(product, temperature, cap, CAPPED) - tl.load(lse + row)
    p = tl.exp(logp)
    g = tl.load(grad_logps + row)
    grad = tl.where(columns == tl.load(ids + row), g, 0.0) - g * p
    if WITH_ENTROPY:
        grad -= tl.load(grad_entropies + row) * p * (logp + tl.load(entropies + row))
    grad = _finish_gradient(grad, product, temperature, cap, CAPPED)
    tl.store(out + row * out_stride + columns, grad.to(out.dtype.element_ty), mask=columns < vocabulary)


@triton.jit
def _kl_stats(
    z_p, p_stride, z_q, q_stride, lse_p, lse_q, gap_p, gap_q, vocabulary, temperature, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """Per side as in `_stats`, with dot the sum of e * gap."""
    row = tl.program_id(0).to(tl.int64)
    z_p += row * p_stride
    z_q += row * q_stride
    top_p, total_p, dot_p = -1e30, 0.0, 0.0
    top_q, total_q, dot_q = -1e30, 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        x_p = _logits(_row(z_p, start, vocabulary, BLOCK), temperature, cap, CAPPED)
        x_q = _logits(_row(z_q, start, vocabulary, BLOCK), temperature, cap, CAPPED)
        gap = tl.where(x_p == float("-inf"), 0.0, x_p - x_q)  # the same ids are banned on both sides
        new_p = tl.maximum(top_p, tl.max(x_p, 0))
        new_q = tl.maximum(top_q, tl.max(x_q, 0))
        terms_p = tl.exp(x_p - new_p)
        terms_q = tl.exp(x_q - new_q)
        total_p = total_p * tl.exp(top_p - new_p) + tl.sum(terms_p, 0)
        total_q = total_q * tl.exp(top_q - new_q) + tl.sum(terms_q, 0)
        dot_p = dot_p * tl.exp(top_p - new_p) + tl.sum(terms_p * gap, 0)
        dot_q = dot_q * tl.exp(top_q - new_q) + tl.sum(terms_q * gap, 0)
        top_p = new_p
        top_q = new_q
    tl.store(lse_p + row, top_p + tl.log(total_p))
    tl.store(lse_q + row, top_q + tl.log(total_q))
    tl.store(gap_p + row, dot_p / total_p)
    tl.store(gap_q + row, dot_q / total_q)


@triton.jit
def _kl_gradients(
    z_p, p_stride, z_q, q_stride, out_p, out_p_stride, out_q, out_q_stride, lse_p, lse_q, gap_p, gap_q, grad_forward, grad_reverse,
    vocabulary, temperature, cap, CAPPED: tl.constexpr, WANT_P: tl.constexpr, WANT_Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    product_p = _row(z_p + row * p_stride, start, vocabulary, BLOCK)
    product_q = _row(z_q + row * q_stride, start, vocabulary, BLOCK)
    x_p = _logits(product_p, temperature, cap, CAPPED)
    x_q = _logits(product_q, temperature, cap, CAPPED)
    gap = x_p - x_q
    p = tl.exp(x_p - tl.load(lse_p + row))
    q = tl.exp(x_q - tl.load(lse_q + row))
    g_f = tl.load(grad_forward + row)
    g_r = tl.load(grad_reverse + row)
    if WANT_P:
        grad = p * (g_f * (gap - tl.load(gap_p + row)) + g_r) - g_r * q
        grad = _finish_gradient(grad, product_p, temperature, cap, CAPPED)
        tl.store(out_p + row * out_p_stride + columns, grad.to(out_p.dtype.element_ty), mask=columns < vocabulary)
    if WANT_Q:
        grad = q * (g_r * (tl.load(gap_q + row) - gap) + g_f) - g_f * p
        grad = _finish_gradient(grad, product_q, temperature, cap, CAPPED)
        tl.store(out_q + row * out_q_stride + columns, grad.to(out_q.dtype.element_ty), mask=columns < vocabulary)
