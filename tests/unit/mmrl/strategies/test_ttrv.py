"""TTRV's rollouts: all vote, the first of them are trained."""

import numpy as np
import pytest

from mmrl.errors import RecipeError
from mmrl.protocols import Sampling
from mmrl.strategies.plain import Plain
from mmrl.strategies.ttrv import TTRV

SAMPLING = Sampling(max_completion_length=4, seed=3, step=2)


def test_the_first_are_trained_and_all_are_sampled_alike(engine, make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84)), picture_task("b", (56, 56))]
    groups = TTRV(trained=2)(tasks, engine, make_prompts, 5, SAMPLING)
    for group, own in zip(groups, Plain()(tasks, engine, make_prompts, 5, SAMPLING), strict=True):
        assert [(r.arm, r.train_prompt is r.prompt, r.attempt) for r in group.rollouts] == [("plain", True, True)] * 2 + [
            ("vote", False, True)
        ] * 3
        assert all(r.train_prompt is None for r in group.rollouts[2:])
        assert all(np.array_equal(a.completion.ids, b.completion.ids) for a, b in zip(group.rollouts, own.rollouts, strict=True))


def test_no_more_can_be_trained_than_vote(engine, make_prompts, picture_task):
    with pytest.raises(RecipeError, match=r"rollout.strategy.trained: got 6; only rollout.num_generations, which is 5, completions vote"):
        TTRV(trained=6)([picture_task("a", (56, 84))], engine, make_prompts, 5, SAMPLING)
    with pytest.raises(ValueError, match="trained must be 1 or more; got 0"):
        TTRV(trained=0)
