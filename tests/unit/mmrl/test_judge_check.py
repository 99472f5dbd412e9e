import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mmrl import cli
from mmrl.errors import RecipeError
from mmrl.judge_check import Labelled, check_judge, from_file, from_tasks, judge_command
from mmrl.protocols import Verdict
from mmrl.recipe import load_recipe

RECIPE = """
model: {path: tiny}
tasks: {train: {use: maze, split: train, annotated: true}}
rewards:
  - {use: maze_walker}
  - {use: perception_r1, judge: {use: rule}}
trainer: {max_steps: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


@dataclass(frozen=True)
class Trusting:
    """Says yes to everything once a text asks for it, and knows the truth otherwise; "down" in a text is an outage."""

    def __call__(self, facts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        if "down" in texts[0].split():
            return [Verdict(kind="outage", reason="HTTP 503")]
        return [Verdict(tuple(float(fact in text or "answer 1" in text) for fact in facts)) for text in texts]


def test_by_hand():
    """Unlured: 1 of 2 facts stated, both right. Lured: the unstated one of two is taken for stated."""
    pairs = [
        Labelled(("a.", "b."), "a.", (True, False)),
        Labelled(("a.", "b."), "a. answer 1", (True, False), lured=True),
        Labelled(("a.",), "a down", (True,)),
    ]
    assert check_judge(Trusting(), pairs) == {
        "texts": 3, "facts": 4, "accuracy": 0.75, "kappa": 0.5, "false_yes": 0.5, "false_no": 0.0, "lured_false_yes": 1.0,
        "unscored": {"outage": 1}, "first_reason": "HTTP 503",
    }  # fmt: skip


def test_the_judge_by_rule_is_right_about_its_own_mazes(recipe, monkeypatch, capsys):
    found = judge_command(recipe, [], 60, None)
    assert found == {
        "judge": "rule", "texts": 60, "facts": 300, "accuracy": 1.0, "kappa": 1.0, "false_yes": 0.0, "false_no": 0.0,
        "lured_false_yes": 0.0, "unscored": {},
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mmrl", "judge", str(recipe), "--n", "60"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out) == found


def test_texts_repeat_and_half_of_them_lure(recipe):
    made = list(from_tasks(load_recipe(recipe), 10))
    assert made == list(from_tasks(load_recipe(recipe), 10))
    assert [one.lured for one in made] == [False, True] * 5
    for one in made:
        assert sum(one.stated) == 2
        assert all((fact in one.text) == stated for fact, stated in zip(one.facts, one.stated, strict=True))
        assert ("<info5>1</info5>" in one.text) == one.lured


def test_pairs_of_your_own(recipe, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"facts": ["O is in row 1, column 2."], "text": "O is in row 1, column 2", "stated": [1]},
        {"facts": ["x"], "text": "y", "stated": [1]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert len(list(from_file(path))) == 2
    assert judge_command(recipe, [], 1, path)["accuracy"] == 0.5


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"facts": ["a"], "text": "b"}',
        '{"facts": ["a"], "text": "b", "stated": [1, 0]}',
        '{"facts": [], "text": "", "stated": []}',
    ],
)
def test_pairs_of_another_form_name_the_line(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"facts": ["a"], "text": "b", "stated": [0]}\n' + line)
    with pytest.raises(RecipeError, match=r"pairs.jsonl:2: "):
        list(from_file(path))


def test_what_there_is_nothing_to_check_in(recipe):
    with pytest.raises(RecipeError, match="no reward of this recipe has a judge"):
        judge_command(recipe, ["rewards=[{use: maze_walker}]"], 5, None)
    with pytest.raises(RecipeError, match="holds no facts to judge by"):
        judge_command(recipe, ["tasks.train.annotated=false"], 5, None)
