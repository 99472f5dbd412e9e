"""Attention of token streams: what lets many completions share one prompt without a copy of it.

A stream is one packed line of tokens `[1, T]` made of segments. Every segment attends to itself, causally, and the segments of a
completion also to all of their prompt's prefix. The two parts are computed by two calls of a flash kernel and merged by their log-sum-exps;
the backward calls the kernel's own backward with the merged output and log-sum-exp, so no mask and no score matrix is ever held (Hydragen,
arXiv:2402.05099, section 3.2; ring attention's rule for the backward, arXiv:2310.01889).

It is registered with transformers' attention interface, over the implementation that the model had: a forward without a stream context is
the model's own. Nothing of a model's layers is repeated here, so adapters, checkpointing and sharding hooks stay in place.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmrl.errors import RecipeError
from mmrl.models.flex import flex_stream_attention
from mmrl.models.spans import SpanKernel, Spans, flash_on_cpu, plain
from mmrl.models.varlen import package_flash, torch_flash

PREFIX = "mmrl_over_"
CHOICE = "MMRL_ATTENTION_KERNEL"
"""Environment variable: flash-attn, torch, flex or plain, the kernel of streams on CUDA. Not set: flash-attn if it is installed, else
torch's own; for float32, which they do not take, FlexAttention. plain holds all scores. A CPU has one kernel."""

_log = logging.getLogger(__name__)


class StreamContext(Protocol):
    """Travels through the language model's keyword arguments to the attention of each layer."""

    def attend(
        self, layer: int, q: Float[Tensor, "t h d"], k: Float[Tensor, "t hk d"], v: Float[Tensor, "t hk d"], scale: float
    ) -> Float[Tensor, "t h d"]: ...


class StopForward(Exception):
    """Raised by a context that has all it wants of the language model."""


def take_streams(language_model: Any) -> bool:
    """Makes a language model's attention take stream contexts; True if it can. Its forwards without one stay as they were."""
    name = language_model.config._attn_implementation
    if name.startswith(PREFIX):
        return True
    types = getattr(language_model.config, "layer_types", None) or ["full_attention"]
    dropout = getattr(language_model.config, "attention_dropout", 0.0)
    known = name in ALL_ATTENTION_FUNCTIONS and name in ALL_MASK_ATTENTION_FUNCTIONS
    if not known or set(types) != {"full_attention"} or dropout:
        return False
    own, own_mask = ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        context: StreamContext | None = kwargs.pop("stream", None)
        if context is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return context.attend(module.layer_idx, q, k, v, kwargs["scaling"])[None], None

    AttentionInterface.register(PREFIX + name, attention)
    AttentionMaskInterface.register(PREFIX + name, own_mask)
    language_model.set_attn_implementation(PREFIX + name)
    return True


class PrefixContext:
    """Prefixes alone, each causal in itself; keeps every layer's keys and values, with their graph. Nothing after the last layer's keys and
    values is wanted, so the forward stops there."""

    def __init__(self, lengths: Sequence[int], last_layer: int, device: torch.device) -> None:
        self.own = Spans.causal(lengths, device)
        self.last_layer = last_layer
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.keys_values.setdefault(layer, (k, v))  # not again when checkpointing recomputes: the graph hangs on the first
        if layer == self.last_layer:
            raise StopForward
        return stream_attention(q, k, v, None, None, self.own, None, scale)


class SegmentContext:
    """Segments against keys and values of prefixes that were read before."""

    def __init__(self, own: Spans, cross: Spans, keys_values: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.own, self.cross, self.keys_values = own, cross, keys_values

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return stream_attention(q, k, v, *self.keys_values[layer], self.own, self.cross, scale)


class FlatContext:
    """Prefixes and then their segments in one stream."""

    def __init__(self, own: Spans, cross: Spans, prefix_tokens: int) -> None:
        self.own, self.cross, self.prefix_tokens = own, cross, prefix_tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return stream_attention(q, k, v, k[: self.prefix_tokens], v[: self.prefix_tokens], self.own, self.cross, scale)


def stream_attention(
    q: Float[Tensor, "t h d"],
    k: Float[Tensor, "t hk d"],
    v: Float[Tensor, "t hk d"],
    prefix_k: Float[Tensor, "p hk d"] | None,
    prefix_v: Float[Tensor, "p hk d"] | None,
    own: Spans,
    cross: Spans | None,
    scale: float,
) -> Float[Tensor, "t h d"]:
    """Softmax attention of every query over its own span (causal) and its cross span together. Each of the H query heads reads key head
    h // (H / Hk). `cross.queries` are rows of q, `cross.keys` rows of the prefix. Differentiable once in all five tensors."""
    if wants_flex(q):
        return flex_stream_attention(q, k, v, prefix_k, prefix_v, own, cross, scale)
    return _StreamAttention.apply(q, k, v, prefix_k, prefix_v, own, cross, scale)


class _StreamAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None,
        own: Spans, cross: Spans | None, scale: float,
    ) -> Tensor:  # fmt: skip
        kernel = kernel_for(q)
        out, lse = kernel.forward(q, k, v, own, scale)
        if cross is not None:
            assert prefix_k is not None
            assert prefix_v is not None
            other, other_lse = kernel.forward(q, prefix_k, prefix_v, cross, scale)
            both = torch.logaddexp(lse, other_lse)
            out.mul_((lse - both).exp_().unsqueeze(-1)).addcmul_(other, (other_lse - both).exp_().unsqueeze(-1).to(other.dtype))
            lse = both
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, out, lse)
        ctx.own, ctx.cross, ctx.scale = own, cross, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        kernel = kernel_for(q)
        grad_out = grad_outputs[0].contiguous()
        dq, dk, dv = kernel.backward(grad_out, q, k, v, out, lse, ctx.own, ctx.scale)
        dpk = dpv = None
        if ctx.cross is not None:
            more, dpk, dpv = kernel.backward(grad_out, q, prefix_k, prefix_v, out, lse, ctx.cross, ctx.scale)
            dq += more
        return dq, dk, dv, dpk, dpv, None, None, None


def kernel_for(q: Tensor) -> SpanKernel:
    """The kernel for tensors like `q`."""
    if not has_flash(q):
        return plain()
    if q.device.type == "cpu":
        return flash_on_cpu()
    return _cuda_kernel(os.environ.get(CHOICE, ""))


def wants_flex(q: Tensor) -> bool:
    """Whether FlexAttention is to take tensors like `q`."""
    return q.is_cuda and q.dtype != torch.float64 and os.environ.get(CHOICE, "flex" if q.dtype == torch.float32 else "") == "flex"


def has_flash(q: Tensor) -> bool:
    """Whether there is a kernel for tensors like `q` that does not hold their scores."""
    return q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype.itemsize <= 2)


@functools.cache
def _cuda_kernel(choice: str) -> SpanKernel:
    makers = {"flash-attn": package_flash, "torch": torch_flash, "plain": plain}
    if choice not in ("", *makers):
        raise RecipeError(f"{CHOICE}: got {choice!r}; set it to one of flex, {', '.join(makers)}, or not at all")
    for name in [choice] if choice else makers:
        kernel = makers[name]()
        if kernel is not None:
            _log.info("attention of streams on CUDA: %s", name)
            return kernel
    raise RecipeError(f"{CHOICE}: flash-attn is not installed; install it or unset the variable")
