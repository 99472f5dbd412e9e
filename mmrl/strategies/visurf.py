"""ViSurf: the label is one more completion of the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from mmrl.errors import TaskError
from mmrl.protocols import RolloutEngine, RolloutStrategy, Sampling
from mmrl.strategies.plain import Plain
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker

SOLUTION = "{solution}"
THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True)
class ViSurf:
    """The groups of another strategy, each with the task's solution as one more row to train (arm "label"; ViSurf, arXiv:2510.10606).

    The label is written in the model's own output form, so that its tokens teach the answer and not the form, and ends with the model's end
    token. It was not sampled: its `sampling_logps` are NaN, importance corrections leave it alone, success rates do not count it, and its
    ratio starts at 1, at the trainer's own forward. A label with a thought is refused: thoughts are learned from rollouts only.
    """

    template: str = SOLUTION
    """The answer's form: "<answer>{solution}</answer>", say; {solution} stands for the task's solution."""
    of: RolloutStrategy = field(default_factory=Plain)
    """What samples the other rows."""
    arms: ClassVar[tuple[str, ...]] = ("plain", "label")

    def __post_init__(self) -> None:
        if SOLUTION not in self.template:
            raise ValueError(f"template must hold {SOLUTION}; got {self.template!r}")
        if any(tag in self.template for tag in THOUGHT):
            raise ValueError(f"template holds a thought, {self.template!r}; write the answer only: thoughts are learned from rollouts")

    def check(self, task: Task, num_generations: int) -> None:
        """TaskError for a task without a solution, or whose solution holds a thought."""
        self.label(task)
        if hasattr(self.of, "check"):
            self.of.check(task, num_generations)  # pyright: ignore[reportAttributeAccessIssue] (not every strategy has it)

    def label(self, task: Task) -> str:
        """The task's solution in the model's form."""
        if not task.solution.strip():
            raise TaskError(f"task {task.id}: visurf trains on solutions, and the task has none")
        if any(tag in task.solution for tag in THOUGHT):
            raise TaskError(f"task {task.id}: the solution holds a thought (<think>); give the answer only")
        return self.template.replace(SOLUTION, task.solution)

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: PromptMaker,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        groups = self.of(tasks, engine, make_prompts, num_generations, sampling)
        return [replace(group, rollouts=(*group.rollouts, self._row(group, make_prompts, sampling))) for group in groups]

    def _row(self, group: Group, make_prompts: PromptMaker, sampling: Sampling) -> Rollout:
        label = make_prompts.written(self.label(group.task))
        if len(label.ids) > sampling.max_completion_length:
            raise TaskError(
                f"task {group.task.id}: its label has {len(label.ids)} tokens, and a completion at most {sampling.max_completion_length}; "
                "raise rollout.max_completion_length"
            )
        prompt = next((r.prompt for r in group.rollouts if r.arm == "plain"), None)
        if prompt is None:
            (prompt,) = make_prompts([group.task])
        version = group.rollouts[0].completion.policy_version
        return Rollout(prompt, replace(label, policy_version=version), train_prompt=prompt, arm="label", attempt=False)
