"""Rewards without labels: a group's completions vote on the answer (TTRV, arXiv:2510.06783)."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, log
from typing import ClassVar, Literal, get_args

import numpy as np

from mmrl.protocols import Reward
from mmrl.types import Group
from rewards.answer import after_think, boxed

Kind = Literal["choice", "open", "text"]
Entropy = Literal["normalised", "raw", "self"]

_LETTER = re.compile(r"(?<![A-Z0-9])[A-D](?![A-Z0-9])")
_SENTENCE = re.compile(r"the answer is\s*:?\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:/\d+)?")


def choice(text: str) -> str | None:
    """The last letter A to D that stands alone, whatever its case."""
    found = _LETTER.findall((after_think(text) or "").upper())
    return found[-1] if found else None


def open_answer(text: str) -> str | None:
    r"""What stands in the last \boxed{…}, else after the last "the answer is", else the last number; numbers in one form."""
    tail = after_think(text) or ""
    sentences = _SENTENCE.findall(tail)
    numbers = _NUMBER.findall(tail)
    found = boxed(text) or (sentences[-1] if sentences else None) or (numbers[-1] if numbers else None)
    return canonical(found) if found is not None else None


def whole(text: str) -> str | None:
    """All that follows the thought, runs of white space as one space."""
    return " ".join((after_think(text) or "").split()) or None


def canonical(text: str) -> str | None:
    """An answer in the form in which equal ones are equal: no case, no outer white space, full stop or dollar; "0.50", ".5" and "1/2" are
    one. None if nothing is left."""
    plain = " ".join(text.split()).lstrip(" $").rstrip(" .$").casefold()
    try:
        return str(Fraction(plain.replace(",", "").replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return plain or None


_READ: Mapping[str, Callable[[str], str | None]] = {"choice": choice, "open": open_answer, "text": whole}


def answers_of(group: Group, kind: Kind) -> list[str | None]:
    """G answers; None = could not be read."""
    return [_READ[kind](rollout.completion.text) for rollout in group.rollouts]


def entropy(answers: Sequence[str | None]) -> tuple[float, float]:
    """H in nats of the answers' distribution, what could not be read being one more answer, and H / ln U for U answers (0 for one)."""
    counts = Counter(answers)
    shares = [count / len(answers) for count in counts.values()]
    nats = -sum(p * log(p) for p in shares)
    return nats, nats / log(len(counts)) if len(counts) > 1 else 0.0


def winner(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer that could be read, the first one on a tie."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


@dataclass(frozen=True)
class Votes:
    """R_j = p(answer_j) + alpha * r2: how often a completion's answer occurs among the group's, and how sure the group is (TTRV,
    arXiv:2510.06783). Needs no label. Range [-alpha, 1] with "normalised".

    r2 by `entropy`: "normalised" -H / ln U (the authors' code), "raw" -H (the paper), "self" ln p(answer_j). The first two are one number
    for the whole group, so any baseline inside the group takes them out again: under `grpo` alpha moves logged rewards and nothing else,
    which is what the paper and its code do. For alpha to matter take the advantage `batch_baseline`, which favours sure tasks, or "self".
    A completion whose answer cannot be read has p = 0 and wins nothing; if more than half are such, the task is not scored.
    """

    answers: Kind = "choice"
    r"""How an answer is read: "choice", the last letter A to D; "open", \boxed{…}, "the answer is …" or the last number; "text", all."""
    alpha: float = 0.75
    """Weight of r2."""
    entropy: Entropy = "normalised"
    skip_above: float | None = None
    """Tasks with H / ln U above this are not scored: too doubtful to learn from (0.95, say); null = none."""
    per_completion: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, allowed in (("answers", get_args(Kind)), ("entropy", get_args(Entropy))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if not (isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha must be finite and 0 or more; got {self.alpha}")

    def __call__(self, group: Group) -> np.ndarray:
        return self.rewards(answers_of(group, self.answers))

    def rewards(self, answers: Sequence[str | None]) -> np.ndarray:
        """float32 [N] from the N answers, None = could not be read; all NaN = not scored."""
        number, counts = len(answers), Counter(answers)
        nats, share = entropy(answers)
        if counts[None] > number / 2 or (self.skip_above is not None and share > self.skip_above):
            return np.full(number, np.nan, np.float32)
        frequency = np.array([0.0 if answer is None else counts[answer] / number for answer in answers])
        if self.entropy == "self":
            sure = np.log(np.maximum(frequency, 1 / number))
        else:
            sure = np.full(number, -share if self.entropy == "normalised" else -nats)
        return (frequency + self.alpha * sure).astype(np.float32)


@dataclass(frozen=True)
class Majority:
    """For watching votes, with weight 0: the share of the most frequent answer, or with `reward` what that reward gives to it. One number
    for the whole group; not scored where no answer could be read."""

    answers: Kind = "choice"
    """As in `votes`."""
    reward: Reward | None = None
    """A reward with labels, for the majority's accuracy; null = the majority's share."""
    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        answers = answers_of(group, self.answers)
        best = winner(answers)
        if best is None:
            value = np.nan
        elif self.reward is None:
            value = answers.count(best) / len(answers)
        else:
            value = self.reward(group)[answers.index(best)]
        return np.full(len(answers), value, np.float32)


@dataclass(frozen=True)
class VoteEntropy:
    """For watching votes, with weight 0: H / ln U of the group's answers, in [0, 1]; 0 = all agree."""

    answers: Kind = "choice"
    """As in `votes`."""
    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        answers = answers_of(group, self.answers)
        return np.full(len(answers), entropy(answers)[1], np.float32)
