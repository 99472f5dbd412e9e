"""Short answers to a list of questions about the picture, checked by rule (PEARL, arXiv:2511.18437).

The form is one line an answer, `1. answer`, numbers from 1 in the order of the questions:

    1. 3
    2. top left
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mmrl.types import Group, Task
from rewards.answer import after_think

_LINE = re.compile(r"[ \t]*(\d{1,4})\.[ \t]+(\S.*)")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Checklist:
    """Share of the items of `meta["checklist"]` that the completion answers rightly, each on a numbered line of its own. Range [0, 1].

    The form is `1. answer`, within the text after the thought. Other lines are ignored; an item whose number is missing or stands twice is
    wrong. A task without a checklist, or with an empty one, is not scored (NaN).
    """

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        items = task.meta.get("checklist")
        if not items:
            return float("nan")
        for number, item in enumerate(items, 1):
            if not isinstance(item, Mapping) or not str(item.get("answer", "")).strip():
                raise ValueError(f"task {task.id}: meta['checklist'], item {number} must have a question and an answer; got {item!r}")
        right = answered(items, text)
        return sum(right) / len(right)


def answered(items: Sequence[Mapping[str, Any]], text: str) -> list[bool]:
    """Whether each item of a checklist is answered rightly in a completion's text.

    Upper and lower case, white space and a full stop at the end do not count. Numbers are equal within a thousandth; any other answer must
    be the item's "answer" or one of its "aliases".
    """
    given: dict[int, str | None] = {}
    for line in (after_think(text) or "").splitlines():
        if found := _LINE.fullmatch(line.rstrip()):
            number = int(found[1])
            given[number] = None if number in given else found[2]
    return [_equal(given.get(number), item) for number, item in enumerate(items, 1)]


def _equal(given: str | None, item: Mapping[str, Any]) -> bool:
    if given is None:
        return False
    answer = _normal(given)
    for right in map(_normal, (item["answer"], *item.get("aliases", ()))):
        if answer == right:
            return True
        if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(right) and abs(float(answer) - float(right)) <= 1e-3 * abs(float(right)):
            return True
    return False


def _normal(text: Any) -> str:
    return "".join(str(text).casefold().split()).removesuffix(".")
