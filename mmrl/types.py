"""The records that travel from a task to a gradient. Frozen: a stage makes a new record, so nothing is None until filled in.

Letters: G rollouts of a group, P prompt tokens, T completion tokens, F frames, H W pixels, N vision patches, M media items.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class TaskKey:
    """Where a task comes from: a bucket of its source (a difficulty class; "" where there are none) and an index in it."""

    bucket: str
    index: int


@dataclass(frozen=True, eq=False)
class Media:
    """A picture (F = 1, no timestamps) or the sampled frames of a video."""

    frames: np.ndarray
    """uint8 [F, H, W, 3], RGB."""
    timestamps_s: np.ndarray | None = None
    """float64 [F] seconds from the start of the clip; None for a still picture."""

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"frames must be uint8 [F, H, W, 3] with no empty axis; got {dtype} {shape}")
        if self.timestamps_s is not None and len(self.timestamps_s) != shape[0]:
            raise ValueError(f"{shape[0]} frames but {len(self.timestamps_s)} timestamps")

    @property
    def is_video(self) -> bool:
        return self.timestamps_s is not None


@dataclass(frozen=True, eq=False)
class Task:
    """One problem. `id` names it for ever: "maze-v1/train/0/moves=3/17"."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    """Chat messages; a message's content is a string or a list of parts {"type": "text", "text": …}, {"type": "image"},
    {"type": "video"}. The media parts, in order, stand for `media`, in order."""
    media: tuple[Media, ...]
    solution: str
    meta: Mapping[str, Any]
    """Plain data (JSON) that a checker needs."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the model is given for a task."""

    task: Task
    text: str
    """Templated, one placeholder per medium, or per frame pair where times are interleaved: what an engine with its own processor wants."""
    ids: np.ndarray
    """int64 [P], placeholders expanded to one id per vision token: what we train on."""
    mm_inputs: Mapping[str, np.ndarray]
    """The processor's own names, e.g. pixel_values float32 [N, D], image_grid_thw int64 [M, 3]."""


@dataclass(frozen=True, eq=False)
class Completion:
    """Sampled tokens, the end token included when there is one."""

    ids: np.ndarray
    """int64 [T], T >= 1."""
    text: str
    """Decoded without special tokens that end a turn; action and think tokens stay."""
    sampling_logps: np.ndarray
    """float32 [T] nats, of the distribution that was sampled from (temperature and vocabulary mask included)."""
    finish: Literal["stop", "length"]
    policy_version: int
    sampled: bool = True
    """False: given, not sampled (a label); `sampling_logps` are NaN, and no importance weight touches it."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """A completion with the prompt it was sampled under."""

    prompt: Prompt
    completion: Completion
    train_prompt: Prompt | None
    """The prompt it is trained under, usually `prompt`; None when it is only compared with."""
    arm: str = "plain"
    """How it was sampled; "plain" is the task's own prompt."""
    views: Mapping[str, Prompt] = field(default_factory=dict)
    """Other prompts that the completion is scored under, by name: the recipe's `views`, made for the step, or a strategy's own."""
    attempt: bool = True
    """The policy's own try at the task: counted in success, dynamic sampling and the curriculum."""


@dataclass(frozen=True, eq=False)
class Group:
    """A task's rollouts, G of them."""

    task: Task
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """A group with what it earned. A rollout whose reward failed has NaN, and the traceback is kept."""

    group: Group
    rewards: np.ndarray
    """float32 [G], weighted sum of the parts; NaN where any part with a weight failed."""
    parts: Mapping[str, np.ndarray]
    """Reward name -> float32 [G], before weighting."""
    tracebacks: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    """Reward name -> G tracebacks, only for rewards that failed somewhere."""
    unscored: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Reward name -> (kind, reason), only for rewards that gave the whole group up (`mmrl.errors.Unscored`)."""


@dataclass(frozen=True, eq=False)
class GroupRewards:
    """What an advantage estimator may know of a group: numbers only, so that ranks can exchange it."""

    rewards: np.ndarray
    """float32 [G]; NaN = failed, left out of every baseline."""
    lengths: np.ndarray
    """int64 [G] completion tokens."""
    token_rewards: tuple[np.ndarray, ...] | None = None
    """G arrays float32 [T_i] added per token (KL in the reward); None = none."""
    arms: tuple[str, ...] = ()
    """G names, `Rollout.arm` of each; () where nobody tells them apart."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Reward name -> float32 [G], before weighting, as in `ScoredGroup`."""


@dataclass(frozen=True, eq=False)
class ShaperInputs:
    """What an advantage shaper sees of one rollout: T tokens, float32, nats, nothing with a gradient."""

    advantages: np.ndarray
    """[T], as the estimator, or the shaper before, gave them."""
    signals: Mapping[str, np.ndarray]
    """[T] each, what the shaper's `needs` name: taken once a step, with the weights that it began with."""
    arm: str
    """`Rollout.arm`."""
    step: int
    """From 0."""
    max_steps: int
    seed: int
    """The run's, for keyed draws."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of an update."""

    rollout: Rollout
    advantages: np.ndarray
    """float32 [T]."""
    token_weights: np.ndarray
    """float32 [T]: this row's share of the loss; with a mean aggregation they sum to 1 over one update, all ranks together."""
