"""The vocabulary axis of the LM head, in plain torch: what `mmrl.head` does to one chunk of logits between its matrix products.

Letters: C rows of a chunk, V vocabulary. `z` is a chunk of logits, float32 or float64 [C, V]. The passes over it run in blocks of rows
that stay in the cache. `mmrl.head_triton` has the same functions for CUDA.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**18
"""Logits per thread that one run of elementwise passes goes over: 1 MB of float32, so that only the first pass waits for memory."""
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class LogitMap:
    """logits = softcap * tanh(hidden @ weight.T / softcap) / temperature (no softcap: hidden @ weight.T / temperature); banned: none."""

    temperature: float
    softcap: float | None = None
    banned_ids: Tensor | None = None


def product_scale(form: LogitMap) -> float:
    """The factor on hidden @ weight.T that the matrix product applies, free of cost, before `finish_`."""
    return 1 / (form.temperature if form.softcap is None else form.softcap)


def finish_(z: Tensor, form: LogitMap) -> None:
    """In place, from the scaled product to logits. A banned id gets the least finite number, so that 0 * logit stays 0."""
    if form.softcap is not None:
        for rows in _blocks(z):
            z[rows].tanh_().mul_(form.softcap / form.temperature)
    if form.banned_ids is not None:
        z.index_fill_(1, form.banned_ids, torch.finfo(z.dtype).min)


def stats(z: Tensor, ids: Tensor, form: LogitMap, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exp [C], log-probability of `ids` [C] and entropy [C] (or None) of each row, in nats; `z` stays as it is."""
    lse = z.new_empty(len(z))
    entropies = torch.empty_like(lse) if with_entropy else None
    for rows in _blocks(z):
        top = z[rows].amax(1)
        shifted = z[rows] - top[:, None]
        if entropies is None:
            lse[rows] = _exp(shifted, out=shifted).sum(1).log_().add_(top)
        else:  # H = log S - (sum_j e_j s_j) / S,  e = exp(s),  S = sum_j e_j: both parts >= 0, as s <= 0 = max s
            terms = _exp(shifted)
            total = terms.sum(1)
            log_total = total.log()
            lse[rows] = log_total + top
            entropies[rows] = log_total - torch.linalg.vecdot(terms, shifted) / total
    logps = z.gather(1, ids[:, None]).squeeze(1) - lse
    if form.banned_ids is not None:
        logps.masked_fill_(torch.isin(ids, form.banned_ids), -torch.inf)
    return lse, logps, entropies


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
    """The gradient [C, V] with respect to hidden @ weight.T, rounded to `dtype`; `z` is written over. The other tensors are [C]."""
    g = torch.zeros_like(lse) if grad_logps is None else grad_logps / form.temperature
    for rows in _blocks(z):
        block, target = z[rows], g[rows, None]
        slope = _slope(block, form)
        logp = block.sub_(lse[rows, None])
        if grad_entropies is None or entropies is None:
            _exp(logp, out=logp).mul_(-target)
        else:
            p, share = _exp(logp), grad_entropies[rows, None] / form.temperature
            logp.add_(entropies[rows, None]).mul_(-share).sub_(target).mul_(p)
        block.scatter_add_(1, ids[rows, None], target)
        _close(block, slope, form)
    return z.to(dtype)


def kl_stats(z_p: Tensor, z_q: Tensor, form: LogitMap) -> Tensor:
    """[4, C]: log-sum-exp of p and of q, and the mean of gap = z_p - z_q under p and under q; both logits stay as they are.

    KL(p || q) = gap_p - (lse_p - lse_q) and KL(q || p) = (lse_p - lse_q) - gap_q, in nats.
    """
    out = z_p.new_empty((4, len(z_p)))
    for rows in _blocks(z_p):
        gap = z_p[rows] - z_q[rows]
        for n, z in enumerate((z_p[rows], z_q[rows])):
            top = z.amax(1)
            terms = _exp(z - top[:, None])
            total = terms.sum(1)
            out[n, rows] = total.log() + top
            out[2 + n, rows] = torch.linalg.vecdot(terms, gap) / total
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
    """The gradients [C, V] with respect to both products hidden @ weight.T, rounded to `dtype`, None unless `wanted`; both logits are
    written over. `stats` is of `kl_stats`; `grad_forward` [C] is the gradient of KL(p || q), `grad_reverse` [C] that of KL(q || p)."""
    lse_p, lse_q, gap_p, gap_q = stats[:, :, None]
    g_f, g_r = grad_forward[:, None] / form.temperature, grad_reverse[:, None] / form.temperature
    own_p, own_q = g_r - g_f * gap_p, g_f + g_r * gap_q
    for rows in _blocks(z_p):
        block_p, block_q = z_p[rows], z_q[rows]
        slope_p, slope_q = _slope(block_p, form), _slope(block_q, form)
        p, q = _exp(block_p - lse_p[rows]), _exp(block_q - lse_q[rows])
        gap = block_p.sub_(block_q)
        if wanted[1]:  # q (g_f - g_r (gap - gap_q)) - g_f p
            torch.mul(gap, -g_r[rows], out=block_q).add_(own_q[rows]).mul_(q).sub_(p * g_f[rows])
            _close(block_q, slope_q, form)
        if wanted[0]:  # p (g_r + g_f (gap - gap_p)) - g_r q
            gap.mul_(g_f[rows]).add_(own_p[rows]).mul_(p).sub_(q.mul_(g_r[rows]))
            _close(block_p, slope_p, form)
    return z_p.to(dtype) if wanted[0] else None, z_q.to(dtype) if wanted[1] else None


def _exp(x: Tensor, out: Tensor | None = None) -> Tensor:
    """As a power of 2, which on CPUs of AMD takes half the time of torch.exp; what the factor's rounding adds is that of x itself."""
    return torch.mul(x, LOG2_E, out=out).exp2_()


def _slope(logits: Tensor, form: LogitMap) -> Tensor | None:
    """1 - tanh^2 of the soft cap, to be taken before the logits are overwritten; None without one."""
    return None if form.softcap is None else (logits * (form.temperature / form.softcap)).square_().neg_().add_(1)


def _close(grad: Tensor, slope: Tensor | None, form: LogitMap) -> None:
    if slope is not None:
        grad.mul_(slope)
    if form.banned_ids is not None:
        grad.index_fill_(1, form.banned_ids, 0.0)


def _blocks(z: Tensor) -> Iterator[slice]:
    """Rows that fit the cache together. On an accelerator all rows at once: there a call costs more than a pass."""
    rows = max(1, BLOCK * torch.get_num_threads() // z.shape[1]) if z.device.type == "cpu" else max(1, len(z))
    for start in range(0, len(z), rows):
        yield slice(start, min(start + rows, len(z)))
