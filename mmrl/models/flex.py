"""Attention of token streams by FlexAttention: one softmax over [prefixes | own rows] under a block mask, compiled for the device.

The fallback where no flash kernel takes the tensors, float32 on CUDA: nothing of the size of the scores is held, but a mask is built for
each stream and shapes are compiled for. Same function as `attention.stream_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mmrl.models.spans import Spans


def flex_stream_attention(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None, own: Spans, cross: Spans | None, scale: float
) -> Tensor:
    """`attention.stream_attention`; runs on a CPU too, uncompiled and with all scores, for tests."""
    if prefix_k is not None and prefix_v is not None:
        k, v = torch.cat([prefix_k, k]), torch.cat([prefix_v, v])
    prefix = len(k) - len(q)
    known = _masks.setdefault(own, {})
    key = (None if cross is None else cross.queries, prefix)
    if key not in known:
        known[key] = _mask(own, cross, len(q), prefix)
    attend = _compiled() if q.is_cuda else flex_attention
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    out: Any = attend(queries, keys, values, block_mask=known[key], scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


_masks: WeakKeyDictionary[Spans, dict[Any, BlockMask]] = WeakKeyDictionary()
"""By own spans that are alive: the layers of a forward share them."""


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def _mask(own: Spans, cross: Spans | None, rows: int, prefix: int) -> BlockMask:
    own_of_query, own_of_key = (_numbered(side, rows, -1 - n, own.device) for n, side in enumerate((own.queries, own.keys)))
    none: tuple[tuple[int, int], ...] = ()
    cross_of_query = _numbered(none if cross is None else cross.queries, rows, -1, own.device)
    cross_of_key = _numbered(none if cross is None else cross.keys, max(prefix, 1), -2, own.device)
    is_causal = own.is_causal  # not `own` itself: a mask that held its key would be kept for ever

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = (key - prefix).clamp_min(0)
        is_own = (key >= prefix) & (own_of_query[query] == own_of_key[at])
        if is_causal:
            is_own = is_own & (at <= query)
        return is_own | ((key < prefix) & (cross_of_query[query] == cross_of_key[key.clamp_max(max(prefix, 1) - 1)]))

    return create_block_mask(sees, None, None, rows, prefix + rows, device=own.device, _compile=own.device.type == "cuda")


def _numbered(spans: tuple[tuple[int, int], ...], length: int, outside: int, device: torch.device) -> Tensor:
    """int32 [length]: which span a row stands in; `outside` = none, a number that equals no other."""
    numbers = torch.full((length,), outside, dtype=torch.int32)
    for n, (begin, end) in enumerate(spans):
        numbers[begin:end] = n
    return numbers.to(device)
