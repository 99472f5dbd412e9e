"""The alarm for collapse: what sets it off, what does not, and that a resumed run goes on with it."""

import json
import math

import pytest

from mmrl.progress import Progressed
from mmrl.recipe import CollapseSection

RULE = CollapseSection("perception", window=2)


def run(rows, rule=RULE, state=None):
    """Rows of (entropy, perception, reward); what was said at each."""
    state = state or Progressed()
    return state, [state.look(rule, dict(zip(("entropy", "perception/kl", "reward"), row, strict=True))) for row in rows]


START = [(1.0, 0.1, 0.5), (1.0, 0.1, 0.5)]


def test_entropy_twice_its_start_is_a_collapse():
    state, said = run([*START, (2.0, 0.1, 0.9), (2.2, 0.1, 0.9)])
    assert said[:3] == [None] * 3
    assert said[3] == (
        "collapse: entropy 1 -> 2.1, perception/kl 0.1 -> 0.1, reward 0.5 -> 0.9 since the start; the weight of 'perception' is now 0 of "
        "the recipe's"
    )
    assert state.factor == 0


@pytest.mark.parametrize(
    ("row", "alarm"),
    [
        ((1.3, 0.13, 0.4), True),  # both 30 % up, reward .1 down
        ((1.3, 0.13, 0.46), False),  # reward hardly down
        ((1.3, 0.11, 0.4), False),  # perception hardly up: an entropy bonus, say
        ((1.1, 0.5, 0.4), False),  # entropy hardly up: the term does what it should
        ((2.0, 0.1, 0.5), False),  # twice, not more
    ],
)
def test_entropy_and_term_rise_together_while_the_reward_falls(row, alarm):
    state, said = run([*START, row, row])
    assert (said[-1] is not None) == alarm
    assert state.factor == (0 if alarm else 1)


def test_a_weight_is_lowered_again_and_again():
    state, said = run([*START] + [(3.0, 0.1, 0.5)] * 6, CollapseSection("perception", window=2, factor=0.5))
    assert [text is not None for text in said] == [False] * 2 + [False, True] * 3
    assert state.factor == 0.125


def test_steps_without_the_numbers_do_not_count():
    state = Progressed()
    for metrics in ({}, {"entropy": 9.0, "reward": 0.0}, {"entropy": math.nan, "perception/kl": 1.0, "reward": 0.0}):
        assert state.look(RULE, metrics) is None
    assert state.start == []


def test_it_goes_on_from_its_saved_state():
    rows = [*START, (2.5, 0.1, 0.5), (2.5, 0.1, 0.5)]
    whole, _ = run(rows)
    for stop in range(len(rows)):
        half, _ = run(rows[:stop])
        again = Progressed(**json.loads(json.dumps(vars(half))))
        assert vars(run(rows[stop:], state=again)[0]) == vars(whole)
