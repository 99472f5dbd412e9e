"""Attention of vision towers: all windows and pictures of a forward in a few kernel calls.

Towers of the Qwen family attend inside windows, or inside each picture. transformers hands an implementation with "flash" in its name the
whole row of patches and its borders, and calls any other window by window, hundreds of times a layer for a large picture. This one takes
the row, and needs no flash-attn package: the kernels are those of the token streams.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from mmrl.models.attention import has_flash, stream_attention
from mmrl.models.spans import Spans

NAME = "mmrl_flash_windows"


def take_windows(tower: Any) -> None:
    """Makes a tower on "sdpa" attend to all windows at once; any other stays as it is."""
    if tower.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        tower.config._attn_implementation = NAME  # the public setter would look for a package of that name


def own_attention(tower: Any) -> None:
    """Undoes `take_windows`."""
    if tower.config._attn_implementation == NAME:
        tower.config._attn_implementation = "sdpa"


_spans: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of borders that are alive: the layers of a forward share them."""


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """[1, h, s, d] each; returns [1, s, h, d]."""
    borders: Tensor = kwargs["cu_seq_lens_q"]
    if borders not in _spans:
        runs = tuple(pairwise(borders.tolist()))
        _spans[borders] = Spans(runs, runs, False, query.device)
    spans: Spans = _spans[borders]
    if has_flash(query):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return stream_attention(q, k, v, None, None, spans, None, kwargs["scaling"])[None], None
    lengths = [end - begin for begin, end in spans.queries]
    parts = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    outs = [torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=kwargs["scaling"]) for q, k, v in parts]
    return torch.cat(outs, 2).transpose(1, 2), None
