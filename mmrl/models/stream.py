"""Prompts and completions as packed token streams, so that a forward pays for each prompt once.

A group is one prompt and its completions. The prefix is the prompt without its last token; each completion is a segment
`[last prompt token, r_1 … r_{T-1}]` that sees the prefix and itself. Repeating the last prompt token at the head of every segment makes
each completion token be predicted inside its own segment, so segment rows are all that the head needs. Completions go on at the prompt's
largest rotary position plus one, wherever they lie in the stream.

A line is the naive form: one prompt and one completion in a padded row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmrl.models.positions import VisionLayout
from mmrl.models.processor import prompt_positions
from mmrl.models.spans import Spans, spans_of
from mmrl.types import Prompt

Row = tuple[Prompt, np.ndarray]
"""A prompt and the ids of one completion of it, int64 [T], T >= 1."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Prompts without their last tokens, packed: S tokens."""

    prompts: tuple[Prompt, ...]
    ids: Int[Tensor, "1 s"]
    positions: Int[Tensor, "3 1 s"]
    lengths: tuple[int, ...]
    last_positions: tuple[int, ...]
    """Rotary position of each prompt's last token, the same on all three axes."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Completions of some of the prompts of `Prefixes`, packed: n tokens, each predicting its target."""

    ids: Int[Tensor, "1 n"]
    positions: Int[Tensor, "3 1 n"]
    targets: Int[Tensor, " n"]
    lengths: tuple[int, ...]
    """Completion tokens of each row."""
    tokens_of_prefix: tuple[int, ...]
    """How many of the n tokens belong to each prefix; those of one prefix lie together, in the prefixes' order."""

    def own(self) -> Spans:
        return Spans.causal(self.lengths, self.ids.device)

    def cross(self, prefixes: Prefixes, start: int = 0) -> Spans:
        """Which tokens see which prefix; `start`: the first token's place in the stream."""
        queries, keys = spans_of(self.tokens_of_prefix, start), spans_of(prefixes.lengths)
        return Spans(tuple(queries), tuple(keys), False, self.ids.device)


@dataclass(frozen=True, eq=False)
class Lines:
    """L prompts with one completion each, right-padded to S tokens, n completion tokens in all, row after row."""

    prompts: tuple[Prompt, ...]
    ids: Int[Tensor, "l s"]
    positions: Int[Tensor, "3 l s"]
    places: Int[Tensor, " n"]
    """Index in [L * S] of the token whose hidden state predicts each completion token."""
    targets: Int[Tensor, " n"]
    lengths: tuple[int, ...]


def pack_prefixes(prompts: Sequence[Prompt], layout: VisionLayout, device: torch.device) -> Prefixes:
    places = [prompt_positions(prompt, layout) for prompt in prompts]
    return Prefixes(
        prompts=tuple(prompts),
        ids=torch.from_numpy(np.concatenate([prompt.ids[:-1] for prompt in prompts]))[None].to(device),
        positions=torch.from_numpy(np.concatenate([place[:, :-1] for place in places], 1))[:, None].to(device),
        lengths=tuple(len(prompt.ids) - 1 for prompt in prompts),
        last_positions=tuple(int(place.max()) for place in places),
    )


def pack_segments(prefixes: Prefixes, rows: Sequence[tuple[int, np.ndarray]]) -> Segments:
    """Segments of `rows` (index of the prefix, completion ids int64 [T]), which must stand in the order of their prefixes."""
    tokens = [0] * len(prefixes.prompts)
    for index, completion in rows:
        tokens[index] += len(completion)
    ids = [np.concatenate([prefixes.prompts[index].ids[-1:], completion[:-1]]) for index, completion in rows]
    positions = [prefixes.last_positions[index] + np.arange(len(completion)) for index, completion in rows]
    device = prefixes.ids.device
    return Segments(
        ids=torch.from_numpy(np.concatenate(ids))[None].to(device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device).expand(3, 1, -1),
        targets=torch.from_numpy(np.concatenate([completion for _, completion in rows])).to(device),
        lengths=tuple(len(completion) for _, completion in rows),
        tokens_of_prefix=tuple(tokens),
    )


def pad_lines(rows: Sequence[Row], layout: VisionLayout, pad_id: int, device: torch.device) -> Lines:
    width = max(len(prompt.ids) + len(completion) for prompt, completion in rows) - 1
    ids = np.full((len(rows), width), pad_id, np.int64)
    positions = np.zeros((3, len(rows), width), np.int64)
    places = []
    for n, (prompt, completion) in enumerate(rows):
        first, end = len(prompt.ids) - 1, len(prompt.ids) - 1 + len(completion)
        ids[n, :end] = np.concatenate([prompt.ids, completion[:-1]])
        place = prompt_positions(prompt, layout)
        positions[:, n, : first + 1] = place
        positions[:, n, first:end] = place.max() + np.arange(len(completion))
        places.append(n * width + first + np.arange(len(completion)))
    return Lines(
        prompts=tuple(prompt for prompt, _ in rows),
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        places=torch.from_numpy(np.concatenate(places)).to(device),
        targets=torch.from_numpy(np.concatenate([completion for _, completion in rows])).to(device),
        lengths=tuple(len(completion) for _, completion in rows),
    )


def stack_media(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The prompts' media arrays joined along their first axis."""
    names = sorted({name for p in prompts for name in p.mm_inputs})
    return {name: torch.from_numpy(np.concatenate([p.mm_inputs[name] for p in prompts if name in p.mm_inputs])) for name in names}
