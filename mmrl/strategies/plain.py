"""The plain strategy: `num_generations` completions of every task's own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmrl.protocols import RolloutEngine, Sampling
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker


@dataclass(frozen=True)
class Plain:
    """GRPO's rollout (arXiv:2402.03300): every completion is sampled and trained under the same prompt."""

    arms: ClassVar[tuple[str, ...]] = ("plain",)

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: PromptMaker,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        prompts = make_prompts(tasks)
        sampled = engine.generate(prompts, num_generations, sampling)
        return [
            Group(task, tuple(Rollout(prompt=prompt, completion=c, train_prompt=prompt) for c in completions))
            for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
        ]
