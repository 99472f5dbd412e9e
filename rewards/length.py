"""Penalties for length and repetition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mmrl.types import Group


@dataclass(frozen=True)
class OverlongPenalty:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13). Range [-1, 0].

    With n completion tokens (end token included) and free = max_completion_length - cache:
    0 up to `free`, (free - n) / cache up to `max_completion_length`, -1 beyond.
    """

    max_completion_length: int
    """Tokens; the paper's L_max is 20480. Usually the rollout's own `max_completion_length`."""
    cache: int
    """Tokens before the maximum over which the penalty grows; the paper's L_cache is 4096."""

    per_completion: ClassVar[bool] = True
    highest: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max_completion_length:
            raise ValueError(f"cache must be between 1 and max_completion_length = {self.max_completion_length}; got {self.cache}")

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(len(rollout.completion.ids)) for rollout in group.rollouts], np.float32)

    def value(self, num_tokens: int) -> float:
        """The reward of a completion of that many tokens."""
        over = num_tokens - (self.max_completion_length - self.cache)
        return -min(max(over / self.cache, 0.0), 1.0)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Minus the share of n-grams that were there before: -(1 - distinct / all). Range (-1, 0].

    The n-gram penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv:2502.03373), in the form Open-R1 uses:
    over lower-cased words between white space. Text with fewer than `ngram_size` words earns 0. Action tokens without white
    space are one word, so a straight corridor costs nothing; with white space between them it would.
    """

    ngram_size: int = 3
    """Words; Open-R1 uses 3, Perception-R1 20."""
    of: Literal["words", "tokens"] = "words"
    """"tokens" counts the completion's token ids instead: for languages written without white space."""

    per_completion: ClassVar[bool] = True
    highest: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.ngram_size < 1:
            raise ValueError(f"ngram_size must be at least 1; got {self.ngram_size}")
        if self.of not in ("words", "tokens"):
            raise ValueError(f"of must be words or tokens; got {self.of!r}")

    def __call__(self, group: Group) -> np.ndarray:
        completions = [rollout.completion for rollout in group.rollouts]
        if self.of == "tokens":
            return np.array([self._value(completion.ids.tolist()) for completion in completions], np.float32)
        return np.array([self.value(completion.text) for completion in completions], np.float32)

    def value(self, text: str) -> float:
        """The reward of one completion's text, by words."""
        return self._value(text.lower().split())

    def _value(self, units: Sequence[str | int]) -> float:
        ngrams = [tuple(units[i : i + self.ngram_size]) for i in range(len(units) - self.ngram_size + 1)]
        return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0
