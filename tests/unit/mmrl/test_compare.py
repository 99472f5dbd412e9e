"""McNemar's test by hand, and evaluations that can and cannot be paired."""

import json
import math
import sys

import pytest

from mmrl import cli
from mmrl.compare import McNemar, compare, compare_command, mcnemar
from mmrl.errors import RecipeError


@pytest.mark.parametrize(("lost", "gained", "exact"), [(1, 5, 0.21875), (2, 4, 0.6875), (2, 10, 0.038574)])
def test_check_6_the_exact_test(lost, gained, exact):
    """Perception-R1's README says 0.22, 0.69 and 0.04."""
    assert mcnemar(lost, gained).exact_p == pytest.approx(exact, abs=1e-5)
    assert mcnemar(gained, lost).exact_p == mcnemar(lost, gained).exact_p


@pytest.mark.parametrize(
    ("lost", "gained", "chi2", "p"),
    [
        (1, 5, 1.5, 0.220671),  # (4 - 1)^2 / 6
        (2, 4, 1 / 6, 0.683091),
        (2, 10, 49 / 12, 0.043308),
        (10, 30, 361 / 40, 0.002663),
        (3, 3, 0.0, 1.0),  # no more than chance
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_chi_square_test(lost, gained, chi2, p):
    test = mcnemar(lost, gained)
    assert test.chi2 == pytest.approx(chi2)
    assert test.chi2_p == pytest.approx(p, abs=1e-5)


def test_the_exact_test_is_the_sum_over_all_outcomes():
    """Every one of the 2^n ways to have changed is as likely as any other."""
    for n in range(11):
        for gained in range(n + 1):
            as_far = [ways for ways in range(2**n) if abs(ways.bit_count() - n / 2) >= abs(gained - n / 2)]
            assert mcnemar(n - gained, gained).exact_p == pytest.approx(len(as_far) / 2**n)


def test_large_counts_and_nothing():
    assert mcnemar(0, 0) == McNemar(0, 0, 1.0, 0.0, 1.0)
    assert mcnemar(7, 7).exact_p == 1.0
    assert 0 < mcnemar(400, 600).exact_p < 1e-9
    assert math.log(mcnemar(400, 600).exact_p) == pytest.approx(math.log(mcnemar(400, 600).chi2_p), rel=0.05)
    with pytest.raises(ValueError, match="cannot be negative; got -1 and 2"):
        mcnemar(-1, 2)


def evaluation(success: list, **values: list) -> dict:
    rows = {name: [[value] for value in column] for name, column in {"success": success, **values}.items()}
    return {"success": 0.0, "outcomes": {"tasks": [f"t/{n}" for n in range(len(success))], "values": rows}}


BEFORE = evaluation([1, 1, 0, 0, 0, 1], perception_r1=[1.0, 0.5, None, 0.4, 0.2, 1.0])
AFTER = evaluation([1, 0, 1, 1, 0, 1], perception_r1=[1.0, 1.0, 1.0, 0.6, 0.2, 0.8])


def test_two_evaluations():
    """Task 1 is lost, 2 and 3 are gained."""
    assert compare(BEFORE, AFTER) == {
        "outcome": "success", "at_least": 1.0, "tasks": 6, "unscored": 0, "before": 0.5, "after": 4 / 6, "lost": 1, "gained": 2,
        "exact_p": 1.0, "chi2": 0.0, "chi2_p": 1.0,
    }  # fmt: skip


def test_a_reward_as_the_outcome_from_a_value_on():
    full = compare(BEFORE, AFTER, "perception_r1")
    assert (full["tasks"], full["unscored"], full["lost"], full["gained"]) == (5, 1, 1, 1)
    half = compare(BEFORE, AFTER, "perception_r1", 0.5)
    assert (half["lost"], half["gained"], half["before"]) == (0, 1, 3 / 5)


def test_order_of_tasks_does_not_matter():
    turned = json.loads(json.dumps(AFTER))
    turned["outcomes"]["tasks"].reverse()
    for rows in turned["outcomes"]["values"].values():
        rows.reverse()
    assert compare(BEFORE, turned) == compare(BEFORE, AFTER)


@pytest.mark.parametrize(
    ("before", "after", "outcome", "message"),
    [
        (BEFORE, evaluation([1, 0]), "success", "different tasks: 6 and 2, 2 of them shared"),
        ({"success": 1.0}, AFTER, "success", "the first evaluation holds no outcomes by task"),
        (BEFORE, AFTER, "sucess", "no outcome 'sucess'; did you mean 'success'"),
        (BEFORE, evaluation([None] * 6), "success", "no task was scored in both"),
        (
            {"outcomes": {"tasks": ["t/0"], "values": {"success": [[1, 0]]}}},
            AFTER, "success", "the first evaluation has 2 completions a task",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_paired(before, after, outcome, message):
    with pytest.raises(RecipeError, match=message):
        compare(before, after, outcome)


def written(folder, name: str, evaluation: dict):
    path = folder / "eval" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation))
    return path


def test_files_and_runs(tmp_path, monkeypatch, capsys):
    one = written(tmp_path / "a", "step-000000.json", BEFORE)
    two = written(tmp_path / "a", "step-000100.json", AFTER)
    other = written(tmp_path / "b", "checkpoint-7.json", AFTER)
    expected = compare(BEFORE, AFTER)
    assert compare_command(one, two, "success", 1.0) == {"files": [str(one), str(two)], **expected}
    assert compare_command(tmp_path / "a", None, "success", 1.0)["files"] == [str(one), str(two)]  # a run's first and last
    assert compare_command(one, tmp_path / "b", "success", 1.0)["files"] == [str(one), str(other)]
    monkeypatch.setattr(sys, "argv", ["mmrl", "compare", str(tmp_path / "a"), "--outcome", "perception_r1", "--at-least", "0.5"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["gained"] == 1


def test_files_that_are_none(tmp_path):
    written(tmp_path / "a", "step-000000.json", BEFORE)
    for path, message in ((tmp_path / "a", "has 1 evaluation; give two"), (tmp_path / "none", "no such file, and no run with evaluations")):
        with pytest.raises(RecipeError, match=message):
            compare_command(path, None, "success", 1.0)
    broken = tmp_path / "x.json"
    for content, message in (("{", "x.json: not JSON"), ("[]", "x.json: not an evaluation")):
        broken.write_text(content)
        with pytest.raises(RecipeError, match=message):
            compare_command(broken, broken, "success", 1.0)
