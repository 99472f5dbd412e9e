from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.types import Group
from rewards.control import Shuffled


@dataclass(frozen=True)
class TextLength:
    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([len(r.completion.text) for r in group.rollouts], np.float32)


def test_values_stay_and_places_change(make_group: Callable[..., Group]) -> None:
    group = make_group(["a" * n for n in range(1, 33)])
    dealt = Shuffled(TextLength())(group)
    assert sorted(dealt) == list(range(1, 33))
    assert (dealt != TextLength()(group)).sum() > 20  # 32 cards: about one stays in its place


def test_a_deal_repeats_and_another_seed_deals_otherwise(make_group: Callable[..., Group]) -> None:
    group = make_group(["a" * n for n in range(1, 33)])
    assert (Shuffled(TextLength())(group) == Shuffled(TextLength())(group)).all()
    assert (Shuffled(TextLength(), seed=1)(group) != Shuffled(TextLength())(group)).any()


def test_the_deal_says_nothing_about_the_text(make_group: Callable[..., Group]) -> None:
    """Over 400 deals the first rollout gets the mean reward: 2.5 of 1..4, standard error 0.056."""
    firsts = [Shuffled(TextLength(), seed=n)(make_group(["a", "bb", "ccc", "dddd"]))[0] for n in range(400)]
    assert abs(float(np.mean(firsts)) - 2.5) < 5 * 0.056
