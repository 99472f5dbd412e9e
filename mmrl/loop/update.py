"""Samples -> gradient. Rows are forwarded in parts that share prompts; each row's share of the loss was fixed in `credit`, so how rows are
cut changes nothing but memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mmrl.batch import LossInputs
from mmrl.errors import RecipeError
from mmrl.loop.views import CACHED, GRADIENT, LIVE, names_of
from mmrl.models.forward import GroupForward, Part
from mmrl.models.policy import Policy
from mmrl.models.stream import Row
from mmrl.optim import Optimizer
from mmrl.protocols import LossTerm, Schedule
from mmrl.types import Prompt, Rollout, Sample


@dataclass(frozen=True)
class WeightedTerm:
    """A loss term, its factor (a number or a schedule of the step), and the name its metrics carry."""

    term: LossTerm
    weight: float | Schedule
    name: str

    def at(self, step: int) -> float:
        return float(self.weight(step)) if callable(self.weight) else self.weight


@dataclass(frozen=True)
class Passes:
    """What was computed before the update, one array per sample; None = not needed."""

    old_logps: Sequence[np.ndarray] | None
    ref_logps: Sequence[np.ndarray] | None
    view_logps: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    """Under views, by name. One that a term wants as the step began and that is not here is taken now."""


class TokenMeans:
    """Means over the tokens of all rows that were forwarded, across parts, updates and ranks. Rows that cannot change the update
    (see `accumulate`) are not forwarded and so are in no mean: `rows` of `of_rows` were."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.maxima: dict[str, float] = {}
        self.rows = 0
        self.of_rows = 0

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        kept = values.detach()[mask].double()
        self.sums[name] = self.sums.get(name, 0.0) + float(kept.sum())
        self.counts[name] = self.counts.get(name, 0.0) + kept.numel()

    def maximum(self, name: str, values: Tensor, mask: Tensor) -> None:
        kept = values.detach()[mask]
        if kept.numel():
            self.maxima[name] = max(self.maxima.get(name, -np.inf), float(kept.max()))


def accumulate(
    policy: Policy,
    forward: GroupForward,
    samples: Sequence[Sample],
    passes: Passes,
    terms: Sequence[WeightedTerm],
    step: int,
    means: TokenMeans,
) -> float:
    """Adds the gradient of the update's loss to the policy's parameters and returns this rank's share of the loss.

    Rows whose every active term is zero are not forwarded; they stay in the denominators, which `credit` has set, but their tokens are
    in none of `means`: entropy, sampling gap and the terms' own metrics are over the rows that were forwarded.
    """
    active = [(term, term.at(step)) for term in terms]
    active = [(term, weight) for term, weight in active if weight != 0]
    total = 0.0
    means.of_rows += len(samples)
    needed = [i for i, sample in enumerate(samples) if _matters(sample, active)]
    means.rows += len(needed)
    arms = sorted({sample.rollout.arm for sample in samples})
    given, views = _views(samples, needed, passes, [term.term for term, _ in active], policy, forward)
    for part in forward(policy, [row_of(samples[i]) for i in needed], views):
        indices = [needed[n] for n in part.rows]
        rows = [samples[i] for i in indices]
        logps = part.logps
        x = _inputs(rows, indices, part, passes, {name: [values[n] for n in part.rows] for name, values in given.items()})
        weights = _padded([s.token_weights for s in rows], logps.device)
        loss = torch.zeros((), device=logps.device)
        for term, weight in active:
            out = term.term(x)
            loss = loss + weight * (out.per_token * weights).sum()
            _add_by_arm(means, out.metrics, x.mask, arms, rows)
        _add_by_arm(means, {"logps": x.logps}, x.mask, arms, rows, of_all=False)
        _gap_metrics(means, x, rows)
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    return total


def arm_grad_norms(
    policy: Policy,
    forward: GroupForward,
    samples: Sequence[Sample],
    passes_of: Callable[[Sequence[Sample]], Passes],
    terms: Sequence[WeightedTerm],
    step: int,
    optimizer: Optimizer,
    arms: Sequence[str],
) -> dict[str, float]:
    """Norms of what the rows of each of `arms` add to the update's gradient, all ranks together, by a forward and backward of their own
    (with dropout, under masks of their own). No gradient is left, and torch's random numbers go on as if nothing had been. Every rank must
    name the same arms."""
    norms: dict[str, float] = {}
    with torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
        for arm in arms:
            mine = [sample for sample in samples if sample.rollout.arm == arm]
            optimizer.zero_grad()
            accumulate(policy, forward, mine, passes_of(mine), terms, step, TokenMeans())
            norms[arm] = optimizer.norm()
    optimizer.zero_grad()
    return norms


def _matters(sample: Sample, active: Sequence[tuple[WeightedTerm, float]]) -> bool:
    if not sample.token_weights.any():
        return False
    return bool(sample.advantages.any()) or any(not getattr(term.term, "zero_without_advantage", False) for term, _ in active)


def _views(
    samples: Sequence[Sample], indices: Sequence[int], passes: Passes, terms: Sequence[LossTerm], policy: Policy, forward: GroupForward
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[Prompt]]]:
    """What the terms need of the views of the samples at `indices`, by name: log-probabilities, and prompts of the views whose gradient is
    wanted too. Without gradient, a view costs one forward of its prompts, or nothing where `passes` has it."""
    needs = {need for term in terms for need in term.needs}
    rows = [samples[i] for i in indices]
    cached = {name: [passes.view_logps[name][i] for i in indices] for name in names_of(needs, CACHED) if name in passes.view_logps}
    live = {name: _logps_under(name, rows, policy, forward) for name in names_of(needs, CACHED, LIVE) if name not in cached}
    return cached | live, {name: [view_of(s.rollout, name) for s in rows] for name in names_of(needs, GRADIENT)}


