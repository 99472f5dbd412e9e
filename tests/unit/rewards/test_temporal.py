"""T-GRPO's bonus: alpha for correct ordered completions if the ordered arm is right often enough beside the shuffled one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from mmrl.types import Completion, Group, Prompt, Rollout, Task
from rewards.temporal import TemporalBonus

NAN = float("nan")


@dataclass(frozen=True)
class Read:
    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.text) for r in group.rollouts], np.float32)


def group(ordered, shuffled):
    task = Task("clip", (), (), "", {})
    prompt = Prompt(task, "", np.array([0]), {})

    def rollout(accuracy, arm):
        return Rollout(prompt, Completion(np.array([1]), str(accuracy), np.zeros(1, np.float32), "stop", 0), prompt, arm)

    return Group(task, (*(rollout(a, "plain") for a in ordered), *(rollout(a, "shuffled") for a in shuffled)))


@pytest.mark.parametrize(
    ("ordered", "shuffled", "bonus"),
    [
        ([1, 1, 0, 0], [1, 0], [0.3, 0.3, 0, 0, 0, 0]),  # 0.5 >= 0.8 * 0.5; only to the correct ones, never to shuffled ones
        ([1, 1, 0, 0], [1, 1], [0, 0, 0, 0, 0, 0]),  # 0.5 < 0.8 * 1
        ([1, 1, 1, 1, 0], [1, 1], [0.3, 0.3, 0.3, 0.3, 0, 0, 0]),  # 0.8 >= 0.8: reaching it is enough
        ([0, 0], [0], [0, 0, 0]),  # nothing correct, nothing to reward
        ([1, 0.05], [0], [0.3, 0, 0]),  # 0.05 is not above 0.1
        ([1, NAN], [0, NAN], [0.3, NAN, 0, NAN]),  # what has no accuracy has no bonus, and is in no mean
    ],
)
def test_bonus_by_hand(ordered, shuffled, bonus):
    np.testing.assert_allclose(TemporalBonus(Read())(group(ordered, shuffled)), np.array(bonus, np.float32))


def test_mu_and_alpha_are_fields():
    assert TemporalBonus(Read(), alpha=0.5, mu=0.5)(group([1, 0], [1, 1])).tolist() == [0.5, 0, 0, 0]
    assert TemporalBonus(Read(), alpha=0.0)(group([1, 0], [0])).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="mu must be finite and 0 or more; got -1"):
        TemporalBonus(Read(), mu=-1)


@pytest.mark.parametrize(("ordered", "shuffled"), [([1, 0], []), ([], [1]), ([NAN], [1]), ([1], [NAN])])
def test_without_two_arms_to_compare_it_is_not_scored(ordered, shuffled):
    assert np.isnan(TemporalBonus(Read())(group(ordered, shuffled))).all()
