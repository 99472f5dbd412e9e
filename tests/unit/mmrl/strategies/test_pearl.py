"""PEARL: the gate, the factor, the filter and the two branches. Numbers: ddof 1, epsilon 1e-6, to 1e-5."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from mmrl.advantages.filters import keep_group
from mmrl.advantages.grpo import GRPO
from mmrl.advantages.pearl import PEARL as Estimator
from mmrl.advantages.per_arm import PerArm
from mmrl.errors import TaskError
from mmrl.loop.collect import Collector
from mmrl.loop.credit import credit
from mmrl.loop.score import WeightedReward, score
from mmrl.protocols import Sampling
from mmrl.recipe import DynamicSamplingSection
from mmrl.samplers import UniformSampler
from mmrl.strategies.pearl import PEARL
from mmrl.types import Completion, Group, GroupRewards, Prompt, Rollout, ScoredGroup, Task, TaskKey

CHECKLIST = [
    {"question": "How many rows?", "answer": "3", "options": []},
    {"question": "Where is the goal?", "answer": "top left", "options": ["top left", "bottom right"]},
    {"question": "Is it open?", "answer": "yes", "options": ["yes", "no"]},
]
VERDICTS = ((1, 1, 0), (1, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 0))
"""Five answers to three questions: scores 2/3, 1/3, 1, 0, 2/3, their mean 8/15."""
SAMPLING = Sampling(max_completion_length=4, seed=3, step=2)


def answers_of(verdicts):
    """A perception answer that is right where the verdict is 1."""
    return "\n".join(
        f"{n}. {item['answer'] if right else 'none'}" for n, (item, right) in enumerate(zip(CHECKLIST, verdicts, strict=True), 1)
    )


@dataclass(frozen=True)
class Lines:
    """Share of the checklist answered rightly, read from `1. answer` lines."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([self.value(group.task, r.completion.text) for r in group.rollouts], np.float32)

    def value(self, task, text):
        given = dict(line.split(". ", 1) for line in text.splitlines() if ". " in line)
        items = task.meta["checklist"]
        return sum(given.get(str(n)) == item["answer"] for n, item in enumerate(items, 1)) / len(items)


@dataclass(frozen=True)
class Right:
    """1 for "right"."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.text == "right") for r in group.rollouts], np.float32)


REWARDS = [WeightedReward(Right(), 1.0, "answer", arms=("plain",)), WeightedReward(Lines(), 1.0, "checklist", arms=("perception",))]


class Engine:
    """Says what it is told to for a prompt's task, and notes what it is asked."""

    def __init__(self, say):
        self.say, self.calls = say, []

    def generate(self, prompts, num_generations, sampling):
        self.calls.append(([p.task.id for p in prompts], num_generations, sampling.max_completion_length))
        return [
            [
                Completion(np.array([1] * (1 + n % 2)), text, np.zeros(1 + n % 2, np.float32), "stop", 0)
                for n, text in enumerate(self.say[p.task.id][:num_generations])
            ]
            for p in prompts
        ]


def prompts_of(tasks):
    return [Prompt(task, "", np.array([0]), {}) for task in tasks]


@pytest.fixture
def task(picture_task):
    """`task("a")`: a picture with the checklist."""
    return lambda name="a", **meta: replace(picture_task(name, (56, 84)), meta={"checklist": CHECKLIST} | meta)


def rewards_of(perception, reasoning):
    arms = ("perception",) * len(perception) + ("plain",) * len(reasoning)
    seen = np.array([*perception, *[np.nan] * len(reasoning)], np.float32)
    return GroupRewards(np.array([*perception, *reasoning], np.float32), np.ones(len(arms), np.int64), arms=arms, parts={"checklist": seen})


def estimated(group, estimator=None):
    (rows,) = (estimator or Estimator())([group])
    return [float(row[0]) for row in rows]


# --- advantages -------------------------------------------------------------------------------------------------------------------------

SEEN = [sum(row) / 3 for row in VERDICTS]


