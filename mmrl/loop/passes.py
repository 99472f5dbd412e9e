"""The forward passes before an update: what is known of a step's rollouts with the weights that it began with, and under the reference.
A pass is made only where something asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.loop.update import Passes, WeightedTerm, view_of
from mmrl.loop.views import CACHED, DIVERGENCE, ENTROPY, names_of
from mmrl.models.forward import GroupForward
from mmrl.models.load import reference_mode
from mmrl.models.policy import Policy
from mmrl.models.stream import Row
from mmrl.protocols import AdvantageShaper
from mmrl.types import Rollout, Sample, ScoredGroup


@dataclass(frozen=True)
class Asked:
    """Who wants to know something before a step updates, on one rank."""

    terms: Sequence[WeightedTerm]
    """Loss terms that count at this step."""
    shapers: Sequence[AdvantageShaper]
    all_views: Sequence[str]
    """Of the run; the first is logged beside the prompt."""
    several: bool
    """Whether the step updates more than once, so that later updates must know the log-probabilities it began with."""
    kl_in_reward: bool
    logs: bool
    """Whether this rank logs the step's rollouts."""

    @property
    def needs(self) -> set[str]:
        return {need for part in (*(term.term for term in self.terms), *self.shapers) for need in part.needs}

    @property
    def logged_views(self) -> Sequence[str]:
        return self.all_views[:1] if self.logs else ()

    @property
    def views(self) -> list[str]:
        """Views that the rollouts must have."""
        wanted = {*names_of(self.needs), *self.logged_views}
        return [name for name in self.all_views if name in wanted]

    @property
    def cached(self) -> list[str]:
        """Views whose log-probabilities are taken before the update. With one update they are those of the update itself, which takes them
        for the rows that it forwards and no others."""
        return names_of(self.needs, CACHED) if self.several or self.shapers else []


@dataclass(frozen=True, eq=False)
class Known:
    """What the passes gave, by id() of the rollout; {} where nobody asked."""

    asked: Asked
    signals: Mapping[int, Mapping[str, np.ndarray]]
    """Of `policy_signals`."""
    ref_logps: Mapping[int, np.ndarray]
    """Of `reference_logps`."""

    def of(self, samples: Sequence[Sample]) -> Passes:
        """What the loss of these samples may look at."""
        ids = [id(sample.rollout) for sample in samples]
        return Passes(
            [self.signals[n]["old_logps"] for n in ids] if self.asked.several else None,
            [self.ref_logps[n] for n in ids] if self.ref_logps else None,
            {name: [self.signals[n][f"{CACHED}{name}"] for n in ids] for name in self.asked.cached},
        )


def policy_signals(asked: Asked, scored: Sequence[ScoredGroup], policy: Policy, forward: GroupForward) -> dict[int, dict[str, np.ndarray]]:
    """`GroupForward.signals` of the rollouts that are trained, under the policy as it is."""
    if not (asked.several or asked.shapers or asked.kl_in_reward or asked.logs):
        return {}
    rollouts, rows = _trained(scored)
    names = dict.fromkeys([*asked.cached, *names_of(asked.needs, ENTROPY, DIVERGENCE), *asked.logged_views])
    views = {name: [view_of(rollout, name) for rollout in rollouts] for name in names}
    found = forward.signals(policy, rows, views, names_of(asked.needs, DIVERGENCE))
    return {id(rollout): values for rollout, values in zip(rollouts, found, strict=True)}


def reference_logps(
    asked: Asked, scored: Sequence[ScoredGroup], policy: Policy, reference: Policy | None, forward: GroupForward
) -> dict[int, np.ndarray]:
    """Log-probabilities float32 [T] of the rollouts that are trained, under the reference: a model, or None for the policy's own weights
    with the adapter off."""
    if not (asked.kl_in_reward or any("ref_logps" in term.term.needs for term in asked.terms)):
        return {}
    rollouts, rows = _trained(scored)
    with reference_mode(policy, reference) as model:
        return {id(rollout): logps for rollout, logps in zip(rollouts, forward.logps(model, rows), strict=True)}


def _trained(scored: Sequence[ScoredGroup]) -> tuple[list[Rollout], list[Row]]:
    rollouts = [rollout for group in scored for rollout in group.group.rollouts if rollout.train_prompt is not None]
    return rollouts, [(r.train_prompt, r.completion.ids) for r in rollouts if r.train_prompt is not None]
