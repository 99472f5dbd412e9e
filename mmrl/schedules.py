"""A term's weight as a function of the step. Pure, so resuming needs no state."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """`value` at every step."""

    value: float

    def __post_init__(self) -> None:
        _check_finite("value", self.value)

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.value


@dataclass(frozen=True)
class Linear:
    """`start` at step 0, straight to `end` at step `num_steps`, `end` from then on."""

    start: float
    end: float
    num_steps: int

    def __post_init__(self) -> None:
        _check_finite("start", self.start)
        _check_finite("end", self.end)
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be >= 1; got {self.num_steps}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.start + (self.end - self.start) * min(step / self.num_steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From 0 straight up to `start` over `warmup_steps`, then along half a cosine to `end` at step `num_steps` (warm-up
    included), `end` from then on. Without warm-up, step 0 gives `start`."""

    start: float
    end: float
    num_steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_finite("start", self.start)
        _check_finite("end", self.end)
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be >= 1; got {self.num_steps}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must lie in [0, num_steps = {self.num_steps}); got {self.warmup_steps}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        if step < self.warmup_steps:
            return self.start * step / self.warmup_steps
        progress = min((step - self.warmup_steps) / (self.num_steps - self.warmup_steps), 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Sigmoid:
    """start * (1 - 1 / (1 + exp(-slope * (step - middle) / num_steps))): falls smoothly, by half at `middle`.

    NoisyRollout's annealing of the noise's strength (arXiv:2504.13055): slope 30 and middle 40 on Geometry3K, 60 and 40 on K12.
    """

    start: float
    middle: float
    """Step at which half of `start` is left."""
    num_steps: int
    slope: float = 30.0
    """Steepness over the whole run, > 0."""

    def __post_init__(self) -> None:
        for name in ("start", "middle", "slope"):
            _check_finite(name, getattr(self, name))
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be >= 1; got {self.num_steps}")
        if self.slope <= 0:
            raise ValueError(f"slope must be > 0; got {self.slope}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.start * 0.5 * (1.0 - math.tanh(0.5 * self.slope * (step - self.middle) / self.num_steps))


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value}")


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step must be >= 0; got {step}")
