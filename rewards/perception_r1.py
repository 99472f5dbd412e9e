"""Perception-R1's visual perception reward (arXiv:2506.07218): how many known facts about the picture a completion states."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mmrl.errors import Unscored
from mmrl.protocols import Judge
from mmrl.types import Group, Task


@dataclass(frozen=True)
class PerceptionR1:
    """Share of the task's visual facts that the whole completion states, as a judge finds: r_v = sum_j o_j / m. Range [0, 1].

    m is the number of facts; a fact without a verdict counts as not stated. A task without facts is not scored (NaN). Where the judge has
    no verdict for a completion (an outage, a malformed answer), its whole group is given up with the reason, so that no completion loses
    anything by it: the group is then trained on the other rewards.
    """

    judge: Judge
    """Who decides: {use: rule} or {use: openai, …}."""
    facts: str = "visual_facts"
    """Key of the task's meta: a list of sentences, or one text in which they stand as <info1>…</info1><info2>…</info2>."""
    per: Literal["fact", "100 words"] = "fact"
    """What hits are divided by. "100 words" of the completion tells statement from laundry list: watch it with weight 0. Range [0, ∞)."""

    per_completion: ClassVar[bool] = False
    concurrent: ClassVar[bool] = True
    below_success: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        facts = facts_of(group.task, self.facts)
        if not facts:
            return np.full(len(group.rollouts), np.nan, np.float32)
        texts = [rollout.completion.text for rollout in group.rollouts]
        verdicts = self.judge(facts, texts)
        if len(verdicts) != len(texts) or any(not verdict.kind and len(verdict.scores) != len(facts) for verdict in verdicts):
            raise ValueError(
                f"task {group.task.id}: the judge {type(self.judge).__name__} was given {len(facts)} facts and {len(texts)} texts and must "
                f"answer with a verdict for each text, with a score for each fact; got {verdicts}"
            )
        without = [verdict for verdict in verdicts if verdict.kind]
        if without:
            first = without[0]
            raise Unscored(first.kind, f"no verdict for {len(without)} of {len(texts)} completions; {first.reason}")
        return np.array([self._value(verdict.scores, text) for verdict, text in zip(verdicts, texts, strict=True)], np.float32)

    def _value(self, scores: tuple[float, ...], text: str) -> float:
        if self.per == "fact":
            return sum(scores) / len(scores)
        return 100 * sum(scores) / max(1, len(text.split()))


def facts_of(task: Task, key: str) -> tuple[str, ...]:
    """The task's visual facts; () where meta has none. ValueError for what is no list of sentences."""
    given = task.meta.get(key)
    if given in (None, "", [], ()):
        return ()
    if isinstance(given, str):
        given = re.findall(r"<info\d+>\s*(.*?)\s*</info\d+>", given, re.DOTALL) or [""]
    if not isinstance(given, list | tuple) or not all(isinstance(fact, str) and fact.strip() for fact in given):
        raise ValueError(
            f"task {task.id}: meta[{key!r}] must be a list of sentences, or a text with them in <info1>…</info1> tags; "
            f"got {task.meta[key]!r}"
        )
    return tuple(given)
