"""What a loss term sees and what it gives back. B rows (completions), T tokens, right-padded; padding never matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossInputs:
    """One micro-batch. Everything is float32 nats per token except `mask`; only `logps` (and `entropy`) carry a gradient."""

    logps: Float[Tensor, "b t"]
    """Policy, now; gradient on."""
    old_logps: Float[Tensor, "b t"]
    """The trainer's own forward at the start of the step; equals `logps.detach()` when the step has one update."""
    advantages: Float[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    """True = a completion token that counts."""
    sampling_logps: Float[Tensor, "b t"] | None = None
    """As the engine reported; `old_logps` for a completion that was given, so that its importance weights are 1."""
    ref_logps: Float[Tensor, "b t"] | None = None
    entropy: Float[Tensor, "b t"] | None = None
    """Entropy of the next-token distribution, gradient on."""
    view_logps: Mapping[str, Float[Tensor, "b t"]] = field(default_factory=dict)
    """Policy, of the same completions under another prompt of the rollout (`Rollout.views`), by its name: as the step began, now, or now
    with a gradient, as a term asks for it. A rollout whose view is its own prompt (a task without pictures) has `logps` here: a difference
    between the two is exactly 0 there, and its tokens stay in every denominator."""
    given: Bool[Tensor, " b"] | None = None
    """True = the completion was given (a label), not sampled."""


@dataclass(frozen=True, eq=False)
class TermOutput:
    """A term's value per token: not masked, not weighted, not reduced."""

    per_token: Float[Tensor, "b t"]
    metrics: Mapping[str, Float[Tensor, "b t"]] = field(default_factory=dict)
    """Name -> per-token values; logged as their mean over the tokens that count."""
