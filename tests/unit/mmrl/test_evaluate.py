"""Evaluation: the estimators by hand, and a whole table from completions that are written down."""

import itertools
import json

import numpy as np
import pytest

from mmrl.errors import RecipeError, RewardError, TaskError
from mmrl.evaluate import bootstrap, evaluate, pass_at_k, table_metrics, wilson, write_evaluation
from mmrl.loop.score import WeightedReward
from mmrl.protocols import Sampling
from mmrl.types import Completion, Media, Prompt, Task, TaskKey
from rewards.spans import TemporalIoU


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(n, correct):
    for k in range(1, n + 1):
        draws = list(itertools.combinations(range(n), k))
        share = sum(min(draw) < correct for draw in draws) / len(draws)  # completions 0 .. correct - 1 are correct
        assert pass_at_k(n, correct, k) == pytest.approx(share)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(8, 10, (0.490, 0.943)), (0, 10, (0.0, 0.278)), (10, 10, (0.722, 1.0)), (50, 100, (0.404, 0.596))],
)
def test_wilson_against_known_values(successes, n, interval):
    assert wilson(successes, n) == pytest.approx(interval, abs=6e-4)


def test_bootstrap_repeats_and_is_as_wide_as_the_normal_interval():
    """100 tasks, rates 0 and 1 in halves: standard error 0.5 / 10 = 0.05, interval 0.5 +- 1.96 * 0.05 = 0.402 to 0.598."""
    rates = np.arange(100) % 2 * 1.0
    low, high = bootstrap(rates)
    assert (low, high) == bootstrap(rates)
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
    assert bootstrap(np.full(5, 0.25)) == (0.25, 0.25)


class Source:
    """Bucket "moves=m" task i: m moves, i % 2 turns."""

    buckets = ("moves=1", "moves=2")

    def size(self, bucket):
        return 3

    def task(self, key):
        moves = int(key.bucket[-1])
        media = (Media(np.full((1, 4, 4, 3), key.index, np.uint8)),)
        return Task(f"{key.bucket}/{key.index}", (), media, "", {"moves": moves, "turns": key.index % 2})


class Written:
    """An engine whose draw j of task i is "yes" if j < i."""

    def generate(self, prompts, num_generations, sampling):
        def completion(prompt, j):
            text = "yes" if j < int(prompt.task.id[-1]) else "no"
            return Completion(np.array([1]), text, np.zeros(1, np.float32), "stop", 0)

        return [[completion(prompt, j) for j in range(num_generations)] for prompt in prompts]


class Yes:
    per_completion = True

    def __call__(self, group):
        return np.array([r.completion.text == "yes" for r in group.rollouts], np.float32)


def make_prompts(tasks):
    return [Prompt(task, "", np.array([0]), {}) for task in tasks]


KEYS = [TaskKey(bucket, index) for index in range(3) for bucket in Source.buckets]


def evaluated(**options):
    return evaluate(Source(), KEYS, Written(), make_prompts, Yes(), Sampling(), **options)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_success_table_and_pass_at_k(batch_size):
    """Two draws each: task 0 solves none, task 1 one, task 2 both: mean 0.5; pass@2 is 0, 1, 1 -> 2/3."""
    result = evaluated(num_generations=2, ks=(1, 2), batch_size=batch_size)
    assert result["success"] == 0.5
    assert result["pass@1"] == 0.5
    assert result["pass@2"] == pytest.approx(2 / 3)
    assert result["table"] == [
        {"moves": moves, "turns": turns, "n": n, "success": success, "rewards": {}}
        for moves in (1, 2) for turns, n, success in ((0, 2, 0.5), (1, 1, 0.5))
    ]  # fmt: skip
    assert sum(cell["n"] for cell in result["table"]) == result["tasks"] == 6
    assert result["interval"] == list(bootstrap(np.array([0, 0, 0.5, 0.5, 1, 1])))


