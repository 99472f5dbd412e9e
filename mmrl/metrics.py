"""The run folder: metrics.jsonl, manifest.json, rollouts/*.parquet, eval/*.json. What is on disk is whole after a kill at any moment."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmrl.types import Media, ScoredGroup

VERSIONED = ("mmrl-vlm", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow", "peft", "vllm")


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all; ValueError for NaN and infinities, which JSON does not have."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False).encode())


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Whole or not at all: written beside its place, synced, renamed. Without `sync` a power cut may leave an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    part.rename(path)


class MetricsFile:
    """metrics.jsonl: one JSON object a line; NaN and infinities become null."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Goes on after the first `size` bytes and drops what a stopped run wrote after its last checkpoint."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path.stat().st_size < size:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, its checkpoint was made at {size}: it was cut or replaced; put the whole file "
                "back, or start a new run"
            )
        os.truncate(path, size)
        self._file = path.open("a")

    def write(self, line: Mapping[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Puts all lines on the disk; returns the file's size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def manifest(name: str, seed: int, parameters: int) -> dict[str, Any]:
    """What made a run: versions, commit, machine, command, seed."""
    return {
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "finished": None,
        "status": "running",
        "commit": source_commit(),
        "command": shlex.join(["mmrl" if Path(sys.argv[0]).name == "cli.py" else Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "model_parameters": parameters,
        "versions": versions(),
        "machine": machine(),
    }


def versions(packages: Sequence[str] = VERSIONED) -> dict[str, str]:
    """Of Python and of those `packages` that are installed; none of them is imported."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """What stands beside numbers that are kept: commit, command (folders of this machine left out), machine, versions."""
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
    command = shlex.join(["mmrl", *words])
    return {"commit": source_commit(), "command": command, "machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    cpu = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def source_commit() -> str | None:
    """Commit of the source tree that mmrl runs from, with "+" if the tree has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if status.strip() else "")


EXACT_PIXELS = 128 * 128
"""A video frame of up to this many pixels is kept as it was; a larger one as a JPEG of at most FRAME_SIDE pixels a side."""
FRAME_SIDE = 256


def save_media(run: Path, media: Sequence[Media]) -> dict[str, Any]:
    """Writes what a task shows under rollouts/media, a picture or frame that is there already not again, and returns where it is.

    "images": paths relative to the run folder, PNGs as they were. "videos": an object a clip, "frames" (paths) and "timestamps_s". A step
    can show thousands of frames, so large ones are shrunk: they are for looking at.
    """
    images, videos = [], []
    for item in media:
        if item.timestamps_s is None:
            images += [_save_frame(run, frame, True) for frame in item.frames]
        else:
            exact = item.frames[0, :, :, 0].size <= EXACT_PIXELS
            frames = [_save_frame(run, frame, exact) for frame in item.frames]
            videos.append({"frames": frames, "timestamps_s": [float(second) for second in item.timestamps_s]})
    return {"images": images, "videos": videos}


def _save_frame(run: Path, frame: np.ndarray, exact: bool) -> str:
    """The path of a picture that goes by its content: a PNG, or unless `exact` a small JPEG."""
    key = hashlib.sha256(frame.tobytes() + str(frame.shape).encode()).hexdigest()[:24]
    name = f"rollouts/media/{key}.{'png' if exact else 'jpg'}"
    if not (run / name).exists() or not (run / name).stat().st_size:
        image, buffer = Image.fromarray(frame), io.BytesIO()
        if exact:
            image.save(buffer, "PNG")
        else:
            image.thumbnail((FRAME_SIDE, FRAME_SIDE))
            image.save(buffer, "JPEG", quality=85)
        write_whole(run / name, buffer.getvalue(), sync=False)  # thousands a step, milliseconds each; an empty one is written again
    return name


def write_rollouts(
    run: Path,
    step: int,
    scored: Sequence[ScoredGroup],
    success: Sequence[np.ndarray],
    advantages: Mapping[int, float],
    signals: Mapping[int, Mapping[str, np.ndarray]],
    tokenizer: Any,
    view: str | None = None,
    token_rewards: Sequence[tuple[np.ndarray, ...]] | None = None,
) -> Path:
    """rollouts/step-<step>.parquet, one row a rollout: all that rewards and the advantage saw of it. `advantages` (mean over tokens) and
    `signals` (of `GroupForward.signals`) go by id() of the rollout. `view`: the view whose pictures and log-probabilities are kept beside
    the prompt's own; `token_rewards` as in `GroupRewards`, per group."""
    rows = []
    for number, (group, solved) in enumerate(zip(scored, success, strict=True)):
        task = group.group.task
        shown = {
            id(asked.media): asked.media for asked in (task, *(r.prompt.task for r in group.group.rollouts))
        }  # an arm may have its own
        under = {id(r): (r, r.views[view]) for r in group.group.rollouts if view in r.views} if view is not None else {}
        views = {key: prompt.task.media for key, (rollout, prompt) in under.items() if prompt is not rollout.train_prompt}
        shown |= {id(media): media for media in views.values()}
        saved = {key: save_media(run, media) for key, media in shown.items()}
        for n, rollout in enumerate(group.group.rollouts):
            completion, asked, found = rollout.completion, rollout.prompt.task, signals.get(id(rollout), {})
            own = None if asked is task else json.dumps({"messages": task.messages, **saved[id(task.media)]}, default=dict)
            other = views.get(id(rollout))
            rows.append(
                {
                    "step": step, "policy_version": completion.policy_version, "task_id": task.id, "rollout": n, "arm": rollout.arm,
                    "prompt": rollout.prompt.text, "completion": completion.text, "finish": completion.finish, "solution": task.solution,
                    "unscored": json.dumps({k: ": ".join(v) for k, v in group.unscored.items()}),
                    "meta": json.dumps(dict(task.meta)), "reward": float(group.rewards[n]), **saved[id(asked.media)],
                    "parts": json.dumps({k: _number(v[n]) for k, v in group.parts.items()}), "advantage": advantages.get(id(rollout), 0.0),
                    "success": float(solved[n]), "trained": rollout.train_prompt is not None,
                    "messages": json.dumps(asked.messages, default=dict), "task": own, "completion_ids": completion.ids.tolist(),
                    "tokens": [tokenizer.decode([i]) for i in completion.ids],
                    "sampling_logps": completion.sampling_logps.tolist(), "logps": _listed(found.get("old_logps")),
                    "entropy": _listed(found.get("old_entropy")),
                    "token_rewards": None if token_rewards is None else token_rewards[number][n].tolist(),
                    "view": None if other is None else view,
                    "view_logps": None if other is None else _listed(found.get(f"view:{view}")),
                    **{f"view_{key}": value for key, value in (saved[id(other)] if other is not None else {}).items()},
                }
            )  # fmt: skip
    path = run / "rollouts" / f"step-{step:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    floats = pa.list_(pa.float32())
    clip = pa.struct([("frames", pa.list_(pa.string())), ("timestamps_s", pa.list_(pa.float64()))])
    schema = pa.schema(
        [("step", pa.int64()), ("policy_version", pa.int64()), ("task_id", pa.string()), ("rollout", pa.int64()), ("arm", pa.string()),
         ("unscored", pa.string()),
         ("prompt", pa.string()), ("completion", pa.string()), ("finish", pa.string()), ("solution", pa.string()), ("meta", pa.string()),
         ("images", pa.list_(pa.string())), ("videos", pa.list_(clip)), ("reward", pa.float32()), ("parts", pa.string()),
         ("advantage", pa.float32()), ("success", pa.float32()), ("trained", pa.bool_()), ("messages", pa.string()), ("task", pa.string()),
         ("completion_ids", pa.list_(pa.int64())), ("tokens", pa.list_(pa.string())), ("sampling_logps", floats),
         ("logps", floats), ("entropy", floats), ("token_rewards", floats), ("view", pa.string()), ("view_logps", floats),
         ("view_images", pa.list_(pa.string())), ("view_videos", pa.list_(clip))]
    )  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)
    part.rename(path)
    return path


@dataclass(frozen=True, eq=False)
class GroupNumbers:
    """A scored group without its texts and pictures: what ranks exchange to log a step."""

    rewards: np.ndarray
    parts: Mapping[str, np.ndarray]
    success: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    prompt_length: int
    arms: tuple[str, ...] = ()
    """G names; () = all "plain"."""
    attempts: np.ndarray | None = None
    """bool [G], `Rollout.attempt`; None = all."""
    unscored: Mapping[str, str] = field(default_factory=dict)
    """Reward name -> kind, where a reward gave the group up."""

    @classmethod
    def of(cls, scored: ScoredGroup, success: np.ndarray) -> GroupNumbers:
        rollouts = scored.group.rollouts
        return cls(
            rewards=scored.rewards,
            parts=scored.parts,
            success=success,
            lengths=np.array([len(r.completion.ids) for r in rollouts]),
            truncated=np.array([r.completion.finish == "length" for r in rollouts]),
            prompt_length=len(rollouts[0].prompt.ids),
            arms=tuple(r.arm for r in rollouts),
            attempts=np.array([r.attempt for r in rollouts]),
            unscored={name: kind for name, (kind, _) in scored.unscored.items()},
        )

    def only(self, rows: np.ndarray) -> GroupNumbers:
        """`rows`: bool [G]."""
        parts = {name: values[rows] for name, values in self.parts.items()}
        return replace(
            self, rewards=self.rewards[rows], parts=parts, success=self.success[rows], lengths=self.lengths[rows],
            truncated=self.truncated[rows], arms=(), attempts=None,
        )  # fmt: skip


def rollout_metrics(groups: Sequence[GroupNumbers]) -> dict[str, float]:
    """One step's rollouts in numbers, under TRL's names: the policy's own tries at the tasks, and where there are several arms each of them
    as "arm/NAME/...". A failed reward (NaN) is left out of means and counted in rewards/failed; a reward that gave groups up says how many
    rollouts that were, by kind: rewards/NAME/outage."""
    tries = [g if g.attempts is None else g.only(g.attempts) for g in groups]
    out = _numbers([g for g in tries if len(g.rewards)])
    arms = sorted({arm for g in groups for arm in g.arms})
    for arm in arms if arms not in ([], ["plain"]) else ():
        mine = [g.only(np.array([name == arm for name in g.arms])) for g in groups if arm in g.arms]
        out |= {f"arm/{arm}/{name}": value for name, value in _numbers(mine).items()}
    return out


def _numbers(groups: Sequence[GroupNumbers]) -> dict[str, float]:
    if not groups:
        return dict.fromkeys(("reward", "reward_std", "frac_reward_zero_std", "success"), float("nan"))
    scored = [g.rewards[~np.isnan(g.rewards)].astype(np.float64) for g in groups]
    spread = np.array([r.std(ddof=1) if len(r) > 1 else 0.0 for r in scored])
    rewards = np.concatenate(scored)
    lengths = np.concatenate([g.lengths for g in groups])
    out = {
        "reward": float(rewards.mean()) if len(rewards) else float("nan"),
        "reward_std": float(spread.mean()),
        "frac_reward_zero_std": float(np.mean(spread < 1e-8)),
        "success": float(np.mean([np.mean(g.success >= 1) for g in groups])),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.concatenate([g.truncated for g in groups]).mean()),
        "rewards/failed": float(sum(np.isnan(g.rewards).sum() for g in groups)),
    }
    for name in groups[0].parts:
        values = np.concatenate([g.parts[name] for g in groups]).astype(np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            out |= {f"rewards/{name}/mean": float(values.mean()), f"rewards/{name}/std": float(values.std())}
        for group in groups:
            if name in group.unscored:
                key = f"rewards/{name}/{group.unscored[name]}"
                out[key] = out.get(key, 0.0) + len(group.rewards)
    return out


def _listed(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None
