import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from mmrl.errors import RewardError, Unscored
from mmrl.loop.score import WeightedReward, score
from mmrl.types import Completion, Group, Prompt, Rollout, Task

NAN = float("nan")


def group(*texts: str, name: str = "toy/1") -> Group:
    task = Task(name, (), (), "", {})
    prompt = Prompt(task, "", np.array([1]), {})
    return Group(
        task, tuple(Rollout(prompt, Completion(np.array([1]), text, np.zeros(1, np.float32), "stop", 0), prompt) for text in texts)
    )


@dataclass(frozen=True)
class Read:
    """The number in the text; "bad" raises."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([float(rollout.completion.text) for rollout in group.rollouts], np.float32)


@dataclass(frozen=True)
class ReadTogether(Read):
    per_completion: ClassVar[bool] = False


@dataclass(frozen=True)
class Return:
    """Whatever the test wants."""

    make: Callable[[Group], Any]
    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> Any:
        return self.make(group)


def read(weight: float = 1.0, name: str = "read") -> WeightedReward:
    return WeightedReward(Read(), weight, name)


def values(*numbers: float) -> Return:
    return Return(lambda group: np.array(numbers, np.float32))


def test_weighted_sum_keeps_parts_unweighted():
    """2·[1, 3] - 0.5·[4, 2] = [0, 5]."""
    (scored,) = score([group("1", "3")], [read(2.0), WeightedReward(values(4, 2), -0.5, "other")])
    assert scored.rewards.dtype == np.float32
    assert scored.rewards.tolist() == [0, 5]
    assert {name: part.tolist() for name, part in scored.parts.items()} == {"read": [1, 3], "other": [4, 2]}
    assert scored.tracebacks == {}


def test_failure_costs_one_rollout():
    (scored,) = score([group("1", "bad", "3")], [read()], reward_failure_limit=0.5)
    np.testing.assert_array_equal(scored.rewards, np.array([1, NAN, 3], np.float32))
    first, second, third = scored.tracebacks["read"]
    assert first is None
    assert third is None
    assert "could not convert string to float: 'bad'" in second


def test_failure_of_a_group_reward_costs_the_group():
    """8 of 24 rollouts failed: below the limit of one half."""
    groups = [group(*"12345678"), group("bad", *"2345678"), group(*"12345678")]
    scored = score(groups, [WeightedReward(ReadTogether(), 1.0, "read")], reward_failure_limit=0.5)
    assert [int(np.isnan(item.rewards).sum()) for item in scored] == [0, 8, 0]
    assert all("'bad'" in text for text in scored[1].tracebacks["read"])


def test_a_failed_part_makes_the_sum_nan_and_the_other_part_stays():
    (scored,) = score([group("1", "bad", "3")], [read(), WeightedReward(values(1, 1, 1), 1.0, "other")], reward_failure_limit=0.5)
    np.testing.assert_array_equal(scored.rewards, np.array([2, NAN, 4], np.float32))
    assert scored.parts["other"].tolist() == [1, 1, 1]


def test_a_part_that_failed_for_the_whole_group_is_not_left_out():
    """Unlike one that was not scored: the first group's sum is NaN, not the other part alone."""
    rewards = [WeightedReward(ReadTogether(), 1.0, "fails"), WeightedReward(values(1, 2), 1.0, "other")]
    first, second = score([group("bad", "bad"), group("3", "4")], rewards, reward_failure_limit=0.5)
    assert np.isnan(first.rewards).all()
    assert second.rewards.tolist() == [4, 6]


def test_weight_zero_is_logged_and_harmless():
    """It fails on every rollout, and neither the sum nor the limit minds."""
    (scored,) = score([group("bad", "bad")], [read(0.0), WeightedReward(values(1, 2), 1.0, "other")], reward_failure_limit=0.0)
    assert scored.rewards.tolist() == [1, 2]
    assert np.isnan(scored.parts["read"]).all()
    assert len(scored.tracebacks["read"]) == 2


