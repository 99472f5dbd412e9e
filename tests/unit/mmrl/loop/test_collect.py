"""Collecting groups: one draw, or as many as dynamic sampling needs. Tasks say themselves how many of their completions succeed."""

from dataclasses import replace

import numpy as np
import pytest

from mmrl.errors import RewardError, TaskError
from mmrl.loop import collect as module
from mmrl.loop.collect import Collector
from mmrl.loop.score import WeightedReward
from mmrl.protocols import Sampling
from mmrl.recipe import DynamicSamplingSection
from mmrl.samplers import UniformSampler
from mmrl.types import Completion, Group, Prompt, Rollout, Task, TaskKey

G = 4


class Source:
    """Task i of one bucket; `solved(i)` of its G completions succeed."""

    buckets = ("",)

    def __init__(self, solved, size=None):
        self.solved, self.length = solved, size

    def size(self, bucket):
        return self.length

    def task(self, key):
        return Task(str(key.index), (), (), "", {"solved": self.solved(key.index)})


class Sampler(UniformSampler):
    """Notes what it is asked and told."""

    def __init__(self):
        super().__init__()
        self.asked, self.told = [], []

    def draw(self, source, step, count):
        keys = super().draw(source, step, count)
        self.asked += keys
        return keys

    def observe(self, step, outcomes):
        self.told.append((step, dict(outcomes)))


class Strategy:
    """Notes the sampling step of every call."""

    def __init__(self):
        self.steps = []

    def __call__(self, tasks, engine, make_prompts, num_generations, sampling):
        self.steps.append(sampling.step)
        groups = []
        for task in tasks:
            prompt = Prompt(task, "", np.array([0]), {})
            completion = Completion(np.array([1]), "", np.zeros(1, np.float32), "stop", 0)
            groups.append(Group(task, (Rollout(prompt, completion, prompt),) * num_generations))
        return groups


class Solved:
    per_completion = False

    def __init__(self):
        self.calls = 0

    def __call__(self, group):
        self.calls += 1
        return (np.arange(len(group.rollouts)) < group.task.meta["solved"]).astype(np.float32)


def collector(source, dynamic=None, success=None, reward=None, limit=0.05):
    reward = WeightedReward(reward or Solved(), 1.0, "reward")
    return Collector(
        source, Sampler(), None, Strategy(), None, [reward], success or reward, G, limit, dynamic, 0, 1  # type: ignore[arg-type]
    )  # fmt: skip


def ids(collected):
    return [int(group.group.task.id) for group in collected.scored]


def test_one_draw_without_dynamic_sampling():
    """Endless source: draw 5 of 4 tasks holds the tasks 20 to 23, all kept, and success rates reach the sampler."""
    collect = collector(Source(lambda i: i % 5))
    out = collect(5, 4, Sampling())
    assert ids(out) == [20, 21, 22, 23]
    assert (out.places, out.draws, out.drawn) == ([0, 1, 2, 3], 1, 4)
    assert collect.strategy.steps == [5]
    assert collect.sampler.told == [(5, {TaskKey("", 20): 0.0, TaskKey("", 21): 0.25, TaskKey("", 22): 0.5, TaskKey("", 23): 0.75})]


def test_dynamic_sampling_draws_on_until_the_step_is_full():
    """Every third task is worth an update: of 0 1 2 3, 4 5 6 7, 8 9 10 11 the tasks 0 3 6 9; draws 0, 1 and 2, each its own key."""
    collect = collector(Source(lambda i: 2 if i % 3 == 0 else 0), DynamicSamplingSection())
    out = collect(0, 4, Sampling())
    assert ids(out) == [0, 3, 6, 9]
    assert (out.places, out.draws, out.drawn) == ([0, 1, 2, 3], 3, 12)
    assert collect.strategy.steps == [0, 1, 2]
    assert [step for step, _ in collect.sampler.told] == [0, 1, 2]


@pytest.mark.parametrize(("low", "high", "kept"), [(0.0, 1.0, [1, 2, 3]), (0.25, 1.0, [2, 3]), (0.0, 0.75, [1, 2])])
def test_dynamic_sampling_keeps_rates_strictly_between_its_bounds(low, high, kept):
    """Tasks 0 to 4 have rates 0, 0.25, 0.5, 0.75, 1."""
    out = collector(Source(lambda i: i % 5), DynamicSamplingSection(low, high))(0, 5, Sampling())
    assert [i for i in ids(out) if i < 5] == kept


