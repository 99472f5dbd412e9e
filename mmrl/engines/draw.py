"""Tokens from logits at given uniform numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrl.protocols import Sampling

CHUNK = 64
"""Tokens summed together before the cumulative sum: full precision is spent on one chunk of the vocabulary and not on all of it."""


def draw_tokens(
    logits: Float[Tensor, "n v"], rows: Int[Tensor, " m"], draws: Float[Tensor, " m"], sampling: Sampling, banned_ids: Int[Tensor, " k"]
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """m tokens, the i-th from row `rows[i]` of the logits, and their log-probabilities, float32 nats; `banned_ids` are ruled out and
    `logits` may be overwritten.

    A token is found by inverting the row's cumulative distribution at `draws[i]` float64 in [0, 1); at temperature 0 it is the likeliest.
    Its id is -1 where the logits hold NaN, +inf or nothing else than -inf: nothing here waits for the device.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill_(-1, banned_ids, -torch.inf)
    if sampling.temperature > 0:
        logits = cut(logits.div_(sampling.temperature) if sampling.temperature != 1 else logits, sampling.top_p, sampling.top_k)
    n, vocab = logits.shape
    top = logits.amax(-1, keepdim=True)
    heap = logits.new_empty(n, -(-vocab // CHUNK) * CHUNK)
    torch.sub(logits, top, out=heap[:, :vocab]).exp_()
    heap[:, vocab:] = 0
    chunks = heap.unflatten(1, (-1, CHUNK))
    shares = chunks.sum(-1).double()
    upto = shares.cumsum(-1)
    total = upto[:, -1]
    if sampling.temperature > 0:
        target = torch.minimum(draws * total[rows], _below(total[rows]))
        chunk = torch.searchsorted(upto[rows], target[:, None], right=True)[:, 0].clamp_(max=shares.shape[1] - 1)  # NaN would be past it
        rest = target - (upto[rows, chunk] - shares[rows, chunk])
        inside = chunks[rows, chunk].double().cumsum(-1)
        rest = torch.minimum(rest, _below(inside[:, -1]))
        ids = (chunk * CHUNK + torch.searchsorted(inside, rest[:, None], right=True)[:, 0]).clamp_(max=vocab - 1)
    else:
        ids = logits.argmax(-1)[rows]
    logps = (logits[rows, ids] - top[rows, 0] - total[rows].log()).float()
    return ids.where(total[rows].isfinite(), -1), logps


def _below(x: Tensor) -> Tensor:
    """The next smaller number: never past the last token that has a share."""
    return torch.nextafter(x, torch.zeros_like(x))


def cut(logits: Float[Tensor, "n v"], top_p: float, top_k: int) -> Float[Tensor, "n v"]:
    """Rules out all but the `top_k` likeliest tokens (0 = all) and then all outside the smallest set with share `top_p`."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logits
