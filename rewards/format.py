"""Rewards for the form of a completion, whatever it says."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.types import Group
from rewards.answer import after_think

_ONLY_TOKENS = re.compile(r"(?:<\|(?:up|down|left|right)\|>)+")
_BOXED = re.compile(r"<think>\n.*\n</think>\n<answer>\n.*\\boxed\{.*\}.*\n</answer>", re.DOTALL)


@dataclass(frozen=True)
class ActionFormat:
    """Ariadne's r_act (arXiv:2511.00710): 1 when the text after the thought, without its white space, is action tokens only, else 0.

    Range {0, 1}. Says nothing about the moves.
    """

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, text: str) -> float:
        """The reward of one completion's text."""
        answer = after_think(text)
        return float(answer is not None and _ONLY_TOKENS.fullmatch("".join(answer.split())) is not None)


@dataclass(frozen=True)
class ThinkFormat:
    """Ariadne's r_think (arXiv:2511.00710): 0.5 for exactly one <think>, 0.5 for exactly one </think>. Range {0, 0.5, 1}.

    As in the paper the order of the two is not looked at, nor is the thought.
    """

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, text: str) -> float:
        """The reward of one completion's text."""
        return 0.5 * (text.count("<think>") == 1) + 0.5 * (text.count("</think>") == 1)


@dataclass(frozen=True)
class AnswerFormat:
    """1 when the text after the thought is one <answer>…</answer> that is not empty, with only white space around it. Range {0, 1}."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, text: str) -> float:
        """The reward of one completion's text."""
        answer = after_think(text)
        if answer is None or not (answer.startswith("<answer>") and answer.endswith("</answer>")):
            return 0.0
        inner = answer.removeprefix("<answer>").removesuffix("</answer>")
        return float(bool(inner.strip()) and "<answer>" not in inner and "</answer>" not in inner)


@dataclass(frozen=True)
class BoxedFormat:
    r"""Perception-R1's r_f (arXiv:2506.07218): 1 when the whole text is a thought in think tags and something with a `\boxed{…}` in answer
    tags, else 0. Range {0, 1}. The four tags stand on lines of their own, with nothing before, between or after.
    """

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, text: str) -> float:
        """The reward of one completion's text."""
        return float(_BOXED.fullmatch(text) is not None)
