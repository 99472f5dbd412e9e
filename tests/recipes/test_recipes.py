"""Every recipe of the project: it is found, it reads, its components build, and two steps of it train."""

import json
import sys
from pathlib import Path

import pytest

from mmrl import cli
from mmrl.component import Spec
from mmrl.recipe import load_recipe, to_yaml

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in RECIPES]
NUM_RECIPES = 25

pytestmark = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_no_recipe_is_overlooked(path):
    assert len(RECIPES) == NUM_RECIPES, "a recipe was added or lost: correct NUM_RECIPES"


def test_the_header_says_how_to_run_it_and_what_to_expect(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [line for line in header if line.startswith("# COMMAND: ")]
    assert len(commands) == 1
    assert f"mmrl train {path.relative_to(ROOT)}" in commands[0]
    assert sum(line.startswith("# EXPECT:") for line in header) == 1


def test_it_resolves_and_reads_back(path, tmp_path):
    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe))
    assert load_recipe(again) == recipe
    assert recipe.trainer.name == path.stem


def test_every_component_builds(path):
    recipe = load_recipe(path)
    specs = [recipe.tasks.train, recipe.tasks.eval, recipe.tasks.sampler, recipe.rollout.engine, recipe.rollout.strategy]
    specs += [recipe.success, recipe.advantage, *(entry.component for entry in (*recipe.rewards, *recipe.losses))]
    specs += [entry.weight for entry in recipe.losses]
    specs += [*recipe.views.values(), *recipe.shaping]
    for spec in specs:
        if isinstance(spec, Spec):
            assert spec.build() is not None


@pytest.mark.trains
def test_two_steps_of_it_train(path, random_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "recipes")
    small = [
        f"model.path={random_model}", "trainer.tasks_per_step=4", "trainer.eval_tasks=2", "success={use: 'coin:Coin'}", "trainer.name=two",
        "trainer.log_completions_steps=0", "trainer.trackers=[]",
    ]  # fmt: skip
    arguments = [argument for override in small for argument in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["mmrl", "train", str(path), "--max-steps", "2", "--output-dir", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert set(losses) == {1, 2}
    assert all(loss is not None for loss in losses.values())
