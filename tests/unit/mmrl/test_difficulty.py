"""Offline difficulty sampling, from a recipe to a list that trains: answers written once, resumed to the same bytes, drawn by overlap."""

import json
from collections import Counter

import numpy as np
import pytest
import yaml

from mmrl.difficulty import ANSWERS, MADE_OF, NUMBERS, SELECTED, difficulty_command
from mmrl.errors import RecipeError, TaskError
from mmrl.recipe import load_recipe
from mmrl.types import TaskKey

ENGINE = '''
from dataclasses import dataclass

import numpy as np

from mmrl.types import Completion

STOP_AFTER = [None]


@dataclass
class Written:
    """Answers the task's own span at index 0 modulo 3, half of it at 1, nothing at 2. May stop in the middle."""

    def attach(self, processor):
        pass

    def load_policy(self, policy, version):
        pass

    def generate(self, prompts, num_generations, sampling):
        assert (num_generations, sampling.temperature) == (1, 0.0)
        if STOP_AFTER[0] is not None:
            STOP_AFTER[0] -= 1
            if STOP_AFTER[0] < 0:
                raise KeyboardInterrupt
        return [[self.answer(prompt.task)] for prompt in prompts]

    def answer(self, task):
        start, end = task.meta["span_s"]
        kind = int(task.id.rpartition("/")[2]) % 3
        text = f"It is {start} - {end if kind == 0 else (start + end) / 2}" if kind < 2 else "I cannot\u2028say"
        return Completion(np.array([1]), text, np.zeros(1, np.float32), "stop", 0)
'''


@pytest.fixture
def recipe(tmp_path, tiny_folder, monkeypatch):
    (tmp_path / "written_engine.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    tree = {
        "model": {"path": str(tiny_folder)},
        "tasks": {"train": {"use": "clips", "split": "train", "kinds": ["grounding"], "levels": [1]}},
        "rollout": {"engine": {"use": "written_engine:Written"}, "max_completion_length": 4},
        "rewards": [{"use": "temporal_iou", "at_least": 0.5, "weight": 0, "name": "R"}, {"use": "temporal_iou"}],
        "trainer": {"max_steps": 1, "eval_batch_size": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def engine(recipe):
    import importlib

    return importlib.reload(importlib.import_module("written_engine"))


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_answers_draw_and_numbers(recipe, engine, tmp_path):
    """30 clips of 6 s, all in the first bucket of duration: a target of 90 asks 10 of each bucket. Overlaps are 1, about a half and 0 for
    ten clips each; three bins of ten weigh exp(-(IoU - 0.05)² / 0.08), so near 1 is hardly ever drawn."""
    numbers = difficulty_command(recipe, (), tmp_path / "out", 90, 30)
    rows = lines(tmp_path / "out" / ANSWERS)
    assert [row["index"] for row in rows] == list(range(30))
    assert {row["duration_s"] for row in rows} == {6.0}
    assert [row["iou"] for row in rows[::3]] == pytest.approx([1.0] * 10)
    assert all(0.3 < row["iou"] < 0.7 for row in rows[1::3])
    assert [row["iou"] for row in rows[2::3]] == [0.0] * 10
    assert rows[2]["answer"] == "I cannot\u2028say"
    drawn = lines(tmp_path / "out" / SELECTED)
    assert len(drawn) == 10
    assert all(row in rows for row in drawn)
    assert Counter(row["iou"] == 1.0 for row in drawn)[True] == 0
    assert json.loads((tmp_path / "out" / NUMBERS).read_text()) == numbers
    assert numbers["answered"]["tasks"] == 30
    assert numbers["answered"]["iou_0"] == 10
    assert numbers["selected"]["by_duration"] == [10, 0, 0, 0, 0, 0, 0, 0, 0]
    assert numbers["selected"]["mean_difficulty"] == pytest.approx(1 - np.mean([row["iou"] for row in drawn]))
    assert numbers["selected"]["mean_difficulty"] > numbers["answered"]["mean_difficulty"]


def test_a_stopped_run_goes_on_to_the_same_bytes(recipe, engine, tmp_path):
    difficulty_command(recipe, (), tmp_path / "whole", 45, 10)
    engine.STOP_AFTER[0] = 1
    with pytest.raises(KeyboardInterrupt):
        difficulty_command(recipe, (), tmp_path / "parts", 45, 10)
    file = tmp_path / "parts" / ANSWERS
    assert len(lines(file)) == 4
    with file.open("a") as torn:
        torn.write('{"a line": "of a batch that was not finished"}\n{"bucket": "gro')
    engine.STOP_AFTER[0] = None
    difficulty_command(recipe, (), tmp_path / "parts", 45, 10)
    engine.STOP_AFTER[0] = 0  # a finished one asks no engine
    difficulty_command(recipe, (), tmp_path / "parts", 45, 10)
    for name in (ANSWERS, SELECTED, NUMBERS, MADE_OF):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_target_needs_no_new_answers(recipe, engine, tmp_path):
    difficulty_command(recipe, (), tmp_path / "out", 9, 10)
    engine.STOP_AFTER[0] = 0
    assert difficulty_command(recipe, (), tmp_path / "out", 27, 10)["selected"]["tasks"] == 3


def test_the_list_is_a_task_source(recipe, engine, tmp_path):
    difficulty_command(recipe, (), tmp_path / "out", 45, 10)
    rows = lines(tmp_path / "out" / SELECTED)
    clips = "{use: clips, split: train, kinds: [grounding], levels: [1]}"
    subset = f"tasks.train={{use: subset, path: {tmp_path / 'out' / SELECTED}, source: {clips}}}"
    source = load_recipe(recipe, [subset]).tasks.train.build()
    assert [source.task(TaskKey("", n)).id for n in range(source.size(""))] == [row["id"] for row in rows]
    changed = load_recipe(recipe, [subset, "tasks.train.source.num_frames=8"]).tasks.train.build()
    with pytest.raises(TaskError, match="make the list again"):
        changed.task(TaskKey("", 0))


def test_what_it_refuses(recipe, engine, tmp_path):
    with pytest.raises(TaskError, match="is endless; say with --tasks how many"):
        difficulty_command(recipe, (), tmp_path / "out", 9, None)
    with pytest.raises(RecipeError, match="rewards: R: none is temporal_iou without at_least"):
        difficulty_command(recipe, ["rewards=[{use: temporal_iou, at_least: 0.5, name: R}]"], tmp_path / "out", 9, 4)
    difficulty_command(recipe, (), tmp_path / "out", 9, 4)
    with pytest.raises(TaskError, match=r"answers were made with another tasks, rollout \(see made_of\.json\)"):
        difficulty_command(recipe, ["tasks.train.seed=1", "rollout.max_completion_length=5"], tmp_path / "out", 9, 4)
    with pytest.raises(TaskError, match="answers were made with another first"):
        difficulty_command(recipe, (), tmp_path / "out", 9, 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(TaskError, match="exists and is not the folder of a difficulty run"):
        difficulty_command(recipe, (), tmp_path / "full", 9, 4)
    counting = ["tasks.train={use: maze, split: train}"]
    with pytest.raises(Exception, match="span_s"):
        difficulty_command(recipe, counting, tmp_path / "maze", 9, 4)


def test_the_models_own_answers(recipe, tmp_path):
    """The real engine, untrained: nothing it says holds a span, so every overlap is 0."""
    numbers = difficulty_command(recipe, ["rollout.engine.use=hf"], tmp_path / "out", 9, 5)
    assert numbers["answered"]["iou_0"] == 5
    assert numbers["selected"]["tasks"] == 1
