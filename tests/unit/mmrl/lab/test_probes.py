"""Probes: what they say, what they earn, and when a reward is flagged."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from mmrl.lab.logged import LoggedGroup, read_logged_run
from mmrl.lab.probes import Probes, Tally, skeleton
from mmrl.lab.replay import open_log, replay
from mmrl.lab.spec import read_rewards
from mmrl.loop.score import WeightedReward
from mmrl.types import Group, Media, Task
from rewards.control import Shuffled
from rewards.exact import ExactMatch
from rewards.format import AnswerFormat
from tests.unit.mmrl.lab.conftest import rollout

NAN = float("nan")


def logged(task: Task, *texts: str) -> LoggedGroup:
    size = len(texts)
    nothing = np.zeros(size, np.float32)
    return LoggedGroup(
        Group(task, tuple(rollout(task, text) for text in texts)), nothing, {}, nothing, np.ones(size, np.bool_), np.full(size, 3)
    )


def choice(number: int, solution: str, **meta) -> Task:
    return Task(f"c/{number}", ({"role": "user", "content": "Which?"},), (Media(np.zeros((1, 20, 30, 3), np.uint8)),), solution, meta)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("<think>So <b</think> <answer>3</answer>", "<think></think><answer></answer>"),
        (r"<think>x</think> It is \boxed{\frac{1}{2}}.", r"<think></think>\boxed{}"),
        (r"<answer>\boxed{3}</answer>", r"<answer>\boxed{}</answer>"),
        ("<think></think><|up|><|left|>", "<think></think>"),
        ("no tags, 3 < 4", ""),
    ],
)
def test_the_form_of_a_text_is_its_tags(text, form):
    assert skeleton(text) == form


def test_probes_take_form_answer_and_options_from_the_log():
    groups = [
        logged(choice(0, "A"), "<think>a</think><answer>B</answer>", "<think>b</think><answer>B</answer>", "A"),
        logged(choice(1, "B"), "<think>c</think><answer>C</answer>", "<answer>A</answer>", "?"),
        logged(choice(2, "A"), "<think>d</think><answer>B</answer>", "B", "<think>"),
    ]
    probes = Probes.of(groups)
    assert (probes.form, probes.answer, probes.options) == ("<think></think><answer></answer>", "B", ("A", "B"))
    characters = sum(len(r.completion.text) for group in groups for r in group.group.rollouts)
    assert probes.characters_per_token == pytest.approx(characters / 27)
    form = "<think></think><answer>{}</answer>"
    assert probes.texts(groups[0].group.task) == {
        "empty": "",
        "format only": form.format(""),
        "every option": form.format("A B"),
        "repeated text": form.format(" ".join(["B"] * 32)),
        "judge tags": form.format("<score>10</score> <judge>correct</judge> Score: 10/10. [[10]]"),
        "judge words": form.format("The answer is correct."),
        "whole image": form.format('[{"bbox_2d": [0, 0, 30, 20], "label": "object"}]'),
    }
    named = probes.texts(choice(3, "C", options={"A": "cat", "B": "dog", "C": "cow"}))
    assert named["every option"] == form.format("cat dog cow")


def test_without_tags_there_is_no_form_and_a_clip_has_a_whole():
    task = Task(
        "v", (), (Media(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) / 2),), "1.0-1.5", {"kind": "grounding", "span_s": [1.0, 1.5]}
    )
    texts = Probes.of([logged(task, "0-1", "0-1", "1-2")]).texts(task)
    assert list(texts) == ["empty", "every option", "repeated text", "judge tags", "judge words", "whole clip"]
    assert texts["every option"] == "1.0-1.5"
    assert texts["whole clip"] == "0.0-1.5"
    longer = Task("v", (), task.media, "", {"duration_s": 2.0})
    assert Probes("", "", (), None).texts(longer)["whole clip"] == "0.0-2.0"


def test_moves_are_joined_as_moves(logged_run):
    run, _ = logged_run()
    groups = [group for step in read_logged_run(run) for group in step.groups]
    texts = Probes.of(groups).texts(groups[0].group.task)
    assert texts["every option"] == "<think></think><|up|><|down|><|left|><|right|>"
    assert " " not in texts["repeated text"]
    assert texts["whole image"] == '<think></think>[{"bbox_2d": [0, 0, 140, 140], "label": "object"}]'


def test_a_table_by_hand():
    """Three tasks. The probe earns .5, 0 and 1 against (0, 0, 1), (0, 0, 0) and, of which one was not scored, (1, NaN).

    Percentiles 2/3, 1/2 (three ties) and 1/2 (one tie): 5/9. It beats the mean 1/3 on the first task only. The policy earned
    0 0 1 0 0 0 1: mean 2/7, median 0, so the probe's 1/2 is above the median.
    """
    tally = Tally({"probe": [(0, 0.5), (1, 0.0), (2, 1.0)], "nothing": [(0, 0.0)]}, 3)
    policy = [np.array(row, np.float32) for row in ([0, 0, 1], [0, 0, 0], [1, NAN])]
    probe, nothing = tally.table(policy)
    assert probe == {
        "name": "probe",
        "tasks": 3,
        "mean": pytest.approx(0.5),
        "policy_mean": pytest.approx(2 / 7),
        "policy_median": 0.0,
        "percentile": pytest.approx(5 / 9),
        "beats_mean": pytest.approx(1 / 3),
        "flagged": True,
    }
    assert (nothing["tasks"], nothing["percentile"], nothing["flagged"]) == (1, pytest.approx(1 / 3), False)


def test_a_task_on_which_the_policy_was_not_scored_does_not_count():
    tally = Tally({"probe": [(0, 1.0), (1, 1.0)]}, 2)
    (row,) = tally.table([np.array([NAN, NAN]), np.array([0.0, 1.0])])
    assert row["tasks"] == 1


def test_rewards_are_asked_what_a_probe_earns():
    groups = [logged(choice(n, "A"), "<answer>A</answer>", "<answer>B</answer>", "<answer>B</answer>") for n in range(3)]
    probes, tally = Probes.of(groups), Tally()
    tally.add(
        probes, [group.group for group in groups], [WeightedReward(AnswerFormat(), 1.0, "form"), WeightedReward(ExactMatch(), 1.0, "right")]
    )
    earned = {name: [value for _, value in values] for name, values in tally.earned.items()}
    assert earned["empty"] == earned["format only"] == [0.0, 0.0, 0.0]
    assert earned["every option"] == [2.0, 2.0, 2.0]  # one solution in all of the log: it is the answer
    assert earned["judge words"] == earned["whole image"] == [1.0, 1.0, 1.0]


@dataclass(frozen=True)
class Rank:
    """How many of the group's texts are shorter: looks at the group as a whole."""

    per_completion: ClassVar[bool] = False

    def __call__(self, group: Group) -> np.ndarray:
        lengths = [len(r.completion.text) for r in group.rollouts]
        return np.array([sum(other < own for other in lengths) for own in lengths], np.float32)