def test_other_rewards_are_measured_beside_success():
    """3 for "yes" and not scored for task 0, whose draws are both "no"; task 1 has one "yes" of two, task 2 two: (3 + 0 + 3 + 3) / 4."""

    class Three:
        per_completion = True

        def __call__(self, group):
            scored = group.task.id[-1] != "0"
            return np.array([3.0 * (r.completion.text == "yes") if scored else np.nan for r in group.rollouts], np.float32)

    success = Yes()
    rewards = [WeightedReward(Three(), 0.0, "three"), WeightedReward(success, 1.0, "again")]
    result = evaluate(Source(), KEYS, Written(), make_prompts, success, Sampling(), num_generations=2, rewards=rewards)
    assert result["rewards"] == {"three": 2.25}  # success itself is told once
    assert result["table"][0]["rewards"] == {"three": 3.0}  # tasks 0 and 2 of one move without turns
    assert table_metrics(result)["eval/rewards/three/mean"] == 2.25


class Blind(Source):
    """Bucket "a": a best constant that earns 0.3 (task 0) or 0.5; bucket "b" has no baselines."""

    buckets = ("a", "b")

    def task(self, key):
        meta = {"baselines": {"constant": 0.3 + 0.2 * (key.index > 0), "chance": 0.25}} if key.bucket == "a" else {}
        return Task(f"{key.bucket}/{key.index}", (), (), "", meta)


def test_what_blind_answers_earn_stands_beside_what_was_earned():
    keys = [TaskKey("a", 0), TaskKey("a", 1)]
    result = evaluate(Blind(), keys, Written(), make_prompts, Yes(), Sampling())
    assert result["baselines"] == {"constant": pytest.approx(0.4), "chance": 0.25}
    assert result["table"][0]["baselines"] == result["baselines"]
    assert table_metrics(result)["eval/baselines/constant"] == pytest.approx(0.4)
    mixed = evaluate(Blind(), [*keys, TaskKey("b", 0)], Written(), make_prompts, Yes(), Sampling())
    assert "baselines" not in mixed
    assert ["baselines" in cell for cell in mixed["table"]] == [True, False]


class Spans(Source):
    """Six grounding tasks of 10 s: [0, 5] three times, then [2, 6], [2, 8], [5, 10]."""

    buckets = ("",)
    true = ([0, 5], [0, 5], [0, 5], [2, 6], [2, 8], [5, 10])

    def task(self, key):
        media = (Media(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 0.5])),)
        meta = {"kind": "grounding", "span_s": self.true[key.index], "duration_s": 10.0}
        return Task(f"spans/{key.index}", (), media, "", meta)


class Says(Written):
    def generate(self, prompts, num_generations, sampling):
        texts = ["0 - 5", "0 - 10", "1 - 5", "3.4 - 5.4", "somewhere", "9 - 3"]
        return [[Completion(np.array([1]), texts[int(p.task.id[-1])], np.zeros(1, np.float32), "stop", 0)] for p in prompts]


def test_grounding_counts_every_query_beside_the_best_constant_span():
    """Overlaps 1, 0.5, 0.8, 2 / 4, none, reversed: mIoU 2.8 / 6. Rounded to whole seconds 3.4 - 5.4 is 3 - 5: the same 2 / 4. The constant
    [0, 5] earns 1, 1, 1, 3/6, 3/8, 0."""
    overlap, rounded, snapped = TemporalIoU(), TemporalIoU(whole_seconds=True), TemporalIoU(snap=True)
    rewards = [WeightedReward(overlap, 1.0, "overlap"), WeightedReward(rounded, 0.0, "rounded"), WeightedReward(snapped, 0.0, "snapped")]
    keys = [TaskKey("", n) for n in range(6)]
    result = evaluate(Spans(), keys, Says(), make_prompts, overlap, Sampling(), rewards=rewards, batch_size=4)
    assert set(result["grounding"]) == {"overlap", "rounded"}
    assert set(result["rewards"]) == {"rounded", "snapped"}
    numbers = result["grounding"]["overlap"]
    assert {name: numbers[name] for name in ("R1@0.3", "R1@0.5", "R1@0.7")} == pytest.approx(
        {"R1@0.3": 4 / 6, "R1@0.5": 4 / 6, "R1@0.7": 2 / 6}
    )
    assert numbers["mIoU"] == pytest.approx(2.8 / 6)
    constant = numbers["constant"]
    assert constant["mIoU"] >= (3 + 3 / 6 + 3 / 8) / 6
    assert constant["mIoU"] == pytest.approx(np.mean([_iou(np.array(constant["shares"]) * 10, span) for span in Spans.true]))
    metrics = table_metrics(result)
    assert metrics["eval/grounding/overlap/mIoU"] == numbers["mIoU"]
    assert metrics["eval/grounding/overlap/constant_mIoU"] == constant["mIoU"]
    assert "grounding" not in evaluate(Source(), KEYS, Written(), make_prompts, Yes(), Sampling())
    json.dumps(result, allow_nan=False)


