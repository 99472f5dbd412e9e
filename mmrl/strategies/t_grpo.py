"""T-GRPO: the same question about the same frames in another order, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmrl.errors import TaskError
from mmrl.protocols import Perturbation, RolloutEngine, Sampling
from mmrl.strategies.perturbed import perturbed
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker


@dataclass(frozen=True)
class TGRPO:
    """`num_generations` completions under the video as it is (arm "plain") and half as many under its frames in another order (arm
    "shuffled"), which are never trained and share no baseline with the others (T-GRPO of Video-R1, arXiv:2503.21776, section 3.1).

    The reward `temporal_bonus` compares the two arms; `per_arm` with `arms: [plain]` keeps the shuffled one out of the baseline.
    """

    perturbation: Perturbation
    """What becomes of the order: `frame_shuffle` in the paper."""
    shuffled_generations: int | None = None
    """Completions under the other order; null = half of `num_generations`, as in the authors' code."""
    arms: ClassVar[tuple[str, ...]] = ("plain", "shuffled")
    separate_arms: ClassVar[bool] = True
    needs_video: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.shuffled_generations is not None and self.shuffled_generations < 1:
            raise ValueError(f"shuffled_generations must be 1 or more, or null; got {self.shuffled_generations}")

    def check(self, task: Task, num_generations: int) -> None:
        """TaskError for a task without a video of two frames or more."""
        if not any(medium.is_video and len(medium.frames) > 1 for medium in task.media):
            raise TaskError(f"task {task.id}: t_grpo compares orders of frames, and the task has no video of two frames or more")

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
        ordered = engine.generate(prompts, num_generations, sampling)
        others = make_prompts([perturbed(task, self.perturbation, "shuffled", sampling) for task in tasks])
        shuffled = engine.generate(others, self.shuffled_generations or max(1, num_generations // 2), sampling)
        return [
            Group(
                task,
                (
                    *(Rollout(prompt=own, completion=c, train_prompt=own) for c in ordered[n]),
                    *(Rollout(prompt=other, completion=c, train_prompt=None, arm="shuffled", attempt=False) for c in shuffled[n]),
                ),
            )
            for n, (task, own, other) in enumerate(zip(tasks, prompts, others, strict=True))
        ]
