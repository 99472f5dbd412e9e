"""Task samplers: what a run draws, and that a resumed run draws the same."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from mmrl.errors import RecipeError, TaskError
from mmrl.samplers import CurriculumSampler, UniformSampler, first_keys
from mmrl.types import Task, TaskKey


@dataclass(frozen=True)
class Source:
    """Buckets with a number of tasks each; None = endless."""

    sizes: dict[str, int | None]

    @property
    def buckets(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def size(self, bucket: str) -> int | None:
        return self.sizes[bucket]

    def task(self, key: TaskKey) -> Task:
        raise NotImplementedError


@pytest.mark.parametrize("count", [1, 3, 5, 10])
def test_an_epoch_covers_a_finite_source_exactly_once(count):
    """10 tasks in draws of `count`, three epochs: each task three times, whatever the size of a draw."""
    source = Source({"a": 3, "b": 7})
    keys = [key for step in range(30 // count) for key in UniformSampler(seed=1).draw(source, step, count)]
    everything = {TaskKey("a", i) for i in range(3)} | {TaskKey("b", i) for i in range(7)}
    epochs = [keys[at : at + 10] for at in (0, 10, 20)]
    assert all(set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_an_endless_source_never_repeats():
    source = Source({"a": None, "b": None})
    for sampler in (UniformSampler(seed=1), CurriculumSampler(seed=1, start=2)):
        keys = [key for step in range(50) for key in sampler.draw(source, step, 8)]
        assert len(set(keys)) == 400
        assert {key.bucket for key in keys} == {"a", "b"}


def test_a_draw_is_a_function_of_seed_and_step():
    source = Source({"a": None, "b": None})
    draw = UniformSampler(seed=1).draw(source, 3, 16)
    assert draw == UniformSampler(seed=1).draw(source, 3, 16)
    assert draw != UniformSampler(seed=2).draw(source, 3, 16)


def test_weights_are_shares_of_the_draws():
    """0.25 and 0.75 of 2,000: four standard deviations are 4 * sqrt(2000 * 0.25 * 0.75) = 77."""
    source = Source({"a": None, "b": None})
    counts = Counter(key.bucket for key in UniformSampler(weights=(1.0, 3.0)).draw(source, 0, 2000))
    assert abs(counts["a"] - 500) < 77


@pytest.mark.parametrize(
    ("weights", "sizes", "message"),
    [
        ((1.0,), {"a": None, "b": None}, "1 weights for 2 buckets"),
        ((1.0, -1.0), {"a": None, "b": None}, ">= 0"),
        ((0.0, 0.0), {"a": None, "b": None}, "not all 0"),
        ((1.0,), {"a": 4}, "leave weights out"),
    ],
)
def test_weights_that_cannot_be_met_are_refused(weights, sizes, message):
    with pytest.raises(RecipeError, match=message):
        UniformSampler(weights=weights).draw(Source(sizes), 0, 2)


def test_an_empty_source_is_refused():
    with pytest.raises(TaskError, match="no tasks"):
        UniformSampler().draw(Source({"": 0}), 0, 1)
    with pytest.raises(TaskError, match="bucket 'a' has no tasks"):
        CurriculumSampler().draw(Source({"a": 0}), 0, 1)


def observed(sampler: CurriculumSampler, step: int, rates: list[float], bucket: str) -> int:
    sampler.observe(step, {TaskKey(bucket, 100 * step + n): rate for n, rate in enumerate(rates)})
    return sampler.opened


def test_a_bucket_opens_when_the_moving_success_reaches_the_threshold():
    """Window 4, threshold 0.75. Means of the last four: 0.5 no; 0.75 yes. Then the window starts empty for the new bucket."""
    source = Source({"a": None, "b": None, "c": None})
    sampler = CurriculumSampler(threshold=0.75, window=4)
    assert {key.bucket for key in sampler.draw(source, 0, 8)} == {"a"}
    assert observed(sampler, 0, [1.0, 1.0, 1.0], "a") == 1  # not full
    assert observed(sampler, 1, [0.0, 0.0], "a") == 1  # 1 1 0 0
    assert observed(sampler, 2, [1.0, 1.0], "a") == 1  # 0 0 1 1
    assert observed(sampler, 3, [1.0], "a") == 2  # 0 1 1 1
    assert {key.bucket for key in sampler.draw(source, 4, 32)} == {"a", "b"}
    assert observed(sampler, 4, [1.0, 1.0, 1.0, 1.0], "a") == 2  # the easy bucket opens nothing any more
    assert observed(sampler, 5, [1.0, 1.0, 1.0, 1.0], "b") == 3
    assert observed(sampler, 6, [1.0, 1.0, 1.0, 1.0], "c") == 3  # there is no fourth


def test_the_newest_bucket_gets_its_share():
    """Newest 0.5, the two others 0.25 each, of 2,000; four standard deviations are under 90."""
    source = Source({"a": None, "b": None, "c": None})
    counts = Counter(key.bucket for key in CurriculumSampler(start=3).draw(source, 0, 2000))
    assert abs(counts["c"] - 1000) < 90
    assert abs(counts["a"] - 500) < 78


def test_a_curriculum_restored_from_json_goes_on_as_the_one_that_never_stopped():
    source = Source({"a": None, "b": None})
    one = CurriculumSampler(threshold=0.5, window=4)
    one.draw(source, 0, 4)
    observed(one, 0, [1.0, 0.0, 1.0], "a")
    other = CurriculumSampler(threshold=0.5, window=4)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for sampler in (one, other):
        assert observed(sampler, 1, [0.0], "a") == 2
    assert one.draw(source, 2, 16) == other.draw(source, 2, 16)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize("fields", [{"threshold": 0.0}, {"threshold": 1.1}, {"window": 0}, {"newest_share": 1.5}, {"start": 0}])
def test_curriculum_fields_outside_their_range_are_refused(fields):
    with pytest.raises(ValueError, match="need threshold in"):
        CurriculumSampler(**fields)


def test_first_keys_takes_buckets_in_turn_and_stops_where_they_end():
    source = Source({"a": 2, "b": None})
    assert first_keys(source, 5) == [TaskKey("a", 0), TaskKey("b", 0), TaskKey("a", 1), TaskKey("b", 1), TaskKey("b", 2)]
    assert len(first_keys(Source({"a": 2, "b": 1}), 9)) == 3


def test_finite_buckets_of_a_curriculum_stay_inside_their_size():
    keys = CurriculumSampler().draw(Source({"a": 5}), 0, 200)
    assert {key.index for key in keys} == set(range(5))
    assert np.ptp([key.index for key in keys]) == 4