def _iou(one, other):
    ticks = (np.arange(100_000) + 0.5) / 10_000
    inside = [(start < ticks) & (ticks < end) for start, end in (one, other)]
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


def test_one_completion_a_task_has_wilsons_interval():
    result = evaluated()
    assert result["success"] == pytest.approx(4 / 6)  # tasks 1 and 2 of both buckets
    assert result["interval"] == list(wilson(4, 6))


def test_metrics_weigh_cells_by_their_tasks():
    table = [{"moves": 1, "turns": 0, "n": 3, "success": 1.0}, {"moves": 1, "turns": 1, "n": 1, "success": 0.0}]
    result = {"success": 0.75, "pass@1": 0.75, "table": table, "rewards": {"length": 2.0, "judge": None}}
    expected = {"eval/success": 0.75, "eval/pass@1": 0.75, "eval/success/moves=1": 0.75, "eval/rewards/length/mean": 2.0}
    assert table_metrics(result) == expected


def test_tasks_with_and_without_moves_stand_in_one_table():
    class Mixed(Source):
        def task(self, key):
            task = super().task(key)
            return task if key.bucket == "moves=1" else Task(task.id, (), task.media, "", {})

    result = evaluate(Mixed(), KEYS, Written(), make_prompts, Yes(), Sampling())
    assert [cell.get("bucket") for cell in result["table"]] == ["moves=2", None, None]
    assert sum(cell["n"] for cell in result["table"]) == 6


def test_examples_and_their_pictures_are_kept_with_a_run(tmp_path):
    result = evaluated(run=tmp_path)
    path = write_evaluation(tmp_path, 7, result)
    saved = json.loads(path.read_text())
    assert path.name == "step-000007.json"
    assert saved["step"] == 7
    assert [example["completion"] for example in saved["examples"]] == ["no", "no", "yes", "yes", "yes", "yes"]
    assert all((tmp_path / example["images"][0]).is_file() for example in saved["examples"])


def test_no_tasks_and_too_large_k_are_refused():
    with pytest.raises(TaskError, match="no tasks"):
        evaluate(Source(), [], Written(), make_prompts, Yes(), Sampling())
    with pytest.raises(RecipeError, match="needs at least 4"):
        evaluated(num_generations=2, ks=(4,))


def test_a_success_reward_that_fails_says_so():
    class Broken(Yes):
        def __call__(self, group):
            raise KeyError("goal")

    with pytest.raises(RewardError, match="KeyError: 'goal'"):
        evaluate(Source(), KEYS, Written(), make_prompts, Broken(), Sampling())


def test_outcomes_are_kept_by_task_for_comparing():
    """A reward that does not apply to task 0 is null there."""

    class Sometimes:
        per_completion = True

        def __call__(self, group):
            return np.full(len(group.rollouts), np.nan if group.task.id[-1] == "0" else 0.25, np.float32)

    result = evaluated(num_generations=2, rewards=[WeightedReward(Sometimes(), 1.0, "seen")])
    outcomes = json.loads(json.dumps(result["outcomes"], allow_nan=False))
    assert outcomes["tasks"] == [f"moves={moves}/{index}" for index in range(3) for moves in (1, 2)]
    assert outcomes["values"]["success"] == [[0, 0], [0, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    assert outcomes["values"]["seen"] == [[None, None], [None, None], *[[0.25, 0.25]] * 4]
