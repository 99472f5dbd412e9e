"""The interfaces. Components meet them by having the method; frozen dataclasses, so the fields are the configuration.

Above the torch line: torch names appear only for the type checker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from mmrl.types import Completion, Group, GroupRewards, Media, Prompt, ShaperInputs, Task, TaskKey

if TYPE_CHECKING:
    from torch import nn

    from mmrl.batch import LossInputs, TermOutput
    from mmrl.models.processor import PromptMaker


class TaskSource(Protocol):
    """Tasks by key: a pure function of (bucket, index), so any process may ask for any task at any time."""

    @property
    def buckets(self) -> Sequence[str]:
        """Difficulty classes, easiest first; ("",) where there are none."""
        ...

    def size(self, bucket: str) -> int | None:
        """Number of tasks in the bucket; None = endless."""
        ...

    def task(self, key: TaskKey) -> Task: ...


class TaskSampler(Protocol):
    """Which tasks a step uses. Sees outcomes of past steps, never rewards in flight; its state is small JSON."""

    def draw(self, source: TaskSource, step: int, count: int) -> list[TaskKey]: ...

    def observe(self, step: int, outcomes: Mapping[TaskKey, float]) -> None:
        """`outcomes`: success rate in [0, 1] of each task's group at this step, all ranks together."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    temperature: float = 1.0
    """> 0 samples; 0 takes the likeliest token (evaluation only)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = all."""
    max_completion_length: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end a completion, kept in it."""
    seed: int = 0
    step: int = 0
    """Part of every draw's key. Under dynamic sampling a step of the run makes several."""
    schedule_step: int = 0
    """The run's step, from 0: what the schedules of a strategy go by."""


class RolloutEngine(Protocol):
    def generate(self, prompts: Sequence[Prompt], num_generations: int, sampling: Sampling) -> list[list[Completion]]:
        """`num_generations` completions for each prompt, in prompt order. Draw j of a prompt depends on
        (seed, step, task id, j) alone, not on what else is in the batch."""
        ...

    def attach(self, processor: Any) -> None:
        """Called once, before the first `generate`, with the model's processor."""
        ...

    def load_policy(self, policy: nn.Module, version: int) -> None:
        """Samples from these weights from now on; `version` counts optimizer steps."""
        ...


class RolloutStrategy(Protocol):
    """Groups of `num_generations` rollouts a task, or as many as the strategy says. It may say more of itself, read from its source when a
    recipe is checked: `arms: ClassVar[tuple[str, ...]]`, every arm it makes (else they are not checked); `separate_arms: ClassVar[bool]`,
    its arms must not share a baseline; `needs_video: ClassVar[bool]`; `views: ClassVar[tuple[str, ...]]`, views that it puts on all
    rollouts that are trained; `gates: ClassVar[bool]`, it may let the policy have no try at a task. A method `check(task, num_generations)`
    is called with the first task before the model is loaded, and raises what is wrong with it."""

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: PromptMaker,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]: ...


class Reward(Protocol):
    """`needs_arms: ClassVar[tuple[str, ...]]` names arms without which the reward says nothing."""

    per_completion: ClassVar[bool]
    """True: each rollout is scored by itself, so a failure costs that rollout only."""

    def __call__(self, group: Group) -> np.ndarray:
        """float32 [G]; NaN = not scored."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one text."""

    scores: tuple[float, ...] = ()
    """One per fact, in [0, 1], 1 = stated; () = no verdict."""
    kind: Literal["", "outage", "malformed"] = ""
    """Why there is none: the judge could not be reached, or what it answered was none. "" = there is one."""
    reason: str = ""
    """What happened, for people."""


class Judge(Protocol):
    """Reads texts, never pictures. May be called from several threads at once."""

    def __call__(self, facts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        """Which of the `facts`, one or more, each text states: a verdict per text, in order. An outage is a verdict too; raises only what
        somebody has to mend."""
        ...


class AdvantageEstimator(Protocol):
    """It may declare, as class variables that are read when a recipe is checked: `min_generations`, `needs_arms` (arms it cannot do
    without), `separates_arms: bool` (no two arms share a baseline), and `names_rewards` (which of its fields name a reward). What a method
    `metrics(groups) -> Mapping[str, float]` tells of the same groups is logged."""

    def __call__(self, groups: Sequence[GroupRewards]) -> list[list[np.ndarray]]:
        """All groups of the step, all ranks together -> per group, per rollout float32 [T_i]."""
        ...


class AdvantageShaper(Protocol):
    """Changes advantages token by token, after the estimator and before the update. Says in its docstring by how much at most."""

    needs: ClassVar[frozenset[str]]
    """What `ShaperInputs.signals` must carry: "old_logps", "old_entropy" (under the prompt trained), and of a view "view:NAME" (its
    log-probabilities), "view_entropy:NAME", "view_kl:NAME" (half the symmetric KL to it, over the whole vocabulary)."""

    def __call__(self, x: ShaperInputs) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """New advantages float32 [T], finite, and metrics: name -> [T], logged as means over all tokens."""
        ...


class LossTerm(Protocol):
    """A term that is exactly 0, and its gradient with it, wherever the advantage is 0 says `zero_without_advantage: ClassVar[bool] = True`:
    if all active terms say so, rows whose advantages are all 0 are not forwarded. A term without it is taken as False."""

    needs: ClassVar[frozenset[str]]
    """What `LossInputs` must carry beyond the policy's own logps: "old_logps", "ref_logps", "entropy", "sampling_logps", and of a rollout's
    view its log-probabilities: "view:NAME" with the weights that the step began with, "view_now:NAME" with those of the update, without
    gradient, or "view_grad:NAME", with gradient."""

    def __call__(self, x: LossInputs) -> TermOutput: ...


class Correction(Protocol):
    """Weights that make up for an engine that samples from another distribution than the trainer's."""

    def __call__(self, x: LossInputs) -> Any:
        """float32 [B, T], no gradient."""
        ...


class Schedule(Protocol):
    def __call__(self, step: int) -> float: ...


class FrameSampler(Protocol):
    def __call__(self, num_frames: int, fps: float) -> np.ndarray:
        """Frames to keep of a video of `num_frames` frames at `fps` a second: int64 [F] in [0, num_frames), F >= 1. ValueError if it
        cannot."""
        ...


class Perturbation(Protocol):
    """Keeps the frames' number and size, so that token counts stay. One that looks through the policy's eyes has a method
    `attach(policy)`, called once, before the first view is made."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media: ...
