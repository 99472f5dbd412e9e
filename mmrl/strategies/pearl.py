"""PEARL: first what is in the picture, then, if anything was seen, the problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmrl.errors import TaskError
from mmrl.protocols import Reward, RolloutEngine, Sampling
from mmrl.types import Group, Rollout, Task

if TYPE_CHECKING:
    from mmrl.models.processor import PromptMaker

INSTRUCTION = "Look at what is shown and answer each question. Write one line for each, its number, a point and the answer: 1. answer"


@dataclass(frozen=True)
class PEARL:
    """Two stages (PEARL, arXiv:2511.18437): `num_generations` answers to the task's checklist of perception questions (arm "perception"),
    then, where their mean score is above `gate`, as many completions of the task itself (arm "plain"); all are trained.

    The checklist is `task.meta["checklist"]`, a list of {"question", "answer", "options"}; its questions are asked in one message after the
    task's media, with nothing of the task's own words, and its answers are never shown. A gated task has perception rows only; these all
    score 0, so it changes nothing.
    """

    checklist: Reward
    """Share of the checklist that a perception answer gets right, in [0, 1]; name the same reward in `rewards`, for the arm."""
    gate: float | None = 0.0
    """The problem is tried only if the mean score is above this (a guess rate, say); null = always."""
    max_answer_length: int = 256
    """Tokens of a perception answer."""
    instruction: str = INSTRUCTION
    """What stands before the questions."""
    arms: ClassVar[tuple[str, ...]] = ("plain", "perception")
    separate_arms: ClassVar[bool] = True
    gates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gate is not None and not 0 <= self.gate < 1:
            raise ValueError(f"gate must lie in [0, 1), or be null; got {self.gate}")
        if self.max_answer_length < 1:
            raise ValueError(f"max_answer_length must be 1 or more; got {self.max_answer_length}")

    def check(self, task: Task, num_generations: int) -> None:
        """TaskError for a task without a checklist or without media, or whose checklist is not of the form above."""
        self.perception_task(task)

    def __call__(
        self,
        tasks: Sequence[Task],
        engine: RolloutEngine,
        make_prompts: PromptMaker,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Group]:
        asked = make_prompts([self.perception_task(task) for task in tasks])
        answers = engine.generate(asked, num_generations, replace(sampling, max_completion_length=self.max_answer_length, stop=()))
        groups = [
            Group(task, tuple(Rollout(prompt, c, train_prompt=prompt, arm="perception", attempt=False) for c in completions))
            for task, prompt, completions in zip(tasks, asked, answers, strict=True)
        ]
        open_ones = [n for n, group in enumerate(groups) if self.passes(group)]
        prompts = make_prompts([tasks[n] for n in open_ones])
        sampled = engine.generate(prompts, num_generations, sampling) if prompts else []
        for n, prompt, completions in zip(open_ones, prompts, sampled, strict=True):
            rows = tuple(Rollout(prompt, c, train_prompt=prompt) for c in completions)
            groups[n] = replace(groups[n], rollouts=(*groups[n].rollouts, *rows))
        return groups

    def passes(self, perception: Group) -> bool:
        """Whether enough was seen to go on; answers that were not scored (NaN) are left out."""
        return self.gate is None or float(np.nan_to_num(np.nanmean(self.checklist(perception)))) > self.gate

    def perception_task(self, task: Task) -> Task:
        """The task's media with its checklist as the only question."""
        if not task.media:
            raise TaskError(f"task {task.id}: pearl asks what is in a picture or video, and the task has none")
        lines = [f"{number}. {text}" for number, text in enumerate(_questions(task), 1)]
        parts: list[Mapping[str, Any]] = [{"type": "video" if medium.is_video else "image"} for medium in task.media]
        text = "\n".join([self.instruction, *lines])
        return replace(task, id=f"{task.id}#perception", messages=({"role": "user", "content": [*parts, {"type": "text", "text": text}]},))


def _questions(task: Task) -> list[str]:
    items = task.meta.get("checklist")
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise TaskError(f'task {task.id}: pearl needs meta["checklist"], a list of {{"question", "answer", "options"}}; got {items!r}')
    lines = []
    for number, item in enumerate(items):
        question, options = (item.get("question"), item.get("options", ())) if isinstance(item, Mapping) else (None, ())
        if not isinstance(question, str) or not question.strip():
            raise TaskError(f'task {task.id}: checklist.{number}: got {item!r}; an item is {{"question", "answer", "options"}}')
        lines.append(f"{question} ({', '.join(map(str, options))})" if options else question)
    return lines
