"""The group forward: log-probabilities of many completions, each prompt read once and each picture encoded once.

Two streams: the prefixes of some groups run once and keep their graph; their completions follow in parts, against detached keys and values,
and the caller back-propagates each part as it comes; then one backward of the prefixes with all that their keys and values have gathered
ends the groups. No product is computed twice, and memory does not grow with the number of completions.

One flat stream, `[prefixes | segments]` in one forward, is for wrappers whose hooks want every layer to run whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmrl.models.policy import KeysValues, Policy
from mmrl.models.stream import Row, Segments, pack_prefixes, pack_segments, pad_lines
from mmrl.types import Prompt


@dataclass(frozen=True, eq=False)
class Part:
    """What one forward gave."""

    rows: tuple[int, ...]
    """Which rows, as indices of those that were asked for."""
    logps: Float[Tensor, " n"]
    """float32 nats, row after row."""
    entropy: Float[Tensor, " n"]
    views: Mapping[str, Float[Tensor, " n"]] = field(default_factory=dict)
    """Log-probabilities of the same completions under other prompts, by the view's name."""


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

    def __call__(self, policy: Policy, rows: Sequence[Row], views: Mapping[str, Sequence[Prompt]] | None = None) -> Iterator[Part]:
        """The rows in parts, in any order. With gradients enabled, the caller must back-propagate each part before it asks for the next,
        and exhaust the iterator: the prefixes' backward comes after the last part of their groups. Rows share a prefix when they share the
        prompt object. `views`: other prompts of every row, by name, whose log-probabilities a part brings along, with their gradient.
        Raises ValueError for a completion that is empty or holds a vision token, which has no probability above 0."""
        _check_rows(policy, rows)
        for members in self._pack(rows):
            yield from self._of_groups(policy, rows, views or {}, members)  # on its return, nothing of these groups is held

    def _of_groups(
        self, policy: Policy, rows: Sequence[Row], views: Mapping[str, Sequence[Prompt]], members: Sequence[int]
    ) -> Iterator[Part]:
        own = self._arm(policy, rows, [prompt for prompt, _ in rows], members)
        arms = {name: self._arm(policy, rows, prompts, members) for name, prompts in views.items()}
        for some in self._parts(rows, members):
            logps, entropy, _ = own.part(some)
            yield Part(some, logps, entropy, {name: arm.part(some)[0] for name, arm in arms.items()})
            for arm in (own, *arms.values()):
                arm.gather()
        for arm in (own, *arms.values()):
            arm.backward()

    def _arm(self, policy: Policy, rows: Sequence[Row], prompts: Sequence[Prompt], members: Sequence[int]) -> _Arm:
        """What forwards the rows `members` under these prompts, one for every row."""
        if self.form == "lines":
            return _Lines(policy, self.temperature, rows, prompts, self.pad_id)
        make = _TwoStreams if self.form == "two_streams" else _Flat
        return make(policy, self.temperature, rows, prompts, members)

    def _parts(self, rows: Sequence[Row], members: Sequence[int]) -> list[tuple[int, ...]]:
        if self.form == "lines":
            return self._cut([(n, len(rows[n][0].ids) + len(rows[n][1]) - 1) for n in members], padded=True)
        return self._cut([(n, len(rows[n][1])) for n in members])

    def _pack(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Rows of each prefix stream, group by group, the shorter rows first; prompts of one length lie together. Lines: all rows."""
        if self.form == "lines":
            yield list(range(len(rows)))
            return
        members: dict[Prompt, list[int]] = {}
        for n, (prompt, _) in enumerate(rows):
            members.setdefault(prompt, []).append(n)
        batch: list[int] = []
        tokens = 0
        for prompt, ns in sorted(members.items(), key=lambda group: len(group[0].ids)):
            size = len(prompt.ids) - 1 + (sum(len(rows[n][1]) for n in ns) if self.form == "flat" else 0)
            if batch and tokens + size > self.max_tokens:
                yield batch
                batch, tokens = [], 0
            batch += sorted(ns, key=lambda n: len(rows[n][1]))
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
        return [signals["old_logps"] for signals in self.signals(policy, rows)]

    @torch.no_grad()
    def signals(
        self,
        policy: Policy,
        rows: Sequence[Row],
        views: Mapping[str, Sequence[Prompt]] | None = None,
        divergences: Collection[str] = (),
    ) -> list[dict[str, np.ndarray]]:
        """What can be known of every row before it is trained, in the order asked for: float32 [T] nats, without gradient, dropout off.

        "old_logps" and "old_entropy"; for each view (other prompts of every row, by name) "view:NAME" (log-probabilities) and
        "view_entropy:NAME" of the same completion under it; for each of `divergences`, names of views, "view_kl:NAME", half the symmetric
        KL between the two over the whole vocabulary. A row and its view are forwarded in one part, so that two hidden states of a part are
        all that is held. A view that is the row's own prompt is not forwarded: its numbers are the row's own, its KL exactly 0.
        """
        views = views or {}
        _check_rows(policy, rows)
        out: list[dict[str, np.ndarray]] = [{} for _ in rows]
        apart = {name: {n for n, (prompt, _) in enumerate(rows) if prompts[n] is not prompt} for name, prompts in views.items()}
        was_training = policy.training
        policy.eval()
        for members in self._pack(rows):
            own = self._arm(policy, rows, [prompt for prompt, _ in rows], members)
            some_of = {name: [n for n in members if n in apart[name]] for name in views}
            arms = {name: self._arm(policy, rows, views[name], ns) for name, ns in some_of.items() if ns}
            for some in self._parts(rows, members):
                logps, entropy, hidden = own.part(some)
                _note(out, rows, some, {"old_logps": logps, "old_entropy": entropy})
                states = dict(zip(some, hidden.split([len(rows[n][1]) for n in some]), strict=True))
                for name, arm in arms.items():
                    here = [n for n in some if n in apart[name]]
                    if not here:
                        continue
                    logps, entropy, hidden = arm.part(here)
                    found = {f"view:{name}": logps, f"view_entropy:{name}": entropy}
                    if name in divergences:
                        found[f"view_kl:{name}"] = policy.divergence(torch.cat([states[n] for n in here]), hidden, self.temperature)
                    _note(out, rows, here, found)
        policy.train(was_training)
        for name in views:
            for found in (found for n, found in enumerate(out) if n not in apart[name]):
                found |= {f"view:{name}": found["old_logps"], f"view_entropy:{name}": found["old_entropy"]}
                found |= {f"view_kl:{name}": np.zeros_like(found["old_logps"])} if name in divergences else {}
        return out


def _check_rows(policy: Policy, rows: Sequence[Row]) -> None:
    for index, (prompt, completion) in enumerate(rows):
        if not len(completion) or policy.layout.is_vision(completion).any():
            problem = "is empty" if not len(completion) else "holds a picture or video token"
            raise ValueError(f"row {index}, task {prompt.task.id}: the completion {problem}; leave it out of the update")


def _note(out: list[dict[str, np.ndarray]], rows: Sequence[Row], some: Sequence[int], found: Mapping[str, Tensor]) -> None:
    """Puts values [n], row after row, in their rows' places."""
    for name, values in found.items():
        for n, piece in zip(some, values.float().cpu().split([len(rows[n][1]) for n in some]), strict=True):
            out[n][name] = piece.numpy()


class _Arm(Protocol):
    """Some rows under one choice of prompts."""

    def part(self, some: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and hidden states of the rows `some`, row after row."""
        ...

    def gather(self) -> None:
        """Called after each part's backward."""
        ...

    def backward(self) -> None:
        """Called after the last part's."""
        ...


class _Lines:
    """Each row with its prompt, by itself."""

    def __init__(self, policy: Policy, temperature: float, rows: Sequence[Row], prompts: Sequence[Prompt], pad_id: int) -> None:
        self.policy, self.temperature, self.rows, self.prompts, self.pad_id = policy, temperature, rows, prompts, pad_id

    def part(self, some: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        lines = pad_lines([(self.prompts[n], self.rows[n][1]) for n in some], self.policy.layout, self.pad_id, self.policy.device)
        return self.policy(lines, self.temperature)

    def gather(self) -> None:
        """Nothing is left over from a part."""

    def backward(self) -> None:
        """The parts' own backwards were all."""


class _Flat:
    """Some groups under one choice of prompts: every part reads the prefixes again, in one stream with its segments."""

    def __init__(self, policy: Policy, temperature: float, rows: Sequence[Row], prompts: Sequence[Prompt], members: Sequence[int]) -> None:
        self.policy, self.temperature, self.rows, self.prompts = policy, temperature, rows, prompts
        distinct = list(dict.fromkeys(prompts[n] for n in members))
        self.index = {prompt: place for place, prompt in enumerate(distinct)}
        self.prefixes = pack_prefixes(distinct, policy.layout, policy.device)

    def part(self, some: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        place = [self.index[self.prompts[n]] for n in some]
        order = sorted(range(len(some)), key=lambda i: place[i])  # segments of a prefix lie together
        segments = pack_segments(self.prefixes, [(place[i], self.rows[some[i]][1]) for i in order])
        found = self.forward(segments)
        if order == list(range(len(some))):
            return found
        back = sorted(range(len(some)), key=lambda i: order[i])
        logps, entropy, hidden = (torch.cat([x.split(segments.lengths)[i] for i in back]) for x in found)
        return logps, entropy, hidden

    def forward(self, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        return self.policy(segments, self.temperature, self.prefixes)

    def gather(self) -> None:
        """Nothing is left over from a part."""

    def backward(self) -> None:
        """The parts' own backwards were all."""


class _TwoStreams(_Flat):
    """Some groups under one choice of prompts: the prefixes are read once, parts follow against detached keys and values."""

    def __init__(self, policy: Policy, temperature: float, rows: Sequence[Row], prompts: Sequence[Prompt], members: Sequence[int]) -> None:
        super().__init__(policy, temperature, rows, prompts, members)
        self.leaves = _Leaves(policy.read_prefixes(self.prefixes))

    def forward(self, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        return self.policy(segments, self.temperature, self.prefixes, self.leaves.keys_values)

    def gather(self) -> None:
        self.leaves.gather()

    def backward(self) -> None:
        self.leaves.backward()


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