def test_perception_advantages():
    assert np.mean(SEEN) == pytest.approx(0.533333, abs=1e-5)
    expected = [0.350822, -0.526234, 1.227878, -1.403289, 0.350822]
    assert estimated(rewards_of(SEEN, [1, 0, 0, 1, 0]))[:5] == pytest.approx(expected, abs=1e-5)


def test_reasoning_advantages_are_weighed_by_what_was_seen():
    plain = [1.095443, -0.730295, -0.730295, 1.095443, -0.730295]
    assert estimated(rewards_of(SEEN, [1, 0, 0, 1, 0]), Estimator(cap=None))[5:] == pytest.approx(plain, abs=1e-5)
    halved = estimated(rewards_of(SEEN, [1, 0, 0, 1, 0]))[5:]
    assert halved == pytest.approx([0.547722, -0.365148, -0.365148, 0.547722, -0.365148], abs=1e-5)
    little = estimated(rewards_of([1, 0, 0, 0, 0], [1, 0, 0, 1, 0]))[5:]
    assert little[0] == pytest.approx(0.219089, abs=1e-5)


def test_the_factor_is_not_undone_by_normalisation():
    """Halving the rewards leaves the advantages as they are; the factor halves them."""
    for scale in (1.0, 0.5):
        given = estimated(rewards_of([1, 1], [scale, 0, 0, scale, 0]), Estimator(GRPO(epsilon=1e-12)))[2:]
        assert given == pytest.approx([0.547722, -0.365148, -0.365148, 0.547722, -0.365148], abs=1e-5)


def test_without_a_cap_it_is_the_estimator_per_arm():
    group = rewards_of(SEEN, [1, 0, 0, 1, 0])
    assert estimated(group, Estimator(cap=None)) == estimated(group, PerArm(GRPO(epsilon=1e-6)))


def test_a_gated_group_has_no_advantages_at_all():
    assert estimated(rewards_of([0, 0, 0], [])) == [0.0] * 3


def test_unscored_answers_are_in_no_mean():
    assert Estimator().factor(rewards_of([0.4, np.nan, 0.2], [1, 0])) == pytest.approx(0.3)
    assert Estimator().factor(rewards_of([np.nan, np.nan], [1, 0])) == 0.0


def test_settings_are_checked(task):
    with pytest.raises(ValueError, match=r"cap must lie in \(0, 1\], or be null; got 0"):
        Estimator(cap=0.0)
    with pytest.raises(ValueError, match=r"gate must lie in \[0, 1\), or be null; got 1.0"):
        PEARL(Lines(), gate=1.0)
    with pytest.raises(ValueError, match="max_answer_length must be 1 or more"):
        PEARL(Lines(), max_answer_length=0)


# --- rollouts ---------------------------------------------------------------------------------------------------------------------------


def collected(tasks, say, strategy=None, G=5):
    engine = Engine(say)
    return (strategy or PEARL(Lines()))(tasks, engine, prompts_of, G, SAMPLING), engine.calls


def test_two_stages(task):
    say = {"a#perception": [answers_of(row) for row in VERDICTS], "a": ["right", "no", "no", "right", "no"]}
    (group,), calls = collected([task()], say)
    assert calls == [(["a#perception"], 5, 256), (["a"], 5, 4)]
    assert [(r.arm, r.attempt, r.train_prompt is r.prompt) for r in group.rollouts] == [("perception", False, True)] * 5 + [
        ("plain", True, True)
    ] * 5
    (scored,) = score([group], REWARDS)
    np.testing.assert_allclose(scored.rewards, [*SEEN, 1, 0, 0, 1, 0], atol=1e-6)
    assert np.isnan(scored.parts["checklist"][5:]).all()
    assert np.isnan(scored.parts["answer"][:5]).all()


def test_nothing_seen_nothing_asked(task):
    """Two tasks, one gated: a single second call, for the other; with all gated there is none."""
    blind, seen = [answers_of((0, 0, 0))] * 5, [answers_of(row) for row in VERDICTS]
    say = {"a#perception": blind, "b#perception": seen, "b": ["right"] * 5}
    (a, b), calls = collected([task("a"), task("b")], say)
    assert calls == [(["a#perception", "b#perception"], 5, 256), (["b"], 5, 4)]
    assert {r.arm for r in a.rollouts} == {"perception"}
    assert {r.arm for r in b.rollouts} == {"perception", "plain"}
    _, calls = collected([task("a")], say)
    assert len(calls) == 1


