"""Multiply-adds (counted as 2) that log-probabilities of completions cost, with and without sharing the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.bench.shapes import Shape


@dataclass(frozen=True)
class Flops:
    """Of one forward."""

    vision: float
    """The tower's products but its attention's."""
    vision_attention: float
    linear: float
    attention: float
    head: float

    def forward(self) -> float:
        return self.vision + self.vision_attention + self.linear + self.attention + self.head

    def step(self) -> float:
        """Forward and backward: twice the forward again for products, 2.5 times for attention, which recomputes its scores."""
        return 3 * (self.vision + self.linear + self.head) + 3.5 * (self.vision_attention + self.attention)


def repeated(shape: Shape, prompt: int, completions: Sequence[int], patches: int) -> Flops:
    """The prompt and its picture once per completion."""
    tokens = [prompt + length for length in completions]
    return Flops(
        len(tokens) * _vision(shape, patches),
        len(tokens) * _vision_attention(shape, patches),
        shape.num_hidden_layers * sum(tokens) * _linear(shape),
        shape.num_hidden_layers * sum(_pairs(shape, t * (t + 1) / 2) for t in tokens),
        _head(shape, sum(completions)),
    )


def shared(shape: Shape, prompt: int, completions: Sequence[int], patches: int) -> Flops:
    """The prompt once; of its rows the last layer needs keys and values only."""
    prefix, layers = prompt - 1, shape.num_hidden_layers
    keys_values = 4 * shape.hidden_size * shape.num_key_value_heads * _width(shape)
    within = _pairs(shape, prefix * (prefix + 1) / 2)
    across = sum(_pairs(shape, length * (length + 1) / 2 + length * prefix) for length in completions)
    linear = layers * (prefix + sum(completions)) * _linear(shape) - prefix * (_linear(shape) - keys_values)
    attention = (layers - 1) * within + layers * across
    return Flops(_vision(shape, patches), _vision_attention(shape, patches), linear, attention, _head(shape, sum(completions)))


def _width(shape: Shape) -> int:
    return shape.hidden_size // shape.num_attention_heads


def _linear(shape: Shape) -> float:
    """Per token and layer."""
    heads = 2 * (shape.num_attention_heads + shape.num_key_value_heads) * _width(shape)
    return 2 * shape.hidden_size * heads + 6 * shape.hidden_size * shape.intermediate_size


def _pairs(shape: Shape, pairs: float) -> float:
    """Scores and their product with the values, all heads of a layer."""
    return 4 * shape.num_attention_heads * _width(shape) * pairs


def _head(shape: Shape, tokens: int) -> float:
    return 2 * shape.hidden_size * shape.vocab_size * tokens


def _vision(shape: Shape, patches: int) -> float:
    width = shape.vision_hidden_size
    layers = 2 * patches * (4 * width**2 + 3 * width * shape.vision_intermediate_size) * shape.vision_depth
    embed = 2 * patches * width * 3 * 2 * 14**2
    merger = 2 * (patches // 4) * ((4 * width) ** 2 + 4 * width * shape.hidden_size)
    return layers + embed + merger


def _vision_attention(shape: Shape, patches: int) -> float:
    full = len(shape.full_attention)
    return 4 * shape.vision_hidden_size * patches * (patches * full + min(64, patches) * (shape.vision_depth - full))
