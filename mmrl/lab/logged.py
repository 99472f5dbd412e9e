"""Logged rollouts as the groups that rewards and advantages saw: from the run folder alone, without model, tokenizer or task source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mmrl.errors import MediaError, MmrlError, RewardError
from mmrl.protocols import AdvantageEstimator
from mmrl.report.rollouts import group_spans, json_object, read_rollouts
from mmrl.types import Completion, Group, GroupRewards, Media, Prompt, Rollout, Task

_COLUMNS = (
    "step", "policy_version", "task_id", "rollout", "arm", "prompt", "completion", "finish", "solution", "meta", "images", "videos",
    "reward", "parts", "advantage", "trained", "messages", "task", "completion_ids", "sampling_logps", "token_rewards",
)  # fmt: skip
_SCALARS = tuple(name for name in _COLUMNS if name not in ("completion_ids", "sampling_logps", "token_rewards"))


@dataclass(frozen=True, eq=False)
class LoggedGroup:
    """A group with what it earned when it was logged."""

    group: Group
    rewards: np.ndarray
    """float32 [G]; NaN = not scored."""
    parts: Mapping[str, np.ndarray]
    """Reward name -> float32 [G], before weighting."""
    advantages: np.ndarray
    """float32 [G], mean over tokens; 0 for a rollout that was not trained."""
    trained: np.ndarray
    """bool [G]; False = only compared with."""
    lengths: np.ndarray
    """int64 [G] completion tokens; 1 where the log does not say."""
    token_rewards: tuple[np.ndarray, ...] | None = None
    """As in `GroupRewards`."""


@dataclass(frozen=True, eq=False)
class LoggedStep:
    """The groups of one step, in the order in which they were credited together."""

    file: Path
    step: int
    groups: tuple[LoggedGroup, ...]


class LoggedMedia(Media):
    """A logged medium: its times at once, its frames when a reward looks at them."""

    files: tuple[Path, ...]

    def __init__(self, files: Sequence[Path], timestamps_s: np.ndarray | None) -> None:
        vars(self).update(files=tuple(files), timestamps_s=timestamps_s)

    @cached_property
    def frames(self) -> np.ndarray:  # type: ignore[override]  # what a frozen record holds, read late
        for file in self.files:
            if file.suffix != ".png":
                raise RewardError(
                    f"{file}: the run kept this frame shrunk, to be looked at; a reward that reads its pixels cannot be replayed"
                )
        return np.stack([_read_picture(file) for file in self.files])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, of the file as it was kept."""
        with Image.open(self.files[0]) as image:
            return image.size


def read_logged_run(run: Path, steps: range | None = None) -> Iterator[LoggedStep]:
    """The logged steps of a run, in order, a file at a time; with `steps` only those in it. MmrlError where there are none."""
    files = sorted(run.glob("rollouts/step-*.parquet"))
    if not files:
        raise MmrlError(f"{run}/rollouts: no logged rollouts; train with --set trainer.log_completions_steps=N to log every N-th step")
    wanted = [file for file in files if steps is None or int(file.stem.removeprefix("step-")) in steps]
    if not wanted:
        there = ", ".join(file.stem.removeprefix("step-").lstrip("0") for file in files)
        raise MmrlError(f"{run}/rollouts: none of the steps asked for; there are {there}")
    for file in wanted:
        yield _read_step(run, file)


def advantages_of(
    groups: Sequence[LoggedGroup], rewards: Sequence[np.ndarray], parts: Sequence[Mapping[str, np.ndarray]], estimator: AdvantageEstimator
) -> list[np.ndarray]:
    """Per group float32 [G]: what the estimator makes of these rewards, mean over tokens; 0 where a rollout was not trained or has no
    reward, as at training time. All groups of a step go in together."""
    given = [
        GroupRewards(
            rewards=reward,
            lengths=logged.lengths,
            token_rewards=logged.token_rewards,
            arms=tuple(r.arm for r in logged.group.rollouts),
            parts=part,
        )
        for logged, reward, part in zip(groups, rewards, parts, strict=True)
    ]
    out = []
    for logged, group, rows in zip(groups, given, estimator(given), strict=True):
        used = logged.trained & ~np.isnan(group.rewards)
        out.append(np.array([row.mean() if use else 0.0 for row, use in zip(rows, used, strict=True)], np.float32))
    return out


