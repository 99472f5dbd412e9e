"""VOGUE, visual-uncertainty guided exploration (arXiv:2510.01444; DUPL in its later versions): how far the policy's distribution drifts
between the picture and a perturbed one, and its entropy, are added to the advantage, both capped by it.

Paper: the strategy `vogue` samples from both pictures and chooses which completion of a pair is trained, `per_arm` normalises each
picture's completions by themselves, the shaper `vogue` adds the bonuses. Released code (ruiiu/DUPL at 1a5f666): the strategy `plain`, and
the shaper with `mode: released` over a view of the recipe's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np

from data_pipelines.perturb.compose import VogueView
from mmrl.errors import TaskError
from mmrl.protocols import Perturbation, RolloutEngine, Sampling, Schedule
from mmrl.seeding import stream
from mmrl.strategies.perturbed import perturbed
from mmrl.types import Completion, Group, Prompt, Rollout, ShaperInputs, Task

Mode = Literal["paper", "released"]
RAW, NOISY = "raw", "noisy"


@dataclass(frozen=True)
class Vogue:
    """VOGUE's rollouts (arXiv:2510.01444, algorithm 1): num_generations completions of the task's own pictures, arm "raw", and as many of
    perturbed ones, arm "noisy". Of each pair the noisy one is trained with probability `p_noisy`, under the noisy prompt, else the raw one;
    the other is scored and compared with (its train_prompt is None), and counts in no denominator.

    Needs `advantage: {use: per_arm}`. The perturbation is keyed by (seed, task, step), the choice by the pair too. Every rollout has the
    views "noisy" and "raw". A task without pictures is trained on its raw arm.
    """

    perturbation: Perturbation = field(default_factory=VogueView)
    p_noisy: float | Schedule = 1.0
    """Probability in [0, 1]: a number, or a schedule of the run's step, in the paper max(0, 1 - step / steps):
    {use: linear, start: 1, end: 0, num_steps: <all steps>}."""
    views: ClassVar[tuple[str, ...]] = ("noisy", "raw")
    arms: ClassVar[tuple[str, ...]] = ("raw", "noisy")
    separate_arms: ClassVar[bool] = True

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: Callable[[Sequence[Task]], list[Prompt]],
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        raw = make_prompts(tasks)
        noisy = make_prompts([self._noisy(task, sampling) for task in tasks])  # tasks of another name, so other draws
        for one, other in zip(raw, noisy, strict=True):
            if not np.array_equal(one.ids, other.ids):
                raise TaskError(f"task {one.task.id}: {self.perturbation!r} changed the number of vision tokens; take one that keeps sizes")
        of_raw, of_noisy = (engine.generate(prompts, num_generations, sampling) for prompts in (raw, noisy))
        share = self.p_noisy(sampling.schedule_step) if callable(self.p_noisy) else self.p_noisy
        prompts, completions = zip(raw, noisy, strict=True), zip(of_raw, of_noisy, strict=True)
        return [Group(task, _pairs(task, two, some, share, sampling)) for task, two, some in zip(tasks, prompts, completions, strict=True)]

    def _noisy(self, task: Task, sampling: Sampling) -> Task:
        noisy = perturbed(task, self.perturbation, NOISY, sampling)
        if any(np.array_equal(one.frames, other.frames) for one, other in zip(task.media, noisy.media, strict=True)):
            raise TaskError(f"task {task.id}: {self.perturbation!r} left a picture as it is, so both arms would be one; raise its strength")
        return noisy


def _pairs(
    task: Task,
    prompts: tuple[Prompt, Prompt],
    completions: tuple[Sequence[Completion], Sequence[Completion]],
    share: float,
    sampling: Sampling,
) -> tuple[Rollout, ...]:
    raw, noisy = prompts
    if not 0 <= share <= 1:
        raise ValueError(f"p_noisy must lie in [0, 1]; got {share} at step {sampling.schedule_step}")
    drawn = stream(sampling.seed, "vogue", "choice", task.id, sampling.step).random(len(completions[0]))
    chosen = (drawn < share) & bool(task.media)
    views = {NOISY: noisy if task.media else raw, RAW: raw}
    return tuple(
        Rollout(prompt, completion, prompt if is_trained else None, arm, views)
        for arm, prompt, some, trained in ((RAW, raw, completions[0], ~chosen), (NOISY, noisy, completions[1], chosen))
        for completion, is_trained in zip(some, trained.tolist(), strict=True)
    )


@dataclass(frozen=True)
class VogueShaping:
    """A + g_out + g_per per token: g_out = min(|A| / beta_o, alpha_o u_out), and for completions of the noisy picture
    g_per = min(|A| / beta_p, alpha_p u_per) (arXiv:2510.01444, section 3). Both bonuses are >= 0, and at most |A| (1 / beta_o + 1 / beta_p)
    together: with the paper's values an advantage never changes its sign, and one of 0 stays 0.

    paper: u_per is half the symmetric KL over the whole vocabulary between the picture trained under and `view`, the raw one that the
    strategy `vogue` gives; u_out is the entropy under the picture trained under. released: on tokens of the raw picture alone, with `view`
    the noisy one; a coin a step, 1 - (step + 1) / steps in favour of the noisy view, decides whether g_per is added and whose u_out is
    taken; u_per = (P - Q)(log P - log Q) / 2 and u_out = -P log P (or Q's) of the sampled token alone; g_out's cap is on |A + g_per|.
    Metrics: vogue/view_uncertainty, vogue/view_capped and vogue/entropy_capped (shares of tokens at a cap), vogue/bonus.
    """

    mode: Mode = "paper"
    view: str = "raw"
    alpha_p: float = 1.0
    beta_p: float = 2.0
    alpha_o: float = 0.4
    beta_o: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        for name in ("alpha_p", "alpha_o"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite; got {getattr(self, name)}")
        for name in ("beta_p", "beta_o"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be >= 1, so that a bonus is at most the advantage; got {getattr(self, name)}")
        if self.mode == "paper" and 1 / self.beta_p + 1 / self.beta_o > 1:
            raise ValueError(
                f"beta_p {self.beta_p} and beta_o {self.beta_o} allow bonuses larger than the advantage; both 2 is the paper's"
            )
        paper = self.mode == "paper"
        needs = {"old_entropy", f"view_kl:{self.view}"} if paper else {"old_logps", f"view:{self.view}"}
        object.__setattr__(self, "needs", frozenset(needs))

    def __call__(self, x: ShaperInputs) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        if self.mode == "paper":
            per, out, sees_noisy = x.signals[f"view_kl:{self.view}"], x.signals["old_entropy"], x.arm == NOISY
        else:
            raw, noisy = x.signals["old_logps"], x.signals[f"view:{self.view}"]
            sees_noisy = bool(stream(x.seed, "vogue", "coin", x.step).random() < 1 - (x.step + 1) / x.max_steps)
            per, out = sampled_uncertainty(raw, noisy), sampled_entropy(noisy if sees_noisy else raw)
        g_per = np.minimum(np.abs(x.advantages) / self.beta_p, self.alpha_p * per) * sees_noisy
        held = x.advantages if self.mode == "paper" else x.advantages + g_per
        g_out = np.minimum(np.abs(held) / self.beta_o, self.alpha_o * out)
        shaped = (x.advantages + g_per + g_out).astype(np.float32)
        credited = x.advantages != 0
        return shaped, {
            "vogue/view_uncertainty": per,
            "vogue/view_capped": (sees_noisy & credited & (self.alpha_p * per >= np.abs(x.advantages) / self.beta_p)).astype(np.float32),
            "vogue/entropy_capped": (credited & (self.alpha_o * out >= np.abs(held) / self.beta_o)).astype(np.float32),
            "vogue/bonus": shaped - x.advantages,
        }


def sampled_uncertainty(raw: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """(P - Q)(log P - log Q) / 2 per token from its two log-probabilities: the sampled token's share of half the symmetric KL, >= 0."""
    return ((np.exp(raw) - np.exp(noisy)) * (raw - noisy) / 2).astype(np.float32)


def sampled_entropy(logps: np.ndarray) -> np.ndarray:
    """-P log P of the sampled token, in [0, 1/e]."""
    return (-np.exp(logps) * logps).astype(np.float32)
