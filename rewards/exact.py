"""Exact match with the task's solution."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mmrl.types import Group, Task
from rewards.answer import after_think, answer_tag, boxed

_EXTRACT: Mapping[str, Callable[[str], str | None]] = {"answer": answer_tag, "boxed": boxed, "text": after_think}


@dataclass(frozen=True)
class ExactMatch:
    """1 when the extracted answer equals `task.solution`, else 0; no answer earns 0. Range {0, 1}.

    Runs of white space count as one space, outer white space as none. Nothing else is made equal: "0.5" is not "1/2".
    """

    answer: Literal["answer", "boxed", "text"] = "answer"
    r"""Where the answer stands after the thought: in the last <answer>…</answer>, in the last \boxed{…}, or all of the text."""
    ignore_case: bool = False

    per_completion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.answer not in _EXTRACT:
            raise ValueError(f"answer must be one of {', '.join(_EXTRACT)}; got {self.answer!r}")

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        solution = self._normal(task.solution)
        if not solution:
            raise ValueError(f"task {task.id}: the solution is empty, so no answer can match it")
        answer = _EXTRACT[self.answer](text)
        return float(answer is not None and self._normal(answer) == solution)

    def _normal(self, text: str) -> str:
        joined = " ".join(text.split())
        return joined.casefold() if self.ignore_case else joined