def test_limit_is_a_share_of_the_step():
    """1 of 20 is 0.05, not above it; 2 of 20 is."""
    groups = [group(*"1234567890", name="toy/1"), group(*"123456789", "bad", name="toy/2")]
    assert np.isnan(score(groups, [read()])[1].rewards).sum() == 1
    groups[0] = group(*"123456789", "worse", name="toy/1")
    with pytest.raises(RewardError, match=r"2 of the step's 20 rollouts could not be scored, reward_failure_limit is 0.05") as caught:
        score(groups, [read()])
    assert "The first: reward 'read', task toy/1, rollout 9." in str(caught.value)
    assert "could not convert string to float: 'worse'" in str(caught.value)


def test_all_failed_stops_whatever_the_limit():
    with pytest.raises(RewardError, match="2 of the step's 2 rollouts"):
        score([group("bad", "bad")], [read()], reward_failure_limit=1.0)


def test_stops_at_the_first_group_that_decides():
    """A reward that hangs until its time limit must not do so for every group of the step."""
    called = []

    def fail(group: Group) -> np.ndarray:
        called.append(group.task.id)
        raise RuntimeError("down")

    with pytest.raises(RewardError, match="reward 'judge', task toy/0, rollout 0"):
        score([group("1", name=f"toy/{number}") for number in range(50)], [WeightedReward(Return(fail), 1.0, "judge")])
    assert called == ["toy/0", "toy/1", "toy/2"]  # 3 of 50 is above 0.05


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.array([1.0], np.float32), r"reward 'odd' on task toy/1 must return a float32 array of shape \(2,\); got float32 \(1,\)"),
        (np.array([[1.0, 2.0]], np.float32), r"got float32 \(1, 2\)"),
        (np.array([1.0, 2.0]), r"got float64 \(2,\)"),
        ([1.0, 2.0], r"got list \[1.0, 2.0\]"),
        (None, "got NoneType None"),
        (np.array([1.0, np.inf], np.float32), r"reward 'odd' on task toy/1 returned an infinite value: \[1.0, inf\]"),
    ],
)
def test_malformed_result_is_a_failure(result, message):
    with pytest.raises(RewardError, match=message):
        score([group("1", "2")], [WeightedReward(Return(lambda group: result), 1.0, "odd")])


def test_infinite_value_costs_one_rollout():
    (scored,) = score([group("1", "inf")], [read()], reward_failure_limit=0.5)
    np.testing.assert_array_equal(scored.rewards, np.array([1, NAN], np.float32))
    assert "returned an infinite value: [inf]" in scored.tracebacks["read"][1]


def test_not_scored_for_the_group_is_left_out_of_the_sum():
    """A mixture: the reward that does not apply to a task leaves the other's value as it is."""
    (scored,) = score([group("1", "3")], [read(), WeightedReward(values(NAN, NAN), 1.0, "boxes")], reward_failure_limit=0.0)
    assert scored.rewards.tolist() == [1, 3]
    assert np.isnan(scored.parts["boxes"]).all()
    assert scored.tracebacks == {}


def test_not_scored_for_some_rollouts_makes_their_sum_nan():
    """Sums of different parts cannot be compared; it is no failure, so the limit does not mind."""
    (scored,) = score([group("1", "3")], [read(), WeightedReward(values(NAN, 5), 1.0, "judge")], reward_failure_limit=0.0)
    np.testing.assert_array_equal(scored.rewards, np.array([NAN, 8], np.float32))
    assert scored.tracebacks == {}


def test_a_task_no_reward_applies_to_is_nan_not_zero():
    groups = [group("1", name="toy/1"), group("2", name="toy/2")]
    only_first = Return(lambda group: np.array([1.0 if group.task.id == "toy/1" else NAN], np.float32))
    first, second = score(groups, [WeightedReward(only_first, 1.0, "only_first")])
    assert first.rewards.tolist() == [1]
    assert np.isnan(second.rewards).all()


def test_nothing_scored_at_all_stops():
    with pytest.raises(RewardError, match="no rollout of this step has a reward: 'judge' gave NaN"):
        score([group("1", "2")], [WeightedReward(values(NAN, NAN), 1.0, "judge")])


def test_failure_that_does_not_come_back_is_logged(caplog):
    """Alone each rollout is scored: the values count, and the log has the traceback."""

    @dataclass(frozen=True)
    class AfraidOfPairs(Read):
        def __call__(self, group: Group) -> np.ndarray:
            if len(group.rollouts) > 1:
                raise RuntimeError("too many")
            return super().__call__(group)

    (scored,) = score([group("1", "3")], [WeightedReward(AfraidOfPairs(), 1.0, "shy")])
    assert scored.rewards.tolist() == [1, 3]
    assert "reward 'shy' failed on task toy/1 but not on its rollouts one by one" in caplog.text
    assert "too many" in caplog.text


