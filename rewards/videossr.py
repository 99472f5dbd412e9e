"""VideoSSR's three rewards (arXiv:2511.06281; released reward_score/*.py) and the router among them by `meta["kind"]`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.errors import RewardError
from mmrl.types import Group, Task
from rewards.spans import parse_range, temporal_iou, true_span

SHAPES = ("circle", "square", "triangle")
"""Order of the three numbers in an answer."""

_DIGITS = re.compile(r"[0-9]+")


def count_credit(predicted: int, truth: int) -> float:
    """1 for the right number, else max(0, 1 - |predicted - truth| / truth); 0 where the truth is 0."""
    if predicted == truth:
        return 1.0
    return max(0.0, 1.0 - abs(predicted - truth) / truth) if truth else 0.0


def order_credit(predicted: str, truth: str) -> float:
    """1 - sum over the characters of how far each stands from its place / (n² // 2); 0 where `predicted`, stripped, is no permutation.

    The distance is of places in the timeline, not of digit values.
    """
    predicted = predicted.strip()
    if sorted(predicted) != sorted(truth):
        return 0.0
    moved = sum(abs(predicted.index(clip) - place) for place, clip in enumerate(truth))
    return 1.0 - moved / (len(truth) ** 2 // 2)


def read_counts(text: str) -> tuple[int, ...]:
    """All runs of digits in the text; numbers of more than nine digits become 10^9, which is as wrong."""
    runs = (run.lstrip("0") or "0" for run in _DIGITS.findall(text))
    return tuple(int(run) if len(run) <= 9 else 10**9 for run in runs)


def grounding(task: Task, text: str, exact: bool) -> float:
    """Temporal IoU of a strict "<number>-<number>" with `meta["span_s"]`, graded or exact alike."""
    truth, span = true_span(task), parse_range(text)
    return temporal_iou(span, truth) if span else 0.0


def counting(task: Task, text: str, exact: bool) -> float:
    """Mean credit of the three numbers against `meta["counts"]`; anything but three numbers earns 0. `exact`: share of right numbers."""
    given = task.meta.get("counts")
    counts = given if isinstance(given, Mapping) else {}
    if set(counts) != set(SHAPES) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise RewardError(f"task {task.id}: meta counts must give a whole number >= 0 for each of {', '.join(SHAPES)}; got {given!r}")
    predicted = read_counts(text)
    if len(predicted) != len(SHAPES):
        return 0.0
    pairs = [(number, counts[shape]) for number, shape in zip(predicted, SHAPES, strict=True)]
    return sum(float(number == truth) if exact else count_credit(number, truth) for number, truth in pairs) / len(SHAPES)


def jigsaw(task: Task, text: str, exact: bool) -> float:
    """How near the answered order is to `task.solution`; `exact`: 1 for the very order, else 0."""
    truth = task.solution
    if len(truth) < 2 or len(set(truth)) < len(truth) or truth != truth.strip():
        raise RewardError(f"task {task.id}: the solution of a jigsaw must be two or more different characters; got {truth!r}")
    return float(text.strip() == truth) if exact else order_credit(text, truth)


KINDS: Mapping[str, Callable[[Task, str, bool], float]] = {"grounding": grounding, "counting": counting, "jigsaw": jigsaw}
"""The kinds of tasks, by the names that stand in `meta["kind"]`: the one place on the rewards' side."""


@dataclass(frozen=True)
class VideoSSR:
    """VideoSSR's reward for the kind of the task: overlap of spans, nearness of counts, or nearness of an order. Range [0, 1].

    Reads `meta["kind"]`: "grounding" (`meta["span_s"]`), "counting" (`meta["counts"]`) or "jigsaw" (`task.solution`); another kind is a
    RewardError. The whole completion is the answer: no thought, no sentence around it. A blind guess earns something on each kind
    (`rewards.baselines` says how much): compare your curves with it.
    """

    exact: bool = False
    """Score as the paper's evaluation does: overlap, share of right counts, and 1 for the very order only."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        kind = task.meta.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise RewardError(f"task {task.id}: meta kind must be one of {', '.join(KINDS)}; got {kind!r}. Other tasks need another reward")
        return KINDS[kind](task, text, self.exact)