def test_the_gate_may_be_higher_or_open(task):
    say = {"a#perception": [answers_of(row) for row in VERDICTS], "a": ["no"] * 5}
    for gate, passes in ((0.5, True), (8 / 15 + 1e-6, False), (None, True)):
        (group,), _ = collected([task()], say, PEARL(Lines(), gate=gate))
        assert any(r.arm == "plain" for r in group.rollouts) is passes
    say["a#perception"] = [answers_of((0, 0, 0))] * 5
    (group,), _ = collected([task()], say, PEARL(Lines(), gate=None))
    assert any(r.arm == "plain" for r in group.rollouts)


def test_the_perception_prompt_asks_all_and_tells_nothing(task):
    """The same media, every question with its options, no word of the problem, no answer."""
    asked = PEARL(Lines(), instruction="Answer.").perception_task(task())
    assert asked.media is task().media or all(np.array_equal(a.frames, b.frames) for a, b in zip(asked.media, task().media, strict=True))
    assert [part["type"] for part in asked.messages[0]["content"]] == ["image", "text"]
    text = asked.messages[0]["content"][1]["text"]
    assert text.splitlines() == [
        "Answer.",
        "1. How many rows?",
        "2. Where is the goal? (top left, bottom right)",
        "3. Is it open? (yes, no)",
    ]
    assert "Go from O to T" not in text
    assert len(asked.messages) == 1


def test_real_prompts_of_both_stages(engine, make_prompts, task):
    """Through a real model: a wrong answer everywhere, so the gate is opened by hand."""
    (group,) = PEARL(Lines(), gate=None, max_answer_length=3)([task()], engine, make_prompts, 2, SAMPLING)
    first, last = group.rollouts[0], group.rollouts[-1]
    assert len(first.completion.ids) <= 3
    np.testing.assert_array_equal(first.prompt.mm_inputs["pixel_values"], last.prompt.mm_inputs["pixel_values"])
    assert "How many rows?" in first.prompt.text
    assert "How many rows?" not in last.prompt.text


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"checklist": []}, r'task a: pearl needs meta\["checklist"\], a list .* got \[\]'),
        ({"checklist": None}, "got None"),
        ({"checklist": "rows?"}, "got 'rows\\?'"),
        ({"checklist": [{"question": "?", "answer": "1"}, {"answer": "2"}]}, r"task a: checklist.1: got {'answer': '2'}; an item is"),
        ({"checklist": ["rows?"]}, "checklist.0: got 'rows\\?'"),
    ],
)
def test_a_task_without_a_sound_checklist_is_refused(task, meta, message):
    with pytest.raises(TaskError, match=message):
        PEARL(Lines()).check(task(**meta), 5)


def test_a_task_without_media_is_refused(picture_task):
    with pytest.raises(TaskError, match="task words: pearl asks what is in a picture or video, and the task has none"):
        PEARL(Lines()).check(replace(picture_task("words"), meta={"checklist": CHECKLIST}), 5)


# --- the filter -------------------------------------------------------------------------------------------------------------------------


class Source:
    """Endless tasks; number i is task str(i)."""

    buckets = ("",)

    def __init__(self, task):
        self.make = task

    def size(self, bucket):
        return None

    def task(self, key: TaskKey):
        return self.make(str(key.index))


class Observed(UniformSampler):
    def __init__(self):
        super().__init__()
        self.told = {}

    def observe(self, step, outcomes):
        self.told |= {key.index: rate for key, rate in outcomes.items()}


