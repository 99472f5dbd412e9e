"""Rows of completions as one padded batch of token lines, so that a forward pays for each prompt once.

A packed line is one prompt and all its completions in the micro-batch: `[p_1 … p_{P-1} | seg_1 | seg_2 | …]` with
`seg_i = [p_P, r_1 … r_{T-1}]`. A segment sees the prompt and itself; repeating the last prompt token at the head of each segment makes
every completion token be predicted inside its own segment. A naive line is one prompt and one completion under the plain causal mask.
Both give the same log-probabilities; the picture of a line is encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmrl.models.positions import VisionLayout
from mmrl.models.processor import prompt_positions
from mmrl.types import Prompt


@dataclass(frozen=True, eq=False)
class Stream:
    """Input of one forward: L lines of S tokens, n completion tokens in all, row after row."""

    ids: Int[Tensor, "l s"]
    positions: Int[Tensor, "3 l s"]
    mask: Bool[Tensor, "l 1 s s"] | None
    """True = may be attended to; None = plain causal."""
    mm_inputs: Mapping[str, Tensor]
    """The lines' media, in line order, under the processor's names."""
    places: Int[Tensor, " n"]
    """Index in [L * S] of the token whose hidden state predicts each completion token."""
    targets: Int[Tensor, " n"]
    lengths: tuple[int, ...]
    """Completion tokens of each row."""

    def to(self, device: torch.device | str) -> Stream:
        return Stream(
            self.ids.to(device), self.positions.to(device), None if self.mask is None else self.mask.to(device),
            {k: v.to(device) for k, v in self.mm_inputs.items()}, self.places.to(device), self.targets.to(device), self.lengths,
        )  # fmt: skip


def build_stream(
    rows: Sequence[tuple[Prompt, np.ndarray]], layout: VisionLayout, pad_id: int, form: Literal["packed", "naive"] = "packed"
) -> Stream:
    """Stream of `rows` (prompt, completion ids int64 [T >= 1]). Rows share a line when they share the prompt object. Raises ValueError for
    no rows, and for a completion that is empty or holds a vision token, which no policy gives a probability above 0."""
    if not rows:
        raise ValueError("a stream needs at least one row")
    for row, (prompt, completion) in enumerate(rows):
        if not len(completion) or layout.is_vision(completion).any():
            problem = "is empty" if not len(completion) else "holds a picture or video token"
            raise ValueError(f"row {row}, task {prompt.task.id}: the completion {problem}; leave it out of the update")
    lines: dict[object, list[int]] = {}
    for index, (prompt, _) in enumerate(rows):
        lines.setdefault(id(prompt) if form == "packed" else index, []).append(index)
    members = list(lines.values())
    prompts = [rows[line[0]][0] for line in members]
    sizes = [len(p.ids) - 1 + sum(len(rows[i][1]) for i in line) for p, line in zip(prompts, members, strict=True)]
    width = max(sizes)
    ids = np.full((len(members), width), pad_id, np.int64)
    positions = np.zeros((3, len(members), width), np.int64)
    owner = np.full((len(members), width), -1, np.int64)  # which segment a token belongs to; 0 = the prompt
    starts = np.zeros(len(rows), np.int64)
    for n, (prompt, line) in enumerate(zip(prompts, members, strict=True)):
        at = len(prompt.ids) - 1
        ids[n, :at], owner[n, :at] = prompt.ids[:-1], 0
        place = prompt_positions(prompt, layout)
        positions[:, n, :at] = place[:, :-1]
        for segment, row in enumerate(line, start=1):
            completion = rows[row][1]
            end = at + len(completion)
            ids[n, at] = prompt.ids[-1]
            ids[n, at + 1 : end] = completion[:-1]
            positions[:, n, at:end] = place.max() + np.arange(len(completion))
            owner[n, at:end] = segment
            starts[row] = n * width + at
            at = end
    lengths = tuple(len(completion) for _, completion in rows)
    places = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    return Stream(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        mask=_segment_mask(owner) if form == "packed" else None,
        mm_inputs=stack_media(prompts),
        places=torch.from_numpy(places),
        targets=torch.from_numpy(np.concatenate([completion for _, completion in rows])),
        lengths=lengths,
    )


def _segment_mask(owner: np.ndarray) -> Bool[Tensor, "l 1 s s"]:
    """Causal, within a token's own segment and the prompt. Padding sees itself, so that no row of the mask is empty."""
    own = torch.from_numpy(owner)
    width = own.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    visible = (own[:, :, None] == own[:, None, :]) | (own[:, None, :] == 0)
    return (visible & causal)[:, None]


def stack_media(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The prompts' media arrays joined along their first axis."""
    names = sorted({name for p in prompts for name in p.mm_inputs})
    return {name: torch.from_numpy(np.concatenate([p.mm_inputs[name] for p in prompts if name in p.mm_inputs])) for name in names}
