"""Reads a run folder. What is missing, broken or of another shape is an `MmrlError` that names file and line."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmrl.errors import MmrlError

Series = dict[int, float | None]
"""Step -> value; None where the run logged null (NaN)."""


@dataclass(frozen=True)
class Evaluation:
    """One `eval/step-*.json`."""

    file: Path
    step: int
    tasks: int
    success: float | None
    """In [0, 1]."""
    interval: tuple[float, float] | None
    """95 % interval of `success`."""
    sampling: Mapping[str, Any]
    table: tuple[Mapping[str, Any], ...]
    """Rows with "n", "success" and the keys that tell the classes apart, e.g. "moves" and "turns"."""
    examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Run:
    """A run folder, without its rollouts: those are read a file at a time."""

    folder: Path
    manifest: Mapping[str, Any]
    recipe_text: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Series]
    """Metric name -> series, "step" left out. A step that was logged twice (a resumed run) has the later values."""
    train_steps: tuple[int, ...]
    """Steps of lines that hold more than evaluation metrics, in order."""
    evaluations: tuple[Evaluation, ...]
    """In order of steps."""
    rollout_files: tuple[Path, ...]
    """In order of names, which is the order of steps."""
    notes: tuple[str, ...]
    """What the reader of the page must know about the data, one sentence each."""


def read_run(folder: Path) -> Run:
    """Everything but the rollouts. Raises MmrlError for a folder that is no run or holds a broken file."""
    if not folder.is_dir():
        raise MmrlError(f"{folder}: no such run folder; give the folder that `mmrl train` wrote, e.g. runs/<name>")
    recipe_text = _read_text(folder / "recipe.yaml")
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise MmrlError(f"{folder / 'recipe.yaml'}: not YAML: {error}") from error
    manifest = _object(_read_text(folder / "manifest.json"), str(folder / "manifest.json"))
    metrics, train_steps, notes = _read_metrics(folder / "metrics.jsonl")
    evaluations = sorted((_read_evaluation(file) for file in folder.glob("eval/step-*.json")), key=lambda evaluation: evaluation.step)
    return Run(
        folder=folder,
        manifest=manifest,
        recipe_text=recipe_text,
        recipe=recipe if isinstance(recipe, dict) else {},
        metrics=metrics,
        train_steps=train_steps,
        evaluations=tuple(evaluations),
        rollout_files=tuple(sorted(folder.glob("rollouts/step-*.parquet"))),
        notes=notes,
    )


def finite(value: Any, place: str) -> float | None:
    """A finite number, or None for null, NaN and infinities. Raises MmrlError, naming `place`, for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MmrlError(f"{place}: expected a number or null, got {value!r}")
    return float(value) if math.isfinite(value) else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MmrlError(f"{file}: missing; `mmrl train` writes it at the start of a run, so {file.parent} is no run folder") from error
    except UnicodeDecodeError as error:
        raise MmrlError(f"{file}: not UTF-8 text ({error}); restore the file or delete it and run again") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MmrlError(f"{place}: broken JSON: {error}; it begins {text[:60]!r}") from error
    if not isinstance(value, dict):
        raise MmrlError(f"{place}: expected a JSON object, got {type(value).__name__}: {text[:60]!r}")
    return value


def _read_metrics(file: Path) -> tuple[dict[str, Series], tuple[int, ...], tuple[str, ...]]:
    metrics: dict[str, Series] = {}
    train_steps: set[int] = set()
    notes: list[str] = []
    lines = _read_text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        place = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            row = _object(line, place)
        except MmrlError:
            if number < len(lines):
                raise
            # No newline follows: the run was killed, or is writing this line now. Any other broken line is damage.
            notes.append(f"Line {number}, the last of metrics.jsonl, was cut off while it was written; it is left out.")
            continue
        step = row.pop("step", None)
        if isinstance(step, bool) or not isinstance(step, int):
            raise MmrlError(f'{place}: "step" must be an integer, got {step!r}')
        for key, value in row.items():
            metrics.setdefault(key, {})[step] = finite(value, f"{place}: {key}")
        if any(key != "time_s" and not key.startswith("eval/") for key in row):
            train_steps.add(step)
    return metrics, tuple(sorted(train_steps)), tuple(notes)


def _read_evaluation(file: Path) -> Evaluation:
    content = _object(_read_text(file), str(file))
    step, tasks = content.get("step"), content.get("tasks")
    if not isinstance(step, int) or not isinstance(tasks, int):
        raise MmrlError(f'{file}: "step" and "tasks" must be integers, got {step!r} and {tasks!r}')
    for key in ("table", "examples"):
        rows = content.get(key) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise MmrlError(f'{file}: "{key}" must be a list of objects, got {str(rows)[:60]!r}')
    for index, row in enumerate(content.get("table") or []):
        if isinstance(row.get("n"), bool) or not isinstance(row.get("n"), int) or "success" not in row:
            raise MmrlError(f'{file}: table.{index}: needs an integer "n" and a "success", got {row!r}')
        finite(row["success"], f"{file}: table.{index}.success")
    return Evaluation(
        file=file,
        step=step,
        tasks=tasks,
        success=finite(content.get("success"), f"{file}: success"),
        interval=_interval(content.get("interval"), f"{file}: interval"),
        sampling=content.get("sampling") or {},
        table=tuple(content.get("table") or ()),
        examples=tuple(content.get("examples") or ()),
    )


def _interval(value: Any, place: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise MmrlError(f"{place}: expected [low, high], got {value!r}")
    low, high = finite(value[0], place), finite(value[1], place)
    return None if low is None or high is None else (low, high)
