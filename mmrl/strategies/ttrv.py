"""TTRV: many completions vote, some of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmrl.errors import RecipeError
from mmrl.protocols import RolloutEngine, Sampling
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker


@dataclass(frozen=True)
class TTRV:
    """`num_generations` completions of the task's own prompt, N, all of which vote; the first `trained` of them, M, are trained (arm
    "plain"), the others only compared with (arm "vote"; TTRV, arXiv:2510.06783).

    They are the first and not the best: choosing by reward would bias the gradient. The reward `votes` counts all N; under
    `{use: per_arm, arms: [plain], of: ...}` the baseline is that of the M rows, as in the authors' code, else of all N, as in the paper.
    """

    trained: int = 16
    """M, 1 or more and at most `num_generations`."""
    arms: ClassVar[tuple[str, ...]] = ("plain", "vote")

    def __post_init__(self) -> None:
        if self.trained < 1:
            raise ValueError(f"trained must be 1 or more; got {self.trained}")

    def check(self, task: Task, num_generations: int) -> None:
        """RecipeError if more completions are to be trained than there are."""
        if self.trained > num_generations:
            raise RecipeError(
                f"rollout.strategy.trained: got {self.trained}; only rollout.num_generations, which is {num_generations}, completions vote"
            )

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
        sampled = engine.generate(prompts, num_generations, sampling)
        return [
            Group(
                task,
                tuple(
                    Rollout(prompt, c, train_prompt=prompt) if n < self.trained else Rollout(prompt, c, train_prompt=None, arm="vote")
                    for n, c in enumerate(completions)
                ),
            )
            for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
        ]