def test_dynamic_sampling_gives_up_with_a_way_out():
    with pytest.raises(TaskError, match=r"3 draws of 4 tasks gave only 0 groups.*raise update.dynamic_sampling.max_tries"):
        collector(Source(lambda i: G), DynamicSamplingSection(max_tries=3))(0, 4, Sampling())


def test_a_finite_source_is_walked_without_gaps_under_dynamic_sampling():
    """12 tasks, two thirds of them dead: four steps of 2 groups draw on; every 12 draws in a row are one epoch."""
    collect = collector(Source(lambda i: 2 if i % 3 == 0 else 0, size=12), DynamicSamplingSection())
    draws = 0
    for _ in range(4):
        draws += collect(draws, 2, Sampling()).draws
    asked = collect.sampler.asked
    assert len(asked) >= 24
    for at in range(0, len(asked) - 11, 12):
        assert len(set(asked[at : at + 12])) == 12


def test_success_is_not_asked_twice_where_it_is_one_of_the_rewards():
    """A judge may cost money."""
    reward = Solved()
    collector(Source(lambda i: 2), reward=reward)(0, 4, Sampling())
    assert reward.calls == 4
    other = Solved()
    out = collector(Source(lambda i: 2), success=WeightedReward(other, 1.0, "success"))(0, 4, Sampling())
    assert other.calls == 4
    assert [row.tolist() for row in out.success] == [[1, 1, 0, 0]] * 4


class OneFails(Solved):
    """Fails on task 1."""

    per_completion = True

    def __call__(self, group):
        self.calls += 1
        if group.task.id == "1":
            raise KeyError("goal")
        return super().__call__(group)


def test_a_failure_within_the_limit_is_not_a_success_and_beyond_it_ends_the_step():
    """One of four groups fails: a quarter of the rollouts."""
    out = collector(Source(lambda i: G), reward=OneFails(), limit=0.25)(0, 4, Sampling())
    assert np.isnan(out.success[1]).all()
    assert [float(np.mean(row >= 1)) for row in out.success] == [1, 0, 1, 1]
    with pytest.raises(RewardError, match="KeyError: 'goal'"):
        collector(Source(lambda i: G), reward=OneFails(), limit=0.2)(0, 4, Sampling())


def test_an_error_of_another_rank_ends_the_collecting_here(monkeypatch):
    """The other rank's failure comes back from `together`, although this rank's own groups are fine."""

    def together(work, *arguments):
        work(*arguments)
        raise RewardError("process 1: no goal")

    monkeypatch.setattr(module, "together", together)
    with pytest.raises(RewardError, match="process 1: no goal"):
        collector(Source(lambda i: 2))(0, 4, Sampling())


class WithLabel(Strategy):
    """The groups with one more row, which always succeeds and is no try of the policy's."""

    def __call__(self, tasks, engine, make_prompts, num_generations, sampling):
        groups = super().__call__(tasks, engine, make_prompts, num_generations, sampling)
        return [replace(g, rollouts=(replace(g.rollouts[0], arm="label", attempt=False), *g.rollouts)) for g in groups]


@pytest.mark.parametrize(("low", "kept"), [(0.0, [1, 2, 3]), (None, [0, 1, 2, 3])])
def test_dynamic_sampling_and_the_sampler_see_the_policys_own_tries(low, kept):
    """Tasks 0 to 4 are solved 0 to 4 times of 4, the label's row (the first, which is solved too) not counted."""

    class SolvedBesideTheLabel(Solved):
        def __call__(self, group):
            return (np.arange(len(group.rollouts)) <= group.task.meta["solved"]).astype(np.float32)

    collect = collector(Source(lambda i: i % 5), DynamicSamplingSection(low=low), reward=SolvedBesideTheLabel())
    collect = replace(collect, strategy=WithLabel())
    out = collect(0, 5, Sampling())
    assert [i for i in ids(out) if i < 5] == kept
    assert [rate for key, rate in collect.sampler.told[0][1].items()] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert out.gated == 0
