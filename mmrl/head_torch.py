"""The vocabulary axis of the LM head, in plain torch: what `mmrl.head` does to one chunk of logits between its matrix products.

Letters: C rows of a chunk, V vocabulary. `z` is a chunk of logits, float32 or float64 [C, V]. The passes over it run in blocks of rows
that stay in the cache. `mmrl.head_triton` has the same functions for CUDA.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**18
"""Logits per thread that one run of elementwise passes goes over: 1 MB of float32, so that only the first pass waits for memory."""


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
            lse[rows] = shifted.exp_().sum(1).log_().add_(top)
        else:  # H = log S - (sum_j e_j s_j) / S,  e = exp(s),  S = sum_j e_j
            terms = shifted.exp()
            total = terms.sum(1)
            log_total = total.log()
            lse[rows] = log_total + top
            entropies[rows] = (log_total - torch.linalg.vecdot(terms, shifted) / total).clamp_(min=0)
    logps = z.gather(1, ids[:, None]).squeeze(1) - lse
    if form.banned_ids is not None:
        logps.masked_fill_(torch.isin(ids, form.banned_ids), -torch.inf)
    return lse, logps, entropies


def gradient(
    z: Tensor, ids: Tensor, form: LogitMap, lse: Tensor, entropies: Tensor | None, grad_logps: Tensor | None, grad_entropies: Tensor | None
) -> Tensor:
    """The gradient [C, V] with respect to hidden @ weight.T, written over `z`. The other tensors are [C]."""
    g = torch.zeros_like(lse) if grad_logps is None else grad_logps / form.temperature
    for rows in _blocks(z):
        block, target = z[rows], g[rows, None]
        slope = _slope(block, form)
        logp = block.sub_(lse[rows, None])
        if grad_entropies is None or entropies is None:
            logp.exp_().mul_(-target)
        else:
            p, share = logp.exp(), grad_entropies[rows, None] / form.temperature
            logp.add_(entropies[rows, None]).mul_(-share).sub_(target).mul_(p)
        block.scatter_add_(1, ids[rows, None], target)
        _close(block, slope, form)
    return z


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