def test_soft_filter(task):
    """(mean reasoning, mean perception) -> kept: (.4, 1) yes; (1, .5) yes; (0, .5) yes; (1, 1) no; (0, 1) no; gated no. The gated task is
    counted and no outcome is told of it."""
    full, half, blind = answers_of((1, 1, 1)), [answers_of((1, 1, 1)), answers_of((0, 0, 0))], answers_of((0, 0, 0))
    seen = [[full] * 5, [*half, *half, answers_of((1, 0, 0))], [*half, *half, blind], [full] * 5, [full] * 5, [blind] * 5]
    right = [["right"] * 2 + ["no"] * 3, ["right"] * 5, ["no"] * 5, ["right"] * 5, ["no"] * 5, []]
    say = {f"{n}#perception": rows for n, rows in enumerate(seen)} | {str(n): rows for n, rows in enumerate(right)}
    say |= {f"{n}#perception": [full] * 5 for n in range(6, 12)} | {str(n): right[0] for n in range(6, 12)}
    sampler = Observed()
    collect = Collector(
        Source(task), sampler, Engine(say), PEARL(Lines()), prompts_of, REWARDS, WeightedReward(Right(), 1.0, "success"), 5, 0.05,  # type: ignore[arg-type]
        DynamicSamplingSection(also=("checklist",)), 0, 1,
    )  # fmt: skip
    out = collect(0, 6, SAMPLING)
    assert [group.group.task.id for group in out.scored] == ["0", "1", "2", "6", "7", "8"]
    assert (out.drawn, out.gated) == (12, 1)
    assert [key.index for key, had in out.tried.items() if not had] == [5]
    assert len(out.tried) == 12
    assert {n: sampler.told[n] for n in sampler.told if n < 6} == {0: 0.4, 1: 1.0, 2: 0.0, 3: 1.0, 4: 0.0}


def test_no_bound_below_keeps_what_is_never_solved():
    assert keep_group(np.zeros(3), None, 1.0)
    assert not keep_group(np.ones(3), None, 1.0)
    assert not keep_group(np.array([np.nan]), None, 1.0)


# --- the branches -----------------------------------------------------------------------------------------------------------------------


def two_branches(perception_lengths, arm_weights, aggregation="token_mean"):
    """Weights of three reasoning rows of 2, 3 and 5 tokens and of perception rows, by arm."""
    prompt = Prompt(Task("a", (), (), "", {}), "", np.array([0]), {})

    def rollout(length, arm):
        return Rollout(prompt, Completion(np.arange(length), "", np.zeros(length, np.float32), "stop", 0), prompt, arm)

    rollouts = (*(rollout(n, "perception") for n in perception_lengths), *(rollout(n, "plain") for n in (2, 3, 5)))
    group = ScoredGroup(Group(prompt.task, rollouts), np.arange(len(rollouts), dtype=np.float32), {})
    (update,), _ = credit(
        [group], [0], PerArm(), aggregation=aggregation, max_completion_length=8, mask_truncated=False, num_mini_batches=1, rank=0,
        arm_weights=arm_weights,
    )  # fmt: skip
    return {arm: [s.token_weights for s in update if s.rollout.arm == arm] for arm in ("plain", "perception")}


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_each_branch_is_a_mean_over_its_own_tokens(aggregation):
    """Twice the perception tokens leave the branches' weights at 1 to 0.1."""
    for lengths in ((1, 2, 4), (2, 4, 8)):
        weights = two_branches(lengths, {"perception": 0.1}, aggregation)
        assert sum(float(w.sum()) for w in weights["plain"]) == pytest.approx(1.0)
        assert sum(float(w.sum()) for w in weights["perception"]) == pytest.approx(0.1)


def test_a_branch_of_weight_0_leaves_the_other_as_if_it_were_alone():
    with_both, alone = two_branches((1, 2, 4), {"perception": 0.0}), two_branches((), {})
    assert all(not w.any() for w in with_both["perception"])
    assert all(np.array_equal(a, b) for a, b in zip(with_both["plain"], alone["plain"], strict=True))


def test_without_arm_weights_all_rows_share_one_mean():
    weights = two_branches((1, 2, 4), {})
    assert sum(float(w.sum()) for rows in weights.values() for w in rows) == pytest.approx(1.0)
    assert float(weights["plain"][0][0]) == pytest.approx(1 / 17)