def _read_step(run: Path, file: Path) -> LoggedStep:
    table = read_rollouts(file, _COLUMNS)
    rows = table.select(_SCALARS).to_pylist()
    ids, logps, token_rewards = (_lists(table, name) for name in ("completion_ids", "sampling_logps", "token_rewards"))
    groups = []
    for begin, end in group_spans(table):
        places, place = range(begin, end), f"{file}: row {begin}"
        task, prompts = _task_and_prompts(run, rows[begin:end], place)
        rollouts = tuple(
            Rollout(
                prompt=prompt,
                completion=Completion(ids[n], rows[n]["completion"], logps[n], rows[n]["finish"], rows[n]["policy_version"]),
                train_prompt=prompt if rows[n]["trained"] else None,
                arm=rows[n]["arm"],
            )
            for n, prompt in zip(places, prompts, strict=True)
        )
        parts = [json_object(rows[n]["parts"], f"{file}: row {n}: parts") for n in places]
        groups.append(
            LoggedGroup(
                Group(task, rollouts),
                np.array([rows[n]["reward"] for n in places], np.float32),
                {name: np.array([np.nan if part[name] is None else part[name] for part in parts], np.float32) for name in parts[0]},
                np.array([rows[n]["advantage"] for n in places], np.float32),
                np.array([rows[n]["trained"] for n in places], np.bool_),
                np.array([len(ids[n]) for n in places], np.int64),
                None if table["token_rewards"][begin].as_py() is None else tuple(token_rewards[n] for n in places),
            )
        )
    return LoggedStep(file, rows[0]["step"], tuple(groups))


def _task_and_prompts(run: Path, rows: Sequence[Mapping[str, Any]], place: str) -> tuple[Task, list[Prompt]]:
    """The group's task, and each rollout's prompt: under the task itself, or where an arm was shown something else, under that."""
    first = rows[0]
    base = Task(first["task_id"], (), (), first["solution"], json_object(first["meta"], f"{place}: meta"))
    shown: dict[tuple[str, str], Task] = {}
    asked = []
    for row in rows:
        key = (row["messages"], json.dumps([row["images"], row["videos"]]))
        if key not in shown:
            shown[key] = _shown(base, run, json.loads(row["messages"]), row["images"] or (), row["videos"] or ())
        asked.append(shown[key])
    own = next((row["task"] for row in rows if row["task"] is not None), None)
    if own is None:
        task = asked[0]
    elif (plain := next((n for n, row in enumerate(rows) if row["task"] is None), None)) is not None:
        task = asked[plain]
    else:
        told = json_object(own, f"{place}: task")
        task = _shown(base, run, told["messages"], told["images"], told["videos"])
    none = np.empty(0, np.int64)
    return task, [Prompt(seen, row["prompt"], none, {}) for seen, row in zip(asked, rows, strict=True)]


def _shown(base: Task, run: Path, messages: Sequence[Any], images: Sequence[str], videos: Sequence[Mapping[str, Any]]) -> Task:
    """The task with messages and media, media in the order in which the messages name them."""
    stills = [LoggedMedia([run / path], None) for path in images]
    clips = [LoggedMedia([run / path for path in clip["frames"]], np.array(clip["timestamps_s"], np.float64)) for clip in videos]
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    kinds = [part["type"] for part in parts if part["type"] in ("image", "video")]
    if (kinds.count("image"), kinds.count("video")) == (len(stills), len(clips)):
        waiting = {"image": iter(stills), "video": iter(clips)}
        media: tuple[Media, ...] = tuple(next(waiting[kind]) for kind in kinds)
    else:
        media = (*stills, *clips)
    return replace(base, messages=tuple(messages), media=media)


def _lists(table: pa.Table, name: str) -> list[np.ndarray]:
    """A column of lists as arrays, without a Python number in between; an empty array for null."""
    column = table[name].combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
    return [values[begin:end] for begin, end in pairwise(offsets)]


def _read_picture(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise MediaError(f"{file}: cannot be read ({error}); copy the run folder whole, with rollouts/media") from error
