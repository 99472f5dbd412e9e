"""The group forward: log-probabilities of many completions, each prompt read once and each picture encoded once.

Two streams: the prefixes of some groups run once and keep their graph; their completions follow in parts, against detached keys and values,
and the caller back-propagates each part as it comes; then one backward of the prefixes with all that their keys and values have gathered
ends the groups. No product is computed twice, and memory does not grow with the number of completions.

One flat stream, `[prefixes | segments]` in one forward, is for wrappers whose hooks want every layer to run whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrl.models.policy import KeysValues, Policy
from mmrl.models.stream import Prefixes, Row, pack_prefixes, pack_segments, pad_lines
from mmrl.types import Prompt


@dataclass(frozen=True, eq=False)
class Part:
    """What one forward gave."""

    rows: tuple[int, ...]
    """Which rows, as indices of those that were asked for."""
    logps: Float[Tensor, " n"]
    """float32 nats, row after row."""
    entropy: Float[Tensor, " n"]


@dataclass(frozen=True)
class GroupForward:
    """How rows become log-probabilities: one setting for every pass of a step. Only `temperature` and rounding change the numbers."""

    temperature: float
    pad_id: int
    form: Literal["two_streams", "flat", "lines"] = "two_streams"
    max_tokens: int = 8192
    """Tokens of a stream; a prompt or completion that is longer makes a stream of its own."""
    max_rows: int | None = None
    """Completions of a part."""

    def __call__(self, policy: Policy, rows: Sequence[Row]) -> Iterator[Part]:
        """The rows in parts, in any order. With gradients enabled, the caller must back-propagate each part before it asks for the next,
        and exhaust the iterator: the prefixes' backward comes after the last part of their groups. Rows share a prefix when they share the
        prompt object. Raises ValueError for a completion that is empty or holds a vision token, which has no probability above 0."""
        for index, (prompt, completion) in enumerate(rows):
            if not len(completion) or policy.layout.is_vision(completion).any():
                problem = "is empty" if not len(completion) else "holds a picture or video token"
                raise ValueError(f"row {index}, task {prompt.task.id}: the completion {problem}; leave it out of the update")
        if self.form == "lines":
            for some in self._cut([(n, len(p.ids) + len(c) - 1) for n, (p, c) in enumerate(rows)], padded=True):
                lines = pad_lines([rows[n] for n in some], policy.layout, self.pad_id, policy.device)
                yield Part(some, *policy(lines, self.temperature))
            return
        for groups in self._pack(rows):
            prefixes = pack_prefixes([prompt for prompt, _ in groups], policy.layout, policy.device)
            owner = {n: index for index, (_, members) in enumerate(groups) for n in members}
            parts = self._cut([(n, len(rows[n][1])) for _, members in groups for n in members])
            yield from (self._two_streams if self.form == "two_streams" else self._flat)(policy, rows, prefixes, owner, parts)

    def _two_streams(
        self, policy: Policy, rows: Sequence[Row], prefixes: Prefixes, owner: dict[int, int], parts: Sequence[tuple[int, ...]]
    ) -> Iterator[Part]:
        keys_values = policy.read_prefixes(prefixes)
        leaves = _Leaves(keys_values)
        for some in parts:
            segments = pack_segments(prefixes, [(owner[n], rows[n][1]) for n in some])
            yield Part(some, *policy(segments, self.temperature, prefixes, leaves.keys_values))
            leaves.gather()
        leaves.backward()

    def _flat(
        self, policy: Policy, rows: Sequence[Row], prefixes: Prefixes, owner: dict[int, int], parts: Sequence[tuple[int, ...]]
    ) -> Iterator[Part]:
        for some in parts:
            segments = pack_segments(prefixes, [(owner[n], rows[n][1]) for n in some])
            yield Part(some, *policy(segments, self.temperature, prefixes))

    def _pack(self, rows: Sequence[Row]) -> Iterator[list[tuple[Prompt, list[int]]]]:
        """Groups (prompt, its rows, the shorter first) of each prefix stream; prompts of one length lie together."""
        members: dict[Prompt, list[int]] = {}
        for n, (prompt, _) in enumerate(rows):
            members.setdefault(prompt, []).append(n)
        groups = [(prompt, sorted(ns, key=lambda n: len(rows[n][1]))) for prompt, ns in members.items()]
        batch: list[tuple[Prompt, list[int]]] = []
        tokens = 0
        for prompt, ns in sorted(groups, key=lambda group: len(group[0].ids)):
            size = len(prompt.ids) - 1 + (sum(len(rows[n][1]) for n in ns) if self.form == "flat" else 0)
            if batch and tokens + size > self.max_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append((prompt, ns))
            tokens += size
        if batch:
            yield batch

    def _cut(self, sizes: Sequence[tuple[int, int]], *, padded: bool = False) -> list[tuple[int, ...]]:
        """Rows (index, tokens) of each part; `padded`: every row takes as much as the longest."""
        parts: list[tuple[int, ...]] = []
        some: list[int] = []
        tokens = longest = 0
        for n, size in sizes:
            longest = max(longest, size)
            total = (len(some) + 1) * longest if padded else tokens + size
            if some and (total > self.max_tokens or len(some) == self.max_rows):
                parts.append(tuple(some))
                some, tokens, longest = [], 0, size
            some.append(n)
            tokens += size
        if some:
            parts.append(tuple(some))
        return parts

    def logps(self, policy: Policy, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-probabilities without gradient, float32 [T] per row, in the order asked for, by the same streams as the update's. Dropout is
        off, as it was when the engine sampled."""
        out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        was_training = policy.training
        policy.eval()
        with torch.no_grad():
            for part in self(policy, rows):
                for n, values in zip(part.rows, part.logps.cpu().split([len(rows[n][1]) for n in part.rows]), strict=True):
                    out[n] = values.numpy()
        policy.train(was_training)
        return out


class _Leaves:
    """Detached keys and values of prefixes, which gather gradients part by part; in half precision the sum is kept in float32."""

    def __init__(self, keys_values: KeysValues) -> None:
        self.roots = [t for pair in keys_values for t in pair]
        self.leaves = [t.detach().requires_grad_(t.requires_grad) for t in self.roots]
        self.sums: list[Tensor | None] = [None] * len(self.roots)
        self.keys_values = list(zip(self.leaves[::2], self.leaves[1::2], strict=True))

    def gather(self) -> None:
        for n, leaf in enumerate(self.leaves):
            if leaf.grad is not None and leaf.dtype.itemsize < 4:
                self.sums[n] = leaf.grad.float() if self.sums[n] is None else self.sums[n].add_(leaf.grad)  # pyright: ignore[reportOptionalMemberAccess]
                leaf.grad = None

    def backward(self) -> None:
        """The prefixes' own backward, with all that was gathered."""
        pairs = [
            (root, leaf.grad if total is None else total.to(root.dtype))
            for root, leaf, total in zip(self.roots, self.leaves, self.sums, strict=True)
            if root.requires_grad and (leaf.grad is not None or total is not None)
        ]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])
