"""NoisyRollout: some completions are sampled under a noisy picture, all are trained under the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.errors import TaskError
from mmrl.protocols import Perturbation, RolloutEngine, Sampling, Schedule
from mmrl.strategies.perturbed import perturbed
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker


@dataclass(frozen=True)
class NoisyRollout:
    """`num_generations` completions under the task's own media (arm "plain") and more under noisy media (arm "noisy"), one group with one
    baseline; all are trained under the clean prompt (NoisyRollout, arXiv:2504.13055, section 2 and algorithm 1).

    The ratio is pi / pi_old with both under the clean prompt, as in the paper: pi_old is the trainer's own forward, not what the noisy
    completions were sampled from. Their `sampling_logps` are of the noisy prompt, so a `correction` in the loss weighs them by
    pi_old(clean) / pi(noisy), which makes up for the noise as well; the paper has none.
    """

    perturbation: Perturbation
    """What makes the media noisy; it must have a `strength`."""
    strength: float | Schedule = 1.0
    """Factor on the perturbation's strength: a number in [0, 1], or a schedule of the run's step (the paper: sigmoid)."""
    noisy_generations: int | None = None
    """Completions under noisy media, beside the `num_generations` under clean ones; null = as many (n1 = n2 in the paper), 0 = none."""
    arms: ClassVar[tuple[str, ...]] = ("plain", "noisy")

    def __post_init__(self) -> None:
        perturbation: Any = self.perturbation
        if not is_dataclass(perturbation) or "strength" not in {item.name for item in fields(perturbation)}:
            name = type(self.perturbation).__name__
            raise ValueError(f"perturbation: {name} has no strength to anneal; take one that has, such as diffusion_noise")
        if self.noisy_generations is not None and self.noisy_generations < 0:
            raise ValueError(f"noisy_generations must be 0 or more, or null; got {self.noisy_generations}")

    def check(self, task: Task, num_generations: int) -> None:
        """TaskError for a task without media, which no noise can change."""
        if not task.media:
            raise TaskError(f"task {task.id}: noisy_rollout perturbs pictures or videos, and the task has none")

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: PromptMaker,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        for task in tasks:
            self.check(task, num_generations)
        prompts = make_prompts(tasks)
        clean = engine.generate(prompts, num_generations, sampling)
        count = num_generations if self.noisy_generations is None else self.noisy_generations
        noise = self.at(sampling.schedule_step)
        noisy_prompts = make_prompts([perturbed(task, noise, "noisy", sampling) for task in tasks]) if count else prompts
        noisy = engine.generate(noisy_prompts, count, sampling) if count else [[] for _ in tasks]
        return [
            Group(
                task,
                (
                    *(Rollout(prompt=own, completion=c, train_prompt=own) for c in clean[n]),
                    *(Rollout(prompt=noisy_prompts[n], completion=c, train_prompt=own, arm="noisy") for c in noisy[n]),
                ),
            )
            for n, (task, own) in enumerate(zip(tasks, prompts, strict=True))
        ]

    def at(self, step: int) -> Perturbation:
        """The perturbation with the strength it has at a step of the run."""
        factor = self.strength(step) if callable(self.strength) else self.strength
        perturbation: Any = self.perturbation
        return replace(perturbation, strength=factor * perturbation.strength)
