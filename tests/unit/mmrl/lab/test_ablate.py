"""Grids, their checks before anything starts, and the tables made of runs; real training is in tests/recipes/test_ablate.py."""

import fcntl
import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mmrl.errors import MmrlError, RecipeError
from mmrl.lab.ablate import Variant, ablate_command, grid, plan, read_variants
from mmrl.lab.compare_runs import Finished, compare_runs, final_value, tables_of
from mmrl.lab.curves import draw_curves, ticks
from mmrl.recipe import to_yaml

ROOT = Path(__file__).parents[4]
DEMO = ROOT / "configs" / "methods" / "demo.yaml"
DAPO = ROOT / "configs" / "methods" / "dapo.yaml"


def test_a_grid_is_the_product_with_the_first_values_as_its_base():
    variants = grid(DEMO, ["losses.0.epsilon_high=0.2,0.28", "advantage.scale_rewards=group,none"])
    assert [variant.name for variant in variants] == [
        "epsilon_high=0.2, scale_rewards=group", "epsilon_high=0.2, scale_rewards=none",
        "epsilon_high=0.28, scale_rewards=group", "epsilon_high=0.28, scale_rewards=none",
    ]  # fmt: skip
    assert variants[1].overrides == ("losses.0.epsilon_high=0.2", 'advantage.scale_rewards="none"')
    assert variants[1].slug == "epsilon_high=0.2_scale_rewards=none"


def test_keys_with_one_last_word_keep_their_paths():
    (first, *_) = grid(DEMO, ["rewards.0.weight=1,2", "rewards.1.weight=0,1"])
    assert first.name == "rewards.0.weight=1, rewards.1.weight=0"


def test_values_may_be_whole_components():
    _, other = grid(DEMO, ["advantage={use: grpo},{use: rloo}"])
    assert other.overrides == ('advantage={"use": "rloo"}',)
    assert other.slug == "advantage=_use_rloo"


def test_without_changes_the_recipe_alone_is_the_base():
    assert grid(DEMO, []) == [Variant("base", DEMO, ())]


def test_variants_from_a_file(tmp_path):
    file = tmp_path / "variants.yaml"
    file.write_text(f"clip-higher: [losses.0.epsilon_high=0.3]\ndapo: [{DAPO}, optim.learning_rate=1e-4]\n")
    assert read_variants(file, DEMO) == [
        Variant("base", DEMO, ()),
        Variant("clip-higher", DEMO, ("losses.0.epsilon_high=0.3",)),
        Variant("dapo", DAPO, ("optim.learning_rate=1e-4",)),
    ]
    file.write_text("x: [a=1]\nbase: [optim.learning_rate=1e-4]\n")
    assert [variant.name for variant in read_variants(file, DEMO)] == ["base", "x"]
    assert read_variants(file, DEMO)[0].overrides == ("optim.learning_rate=1e-4",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n", "expected name: .*got list"),
        ("x: a=1\n", "x: got 'a=1'; expected a list of overrides"),
        ("x: [1]\n", r"x: got \[1\]"),
        ("x: [a=1\n", "is not YAML"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, said):
    (tmp_path / "variants.yaml").write_text(content)
    with pytest.raises(RecipeError, match=said):
        read_variants(tmp_path / "variants.yaml", DEMO)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read"):
        read_variants(tmp_path / "nothing.yaml", DEMO)


def test_a_plan_has_a_recipe_and_a_folder_for_every_variant_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = plan(grid(DEMO, ["losses.0.epsilon_high=0.2,0.28"]), [0, 3], tmp_path)
    assert [run.name for run in planned] == [
        "epsilon_high=0.2-seed0",
        "epsilon_high=0.28-seed0",
        "epsilon_high=0.2-seed3",
        "epsilon_high=0.28-seed3",
    ]
    last = planned[-1]
    assert (last.checked.trainer.seed, last.checked.losses[0].component.fields["epsilon_high"]) == (3, 0.28)
    assert Path(last.checked.trainer.output_dir) / last.checked.trainer.name == last.folder == tmp_path / "runs" / "epsilon_high=0.28-seed3"


def test_what_is_wrong_with_any_variant_is_said_before_one_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RecipeError) as caught:
        ablate_command(
            DEMO, varied=["optim.learning_rate=1e-4,fast", "advantage.scale_rewards=group,nothing"], variants_file=None, overrides=(),
            seeds="0,1", processes=1, out=tmp_path / "out", metrics=(), say=print,
        )  # fmt: skip
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "variant 'learning_rate=1e-4, scale_rewards=nothing'", "variant 'learning_rate=fast, scale_rewards=group'",
        "variant 'learning_rate=fast, scale_rewards=nothing'", "variant 'learning_rate=fast, scale_rewards=nothing'",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"varied": ["optim.learning_rate"]}, "--vary optim.learning_rate: expected"),
        ({"varied": ["optim.learning_rate=1e-4,1e-4"]}, "stands twice"),
        ({"seeds": "0,0"}, "--seeds 0,0"),
        ({"seeds": "one"}, "--seeds one"),
        ({"varied": ["trainer.seed=1,2"], "variants_file": Path("x.yaml")}, "not both"),
    ],
)
def test_options_that_do_not_fit(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(ROOT)
    given = {"varied": (), "variants_file": None, "seeds": "0"} | options
    with pytest.raises(RecipeError, match=said):
        ablate_command(DEMO, overrides=(), processes=1, out=tmp_path / "out", metrics=(), say=print, **given)


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = plan(grid(DEMO, []), [0], tmp_path)
    run.folder.mkdir(parents=True)
    assert not run.is_finished()
    (run.folder / "recipe.yaml").write_text(to_yaml(run.checked))
    for status, finished in (("running", False), ("finished", True)):
        (run.folder / "manifest.json").write_text(json.dumps({"status": status}))
        assert run.is_finished() is finished
    (elsewhere,) = plan([Variant("base", DEMO, ("trainer.trackers=[]",))], [0], tmp_path)
    assert elsewhere.is_finished()
    (other,) = plan([Variant("base", DEMO, ("optim.learning_rate=0.5",))], [0], tmp_path)
    with pytest.raises(RecipeError, match=r"optim\.learning_rate was 0\.0003, now 0\.5\. Give another --out"):
        other.is_finished()


def test_two_at_work_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / ".lock").touch()
    held = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(MmrlError, match="another mmrl ablate is at work here"):
        ablate_command(
            DEMO, varied=(), variants_file=None, overrides=(), seeds="0", processes=1, out=tmp_path, metrics=(), say=print
        )  # fmt: skip
    os.close(held)


