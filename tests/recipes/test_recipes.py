"""Every recipe of the project: it is found, it reads, its components build, and two steps of it train."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipelines.datasets.jsonl import write_tasks
from mmrl import cli
from mmrl.component import Spec
from mmrl.recipe import Recipe, load_recipe, to_yaml
from mmrl.types import Media, Task

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in RECIPES]
NUM_RECIPES = 38

pytestmark = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


def data_tasks(video: bool) -> Iterator[Task]:
    """Eight tasks with a picture or a clip of 56 x 56 pixels, and everything that a recipe may want of a row."""
    for n in range(8):
        frames = np.random.default_rng(n).integers(0, 256, (4 if video else 1, 56, 56, 3), np.uint8)
        parts = [{"type": "video" if video else "image"}, {"type": "text", "text": "How many?"}]
        checklist = [{"question": "How many dots?", "answer": str(n)}, {"question": "Colour?", "answer": "red", "options": ["red", "blue"]}]
        meta = {"checklist": checklist, "visual_key_info": f"<info1>There are {n} dots.</info1><info2>One is red.</info2>"}
        media = Media(frames, np.arange(len(frames)) / 2.0 if video else None)
        yield Task(str(n), ({"role": "user", "content": parts},), (media,), str(n), meta)


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it who starts these recipes: with data/… for those that read a data set."""
    folder = tmp_path_factory.mktemp("user")
    for path in RECIPES:
        recipe = yaml.safe_load(path.read_text())
        source = recipe.get("tasks", {}).get("train", {})
        if source.get("use") == "jsonl" and not (folder / source["path"]).exists():
            write_tasks(data_tasks(video="t_grpo" in str(recipe["rollout"])), folder / source["path"])
    return folder


@pytest.fixture(autouse=True)
def _in_the_users_folder(monkeypatch, user_folder):
    monkeypatch.chdir(user_folder)


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


def of_the_papers_size(recipe: Recipe) -> bool:
    return recipe.tasks.train.use == "jsonl"


def shrunk(recipe: Recipe) -> list[str]:
    """What makes two steps of such a recipe short, and worth an update although a random model answers nothing: half of every group is
    right by a coin. No judge is asked."""
    overrides = [
        "model.dtype=float32", "model.min_pixels=3136", "model.max_pixels=3136", "rollout.max_completion_length=16",
        "update.num_mini_batches=2",
    ]  # fmt: skip
    for n, entry in enumerate(recipe.rewards):
        if entry.component.use in ("exact_match", "checklist", "votes"):
            coin = {"use": "coin:Coin", "name": entry.name, "weight": entry.weight, "arms": list(entry.arms)}
            overrides.append(f"rewards.{n}={json.dumps(coin)}")
        elif "judge" in entry.component.fields:
            overrides.append(f"rewards.{n}.judge={{use: rule}}")
    if recipe.rollout.strategy.use == "pearl":
        overrides += ["rollout.strategy.checklist={use: 'coin:Coin'}", "rollout.strategy.max_answer_length=16"]
    return overrides


@pytest.mark.trains
def test_two_steps_of_it_train(path, random_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "recipes")
    recipe = load_recipe(path)
    small = [
        f"model.path={random_model}", "trainer.tasks_per_step=4", f"trainer.eval_tasks={2 if recipe.tasks.eval else 0}",
        "success={use: 'coin:Coin'}", "trainer.name=two", "trainer.log_completions_steps=0", "trainer.trackers=[]",
        *(shrunk(recipe) if of_the_papers_size(recipe) else ()),
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
    if of_the_papers_size(recipe):
        assert all(line["grad_norm"] > 0 for line in lines if "loss" in line)
