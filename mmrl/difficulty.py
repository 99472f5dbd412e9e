"""Offline difficulty sampling (TimeLens, arXiv:2512.14698): the model that is to be trained answers every task once, greedily; the harder
ones are drawn more often, within buckets of video duration.

The folder has `answers.jsonl`, a line a task with its answer and the overlap; `selected.jsonl`, the lines that were drawn, for the task
source `subset`; `difficulty.json`, the numbers; and `made_of.json`, what decides the answers. A run that was stopped goes on after its last
whole batch, and ends with the bytes it would have ended with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_pipelines.datasets.difficulty import BUCKET_EDGES_S, NUM_BINS, duration_buckets, sample_by_difficulty
from mmrl.errors import RecipeError, TaskError
from mmrl.evaluate import load_sampler, sample_groups
from mmrl.metrics import write_json, write_whole
from mmrl.protocols import Sampling, TaskSource
from mmrl.recipe import Recipe, load_recipe, to_plain
from mmrl.samplers import first_keys
from mmrl.types import Group, TaskKey
from rewards.spans import TemporalIoU

ANSWERS, SELECTED, NUMBERS, MADE_OF = "answers.jsonl", "selected.jsonl", "difficulty.json", "made_of.json"


def difficulty_command(path: Path, overrides: Sequence[str], out: Path, target_size: int, tasks: int | None) -> dict[str, Any]:
    """`mmrl tasks difficulty RECIPE --out D`: answers, draws, writes; returns the numbers. `tasks`: of the first so many only; an endless
    source needs it."""
    recipe = load_recipe(path, overrides)
    overlap = _overlap(recipe)
    source: TaskSource = recipe.tasks.train.build()
    sizes = [source.size(bucket) for bucket in source.buckets]
    if tasks is None and None in sizes:
        raise TaskError("tasks.train: is endless; say with --tasks how many of them to answer")
    keys = first_keys(source, sum(size or 0 for size in sizes) if tasks is None else tasks)
    if not keys:
        raise TaskError("tasks.train: the source has no tasks")
    _check_made_of(out, recipe, tasks)
    done = _answered(out / ANSWERS, recipe.trainer.eval_batch_size, len(keys))
    if done < len(keys):
        _answer(source, keys[done:], recipe, overlap, out / ANSWERS)
    rows = [json.loads(line) for line in (out / ANSWERS).read_bytes().split(b"\n") if line]  # an answer may hold other ends of lines
    overlaps, durations = (np.array([row[name] for row in rows]) for name in ("iou", "duration_s"))
    drawn = sample_by_difficulty(overlaps, durations, target_size, seed=recipe.trainer.seed)
    write_whole(out / SELECTED, "".join(_line(rows[n]) for n in drawn).encode())
    numbers = _numbers(overlaps, durations, drawn, target_size)
    write_json(out / NUMBERS, numbers)
    Console(stderr=True).print(f"{out / SELECTED}: {len(drawn)} of {len(rows)} tasks", highlight=False, soft_wrap=True)
    return numbers


def _overlap(recipe: Recipe) -> TemporalIoU:
    """The recipe's reward that measures overlap."""
    built = [entry.component.build() for entry in recipe.rewards if entry.component.target == "rewards.spans:TemporalIoU"]
    found = next((reward for reward in built if reward.at_least is None), None)
    if found is None:
        names = ", ".join(entry.name for entry in recipe.rewards)
        raise RecipeError(f"rewards: {names}: none is temporal_iou without at_least, whose overlap the difficulty is measured by; add it")
    return found


def _answer(source: TaskSource, keys: Sequence[TaskKey], recipe: Recipe, overlap: TemporalIoU, file: Path) -> None:
    """Appends a line a task, a batch at a time."""
    engine, make_prompts = load_sampler(recipe, recipe.model)
    sampling = Sampling(0.0, 1.0, 0, recipe.rollout.max_completion_length, recipe.rollout.stop, recipe.trainer.seed)
    at = 0
    with file.open("ab") as lines:
        for groups in sample_groups(source, keys, engine, make_prompts, 1, sampling, recipe.trainer.eval_batch_size):
            rows = [_row(key, group, overlap) for key, group in zip(keys[at : at + len(groups)], groups, strict=True)]
            lines.write("".join(_line(row) for row in rows).encode())
            lines.flush()
            os.fsync(lines.fileno())
            at += len(groups)


def _row(key: TaskKey, group: Group, overlap: TemporalIoU) -> dict[str, Any]:
    task = group.task
    duration = task.meta.get("duration_s")
    if not isinstance(duration, int | float) or not duration > 0:
        raise TaskError(f"task {task.id}: meta duration_s: got {duration!r}; difficulty is drawn by the video's seconds")
    return {
        "bucket": key.bucket, "index": key.index, "id": task.id, "iou": float(overlap(group)[0]), "duration_s": float(duration),
        "answer": group.rollouts[0].completion.text,
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _check_made_of(out: Path, recipe: Recipe, tasks: int | None) -> None:
    """The folder is new, or of the same recipe as far as answers depend on it."""
    plain = to_plain(recipe)
    rollout, trainer = plain["rollout"], plain["trainer"]
    made_of = {
        "model": plain["model"], "tasks": plain["tasks"]["train"], "first": tasks, "rewards": plain["rewards"],
        "rollout": {name: rollout[name] for name in ("engine", "max_completion_length", "stop")},
        "batch_size": trainer["eval_batch_size"], "seed": trainer["seed"],
    }  # fmt: skip
    made_of = json.loads(json.dumps(made_of))
    file = out / MADE_OF
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise TaskError(f"{out}: exists and is not the folder of a difficulty run; give another, or remove it")
        write_json(file, made_of)
        return
    before = json.loads(file.read_text())
    other = [name for name, value in made_of.items() if before.get(name) != value]
    if other:
        raise TaskError(f"{out}: its answers were made with another {', '.join(other)} (see {MADE_OF}); give another folder, or remove it")


def _answered(file: Path, batch_size: int, total: int) -> int:
    """Tasks answered already. What a stopped run wrote after its last whole batch is cut off: in a batch of its own, a row could differ by
    rounding."""
    if not file.is_file():
        return 0
    content = file.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == 0x0A]
    count = len(ends) if len(ends) == total else len(ends) // batch_size * batch_size
    os.truncate(file, ends[count - 1] if count else 0)
    return count


def _numbers(overlaps: np.ndarray, durations: np.ndarray, drawn: np.ndarray, target_size: int) -> dict[str, Any]:
    """Before and after: how many, their mean overlap and difficulty (1 - overlap), how the overlaps and durations lie."""
    return {
        "target_size": target_size,
        "duration_edges_s": list(BUCKET_EDGES_S),
        "answered": _spread(overlaps, durations),
        "selected": _spread(overlaps[drawn], durations[drawn]),
    }


def _spread(overlaps: np.ndarray, durations: np.ndarray) -> dict[str, Any]:
    return {
        "tasks": len(overlaps),
        "mean_iou": float(overlaps.mean()),
        "mean_difficulty": float(1 - overlaps.mean()),
        "iou_0": int((overlaps == 0).sum()),
        "iou_histogram": np.histogram(overlaps, np.linspace(0, 1, NUM_BINS + 1))[0].tolist(),
        "by_duration": np.bincount(duration_buckets(durations), minlength=len(BUCKET_EDGES_S) + 1).tolist(),
    }