# --- tables -----------------------------------------------------------------------------------------------------------------------------


def finished(success, reward, step_s):
    return Finished({"eval/success": success, "reward": reward, "perf/step_s": step_s}, "abc")


def test_a_run_ends_with_its_last_evaluation_and_the_mean_of_its_last_tenth():
    steps = {step: float(step) for step in range(1, 31)}
    assert final_value("eval/success", {0: 0.1, 20: 0.5, 10: 0.3}) == 0.5
    assert final_value("reward", steps) == 29.0
    assert final_value("reward", {1: 0.5, 2: None}) == 0.5
    assert final_value("reward", {1: None}) is None


def test_means_intervals_and_paired_differences_by_hand():
    """Base .4 and .6: mean .5, std .1414, interval .5 -+ 12.7062 * .1 = 1.27062. The other .5, .7 and, without a partner, .9; differences
    .1 and .1, so their interval is a point. Steps take 2 s (median of 1, 2, 9) and 3 s."""
    runs = {
        "base": {seed: finished({0: 0.0, 9: end}, {1: 1.0}, {1: 9.0, 2: 1.0, 3: 2.0}) for seed, end in ((0, 0.4), (1, 0.6))},
        "other": {seed: finished({0: 0.0, 9: end}, {1: 2.0}, {1: 3.0}) for seed, end in ((0, 0.5), (1, 0.7), (2, 0.9))},
        "failed": {},
    }
    result = compare_runs(runs, ["eval/success", "reward", "kl"])
    base, other = (result["variants"][name]["metrics"]["eval/success"] for name in ("base", "other"))
    assert base == {
        "by_seed": {"0": 0.4, "1": 0.6},
        "mean": pytest.approx(0.5),
        "interval": pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5),
        "difference": None,
    }
    assert other["mean"] == pytest.approx(0.7)
    assert other["interval"] == pytest.approx((0.7 - 4.302653 * 0.2 / 3**0.5, 0.7 + 4.302653 * 0.2 / 3**0.5), abs=1e-5)
    assert other["difference"]["mean"] == pytest.approx(0.1)
    assert other["difference"]["interval"] == pytest.approx((0.1, 0.1))
    assert [result["variants"][name]["step_s"] for name in runs] == [2.0, 3.0, None]
    assert result["variants"]["other"]["step_ratio"] == 1.5
    assert result["variants"]["failed"]["metrics"]["reward"] == {"by_seed": {}, "mean": None, "interval": None, "difference": None}
    table = tables_of(result).splitlines()
    assert [cell.strip() for cell in table[3].split("|")[1:6]] == ["other", "3", "0.7 [0.2032, 1.197]", "+0.1 [0.1, 0.1]", "2 [2, 2]"]
    assert [cell.strip() for cell in table[4].split("|")[1:4]] == ["failed", "0", "–"]


def test_ticks_are_round_numbers_inside():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 1300) == [0, 500, 1000]
    assert ticks(-0.013, 0.031) == [-0.01, 0.0, 0.01, 0.02, 0.03]


def test_curves_are_a_picture_with_a_line_and_a_band_a_variant():
    """Two seeds at 0 and 1 of 0 -> 1: the mean goes through the middle, the band from the lower to the upper edge."""
    text = draw_curves("a <b>", {"base": [{0: 0.0, 10: 0.0}, {0: 1.0, 10: 1.0}], "x & y": [{0: 0.25, 10: 0.25}], "none": []})
    root = ET.fromstring(text)
    names = {"s": "http://www.w3.org/2000/svg"}
    lines, bands = root.findall("s:polyline", names), root.findall("s:polygon", names)
    assert [line.get("points") for line in lines] == ["64,198 704,198", "64,277 704,277"]
    assert bands[0].get("points") == "64,356 704,356 704,40 64,40"
    assert len({line.get("stroke") for line in lines}) == 2
    words = [node.text for node in root.findall("s:text", names)]
    assert {"a <b>", "base (2 seeds)", "x & y (1 seed)", "none (0 seeds)"} <= set(words)


def test_curves_of_nothing_and_of_one_point_can_be_drawn():
    for curves in ({"base": []}, {"base": [{5: 0.3}]}, {"base": [{5: None}]}):
        ET.fromstring(draw_curves("empty", curves))