def _logps_under(name: str, rows: Sequence[Sample], policy: Policy, forward: GroupForward) -> list[np.ndarray]:
    """Zeros where the view is the row's own prompt: `_inputs` puts the row's own numbers there."""
    apart = [n for n, row in enumerate(rows) if view_of(row.rollout, name) is not row.rollout.train_prompt]
    out = [np.zeros(len(row.advantages), np.float32) for row in rows]
    found = forward.logps(policy, [(view_of(rows[n].rollout, name), rows[n].rollout.completion.ids) for n in apart])
    for n, values in zip(apart, found, strict=True):
        out[n] = values
    return out


def view_of(rollout: Rollout, name: str) -> Prompt:
    if name not in rollout.views:
        raise RecipeError(
            f"losses: a term needs the view {name!r}, and the rollouts of task {rollout.prompt.task.id} have "
            f"{sorted(rollout.views) or 'none'}; take a rollout.strategy that makes it, or write it under views"
        )
    return rollout.views[name]


def _inputs(
    rows: Sequence[Sample], indices: Sequence[int], part: Part, passes: Passes, view_logps: Mapping[str, Sequence[np.ndarray]]
) -> LossInputs:
    lengths = [len(s.advantages) for s in rows]
    device = part.logps.device
    now = _spread(part.logps, lengths)
    mask = torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    old_logps = now.detach() if passes.old_logps is None else _padded([passes.old_logps[i] for i in indices], device)
    sampled = _padded([s.rollout.completion.sampling_logps for s in rows], device)
    given = torch.tensor([not s.rollout.completion.sampled for s in rows], device=device)
    views = {name: _padded(values, device) for name, values in view_logps.items()}
    with_gradient = {name: _spread(values, lengths) for name, values in part.views.items()}
    return LossInputs(
        logps=now,
        old_logps=old_logps,
        advantages=_padded([s.advantages for s in rows], device),
        mask=mask,
        sampling_logps=torch.where(given[:, None], old_logps, sampled),
        given=given,
        ref_logps=None if passes.ref_logps is None else _padded([passes.ref_logps[i] for i in indices], device),
        entropy=_spread(part.entropy, lengths),
        view_logps={name: _own_where_same(name, rows, now.detach(), values) for name, values in views.items()}
        | {name: _own_where_same(name, rows, now, values) for name, values in with_gradient.items()},
    )


def _own_where_same(name: str, rows: Sequence[Sample], now: Tensor, values: Tensor) -> Tensor:
    """`values` [B, T] of a view, or `now` in the rows whose view is their own prompt."""
    same = [s.rollout.views.get(name) is s.rollout.train_prompt for s in rows]
    return torch.where(torch.tensor(same, device=now.device)[:, None], now, values) if any(same) else values


def _add_by_arm(
    means: TokenMeans, metrics: Mapping[str, Tensor], mask: Tensor, arms: Sequence[str], rows: Sequence[Sample], *, of_all: bool = True
) -> None:
    """Metrics over all rows and, where the update has several arms, over the rows of each, as "arm/NAME/metric"."""
    for name, values in metrics.items():
        if of_all:
            means.add(name, values, mask)
        for arm in arms if arms != ["plain"] else ():
            mine = torch.tensor([sample.rollout.arm == arm for sample in rows], device=mask.device)
            if mine.any():
                means.add(f"arm/{arm}/{name}", values, mask & mine[:, None])


def _gap_metrics(means: TokenMeans, x: LossInputs, rows: Sequence[Sample]) -> None:
    """How far the engine is from the trainer: over completions sampled under the very prompt that they are trained under."""
    assert x.sampling_logps is not None
    assert x.entropy is not None
    own = [s.rollout.completion.sampled and s.rollout.prompt is s.rollout.train_prompt for s in rows]
    mask = x.mask & torch.tensor(own, device=x.mask.device)[:, None]
    gap = (x.old_logps - x.sampling_logps).abs()
    means.add("sampling/sampling_logp_difference/mean", gap, mask)
    means.maximum("sampling/sampling_logp_difference/max", gap, mask)
    means.add("entropy", x.entropy, x.mask)


def row_of(sample: Sample) -> Row:
    """The prompt that the sample is trained under and its completion's ids."""
    prompt = sample.rollout.train_prompt
    assert prompt is not None
    return prompt, sample.rollout.completion.ids


def _spread(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """[n] row after row -> [B, T], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(list(lengths))), batch_first=True)


def _padded(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True).to(device)


def reduce_means(ranks: Sequence[TokenMeans]) -> dict[str, float]:
    """One number a metric from all ranks' means, and `forwarded`, the share of rows that were forwarded (0 if there were no rows)."""
    out: dict[str, float] = {}
    for name in sorted({name for rank in ranks for name in rank.sums}):
        count = sum(rank.counts.get(name, 0.0) for rank in ranks)
        out[name] = sum(rank.sums.get(name, 0.0) for rank in ranks) / count if count else float("nan")
    for name in sorted({name for rank in ranks for name in rank.maxima}):
        out[name] = max(rank.maxima.get(name, -np.inf) for rank in ranks)
    return out | {"forwarded": sum(rank.rows for rank in ranks) / max(1, sum(rank.of_rows for rank in ranks))}