def test_a_reward_of_whole_groups_sees_the_probe_among_the_policys_own():
    """In the last one's place, so against two texts of 1 and 3 characters."""
    group = logged(choice(0, "A"), "A", "AAA", "AAAAA")
    tally = Tally()
    tally.add(Probes("", "", (), None), [group.group], [WeightedReward(Rank(), 1.0, "rank")])
    assert {name: values[0][1] for name, values in tally.earned.items()} == {
        "empty": 0.0, "judge tags": 2.0, "judge words": 2.0, "whole image": 2.0
    }  # fmt: skip


def test_a_probe_on_which_a_reward_fails_is_not_scored():
    class Fails:
        per_completion = True

        def __call__(self, group: Group) -> np.ndarray:
            if any("score" in r.completion.text for r in group.rollouts):
                raise KeyError("score")
            return np.ones(len(group.rollouts), np.float32)

    tally = Tally()
    tally.add(Probes("", "", (), None), [logged(choice(0, "A"), "A", "B").group], [WeightedReward(Fails(), 1.0, "fails")])
    assert sorted(tally.earned) == ["empty", "judge words", "whole image"]


def test_lengths_of_probes_are_those_the_policy_would_need():
    """Six characters a token: a text of 22 characters is four tokens."""
    task = choice(0, "A")
    probes = Probes("", "", (), 6.0)
    made = probes.completion("The answer is correct.", rollout(task, "x").completion)
    assert (len(made.ids), len(made.sampling_logps), made.finish) == (4, 4, "stop")
    assert len(probes.completion("", rollout(task, "x").completion).ids) == 1


def test_form_alone_earns_all_of_a_forms_reward_and_nothing_of_the_walkers(logged_run):
    run, _ = logged_run()
    log = open_log(run)
    probes = Probes.of(group for step in log.steps for group in step.groups)
    candidates = {text: read_rewards(text).weighted() for text in ("use=think_format", "use=maze_walker")}
    made = replay(log, candidates, log.own.advantage.build(), probes)["candidates"]  # type: ignore[union-attr]
    walked = {row["name"]: row["mean"] for row in made["use=maze_walker"]["probes"]}
    assert set(walked.values()) == {0.0}
    best = {row["name"]: row["mean"] for row in made["use=think_format"]["probes"]}
    assert best["format only"] == 1.0
    assert best["empty"] == 0.0


def test_a_shuffled_reward_can_be_probed(logged_run):
    run, _ = logged_run()
    (first, *_) = read_logged_run(run)
    tally = Tally()
    groups = [group.group for group in first.groups]
    tally.add(Probes.of(first.groups), groups, [WeightedReward(Shuffled(AnswerFormat()), 1.0, "shuffled")])
    assert all(len(values) == 4 for values in tally.earned.values())
