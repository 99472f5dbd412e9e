"""The plain strategy: `num_generations` completions of every task's own prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmrl.protocols import RolloutEngine, Sampling
from mmrl.types import Group, Prompt, Rollout, Task


@dataclass(frozen=True)
class Plain:
    """GRPO's rollout (arXiv:2402.03300): every completion is sampled and trained under the same prompt."""

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: Callable[[Sequence[Task]], list[Prompt]],
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        prompts = make_prompts(tasks)
        sampled = engine.generate(prompts, num_generations, sampling)
        return [
            Group(task, tuple(Rollout(prompt=prompt, completion=c, train_prompt=prompt) for c in completions))
            for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
        ]