def test_concurrent_rewards_run_at_once_and_stay_in_order():
    """Four groups meet at a barrier that opens only when all four are being scored."""
    barrier = threading.Barrier(4, timeout=10)

    @dataclass(frozen=True)
    class Waits(Read):
        concurrent: ClassVar[bool] = True

        def __call__(self, group: Group) -> np.ndarray:
            barrier.wait()
            return super().__call__(group)

    scored = score([group(text) for text in "1234"], [WeightedReward(Waits(), 1.0, "waits"), read(10.0)])
    assert [item.rewards.tolist() for item in scored] == [[11], [22], [33], [44]]


def test_interrupt_is_not_a_failure():
    def interrupt(group: Group) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score([group("1")], [WeightedReward(Return(interrupt), 1.0, "stop")])


def test_no_groups():
    assert score([], [read()]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score([], []), "at least one reward"),
        (lambda: score([], [read(), read()]), r"reward names must differ; got \['read', 'read'\]"),
        (lambda: score([], [read()], reward_failure_limit=5), r"reward_failure_limit must be in \[0, 1\]; got 5"),
        (lambda: read(NAN), "reward 'read': weight must be finite; got nan"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@dataclass(frozen=True)
class GivesUp:
    """Says nothing about groups whose first text is "away"."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        if group.rollouts[0].completion.text == "away":
            raise Unscored("outage", "nobody there")
        return np.ones(len(group.rollouts), np.float32)


def test_a_reward_that_gives_a_group_up_is_not_scored_and_has_not_failed(caplog):
    rewards = [WeightedReward(values(1, 2), 1.0, "other"), WeightedReward(GivesUp(), 10.0, "judged")]
    with caplog.at_level("WARNING"):
        away, there = score([group("away", "x"), group("here", "x", name="toy/2")], rewards, reward_failure_limit=0)
    assert away.rewards.tolist() == [1, 2]
    assert np.isnan(away.parts["judged"]).all()
    assert away.unscored == {"judged": ("outage", "nobody there")}
    assert away.tracebacks == there.unscored == {}
    assert there.rewards.tolist() == [11, 12]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "reward 'judged' left 1 of 2 groups unscored, first on task toy/1: outage: nobody there"


def test_a_step_that_only_a_judge_could_score_stops_when_it_is_away():
    with pytest.raises(RewardError, match="no rollout of this step has a reward: 'judged' gave NaN"):
        score([group("away")], [WeightedReward(GivesUp(), 1.0, "judged")])


def arms_of(texts: Sequence[str], arms: Sequence[str]) -> Group:
    made = group(*texts)
    return replace(made, rollouts=tuple(replace(rollout, arm=arm) for rollout, arm in zip(made.rollouts, arms, strict=True)))


def test_a_reward_for_some_arms_adds_nothing_to_the_others():
    """It is shown their rollouts only; an arm that no reward is for has none."""
    seen: list[int] = []

    def count(group: Group) -> np.ndarray:
        seen.append(len(group.rollouts))
        return np.full(len(group.rollouts), 10, np.float32)

    both = [
        WeightedReward(Read(), 1.0, "read", arms=("plain", "label")),
        WeightedReward(Return(count), 0.5, "other", arms=("plain",)),
    ]
    (scored,) = score([arms_of(["1", "bad", "2", "3"], ["plain", "shuffled", "label", "plain"])], both, reward_failure_limit=0.0)
    np.testing.assert_array_equal(scored.rewards, [6, NAN, 2, 8])
    np.testing.assert_array_equal(scored.parts["other"], [10, NAN, NAN, 10])
    assert seen == [2]
    assert not scored.tracebacks


def test_a_failure_inside_an_arm_is_that_rollouts():
    rewards = [WeightedReward(Read(), 1.0, "read", arms=("plain",))]
    (scored,) = score([arms_of(["1", "4", "bad"], ["plain", "label", "plain"])], rewards, reward_failure_limit=0.5)
    np.testing.assert_array_equal(scored.rewards, [1, NAN, NAN])
    assert [failure is not None for failure in scored.tracebacks["read"]] == [False, False, True]
