"""Completions that TRL's GRPOTrainer logged (`log_completions`): completions/completions_*.parquet with the columns step, prompt,
completion, one per reward function, those of `log_extra`, and advantage. Read at TRL 1.16.

The file holds texts and numbers only. What it lacks (token ids, the task's solution and meta unless `log_extra` logged them) is `Absent`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmrl.errors import MmrlError
from mmrl.lab.absent import Absent
from mmrl.lab.logged import LoggedGroup, LoggedStep
from mmrl.report.rollouts import read_rollouts
from mmrl.types import Completion, Group, Prompt, Rollout, Task

_COLUMNS = ("step", "prompt", "completion", "advantage")
REMEDY = (
    "TRL logs texts and numbers only. A solution, or another column of the task, is there if a reward function of that run logged it with "
    "log_extra; token ids never are. A run of `mmrl train` logs all of it"
)


def is_trl_log(path: Path) -> bool:
    """Whether a path is a TRL completions file, or a folder with some."""
    return path.suffix == ".parquet" or bool(_files(path))


def read_trl_log(
    path: Path, num_generations: int, weights: Mapping[str, float] | None = None, steps: range | None = None
) -> Iterator[LoggedStep]:
    """The logged steps, a file at a time, as far as a text can tell.

    Args:
        path: a file completions_*.parquet, their folder, or the output_dir above it.
        num_generations: TRL's setting: rows of a step are in blocks of so many completions of one prompt. The file does not say where
            a group ends (two pictures may share one question), so it must be told.
        weights: column of a reward function -> its weight in TRL's sum; None: every column of numbers that is none of TRL's own, weight 1.

    A file that holds the very rows of the one before it (TRL logs a batch again while it is used for several updates) is left out.
    Raises MmrlError for a folder or file of another kind, a block with two prompts, and a column that is not there.
    """
    files = [path] if path.suffix == ".parquet" else _files(path)
    before: list[Any] | None = None
    read_any = False
    for file in files:
        table = read_rollouts(file, _COLUMNS)
        rows = table.to_pylist()
        if not rows or (steps is not None and rows[0]["step"] not in steps):
            continue
        read_any = True
        content = [[row["prompt"], row["completion"]] for row in rows]
        if content != before:
            yield _read_step(file, rows, num_generations, _reward_columns(file, table.schema, weights))
        before = content
    if not read_any:
        raise MmrlError(f"{path}: none of its {len(files)} files holds a completion of the steps asked for")


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("completions_*.parquet")) or sorted(path.glob("completions/completions_*.parquet"))


def _reward_columns(file: Path, schema: pa.Schema, weights: Mapping[str, float] | None) -> Mapping[str, float]:
    numbers = {item.name for item in schema if pa.types.is_floating(item.type) or pa.types.is_integer(item.type)} - {*_COLUMNS}
    chosen = dict.fromkeys((item.name for item in schema if item.name in numbers), 1.0) if weights is None else weights
    missing = sorted(set(chosen) - numbers)
    if missing or not chosen:
        what = f"no column of numbers {missing[0]!r}" if missing else "no column of a reward function"
        raise MmrlError(f"{file}: {what}; its columns are {', '.join(schema.names)}")
    return chosen


def _read_step(file: Path, rows: Sequence[Mapping[str, Any]], num_generations: int, weights: Mapping[str, float]) -> LoggedStep:
    if len(rows) % num_generations:
        raise MmrlError(f"{file}: {len(rows)} rows are no whole groups of {num_generations}; give TRL's num_generations")
    extra = [name for name in rows[0] if name not in (*_COLUMNS, *weights, "__index_level_0__")]
    groups = []
    for begin in range(0, len(rows), num_generations):
        block = rows[begin : begin + num_generations]
        if any(row["prompt"] != block[0]["prompt"] for row in block):
            raise MmrlError(
                f"{file}: rows {begin} to {begin + num_generations - 1} have different prompts, so they are no group of {num_generations}; "
                "give TRL's num_generations"
            )
        groups.append(_group(file, begin, block, weights, extra))
    return LoggedStep(file, int(rows[0]["step"]), tuple(groups))


def _group(file: Path, begin: int, rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float], extra: Sequence[str]) -> LoggedGroup:
    def lacks(what: str) -> Any:
        return Absent(f"{file}: TRL's log has no {what}")

    first = rows[0]
    meta = {name: first[name] for name in extra if name != "solution" and all(row[name] == first[name] for row in rows)}
    conversation = not isinstance(first["prompt"], str)
    messages: Any = (
        tuple(_message(item) for item in first["prompt"])
        if conversation
        else Absent(f"{file}: prompts are texts; give the function conversational=false")
    )
    solution = first["solution"] if "solution" in extra else lacks("column 'solution'")
    task = Task(f"{file.stem}/row={begin}", messages, (), solution, meta)
    prompt = Prompt(task, lacks("templated prompt") if conversation else first["prompt"], lacks("token ids"), {})
    completions = [
        Completion(lacks("token ids"), _text(row["completion"], file), lacks("log-probabilities"), lacks("finish"), 0) for row in rows
    ]
    rollouts = tuple(Rollout(prompt, completion, prompt) for completion in completions)
    parts = {name: np.array([np.nan if row[name] is None else row[name] for row in rows], np.float32) for name in weights}
    scored = np.any([~np.isnan(part) for part in parts.values()], axis=0)
    total = np.sum([weight * np.nan_to_num(parts[name].astype(np.float64)) for name, weight in weights.items()], axis=0)
    return LoggedGroup(
        Group(task, rollouts),
        np.where(scored, total, np.nan).astype(np.float32),
        parts,
        np.array([row["advantage"] for row in rows], np.float32),
        np.ones(len(rows), np.bool_),
        np.ones(len(rows), np.int64),
    )


def _message(item: Any) -> Any:
    """A message or a part of one as it was, before the table gave each the keys of all."""
    if isinstance(item, list):
        return [_message(part) for part in item]
    return {key: _message(value) for key, value in item.items() if value is not None} if isinstance(item, dict) else item


def _text(completion: Any, file: Path) -> str:
    if isinstance(completion, str):
        return completion
    if len(completion) > 1:
        raise MmrlError(f"{file}: a completion of {len(completion)} messages (tool calls); only completions of one message can be replayed")
    content = completion[0]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())
