"""`mmrl bench step`: one whole GRPO step of mmrl's trainer and of TRL's, on the same checkpoint, pictures and prompts. The clock is CPU
time on one thread.

Every completion has exactly max_completion_length tokens: the checkpoint's end token is the picture token, which neither side can sample
(TRL suppresses it, mmrl rules it out). Before anything is timed, both compute log-probabilities, advantages and the gradient of the loss
for one group of completions, and must agree.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.jsonl import write_tasks
from mmrl.bench.report import write_bench
from mmrl.errors import BenchError
from mmrl.models.quiet import quiet_transformers
from mmrl.models.tiny import TinyShape, build_untrained, save
from mmrl.seeding import stream
from mmrl.types import Media, Task

SHAPE = TinyShape(
    hidden_size=256, intermediate_size=512, mrope_section=(8, 12, 12), vision_depth=2, vision_hidden_size=128, initializer_range=0.0625,
)  # fmt: skip
"""About 3 million parameters; vision tower, layers and head in proportions that are not far from a 7B model's."""
QUESTION = "How many objects are there? Think step by step, then answer."
BLOCK = 28
"""Pixels of a visual token's side."""
LARGEST_LOGP_GAP = 1e-4
LARGEST_GRAD_GAP = 1e-3
"""Of a parameter's gradient, over its largest entry."""
TRL = "trl==1.16.0"
PHASES = ("step", "generate", "logps_forward", "backward_optimizer", "update", "other")


@dataclass(frozen=True)
class _Work:
    """What both sides are asked for."""

    folder: Path
    pictures: Sequence[str]
    num_generations: int
    max_completion_length: int
    trl_python: str

    def mmrl(self, name: str, **request: Any) -> dict[str, Any]:
        return self._run(f"mmrl-{name}", [sys.executable, "-m", "mmrl.bench.step_mmrl"], request)

    def trl(self, name: str, *, score_completions_only: bool = True, **request: Any) -> dict[str, Any]:
        worker = str(Path(__file__).with_name("trl_worker.py"))
        return self._run(f"trl-{name}", [self.trl_python, worker], request | {"score_completions_only": score_completions_only})

    def _run(self, name: str, command: list[str], request: dict[str, Any]) -> dict[str, Any]:
        """One side in a process of its own: no GPU, one thread, large pages for large allocations, which spare both sides page faults."""
        whole = request | {
            "model": str(self.folder / "model"), "tasks": str(self.folder / "tasks"), "pictures": self.pictures, "question": QUESTION,
            "num_generations": self.num_generations, "max_completion_length": self.max_completion_length, "learning_rate": 1e-6,
            "output_dir": str(self.folder / name),
        }  # fmt: skip
        asked, answer, log = (self.folder / f"{name}.{end}" for end in ("request.json", "result.json", "log"))
        asked.write_text(json.dumps(whole))
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "THP_MEM_ALLOC_ENABLE": "1",
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
        }  # fmt: skip
        if "mmrl.bench.step_mmrl" in command:
            root = str(Path(__file__).parents[2])
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        with log.open("w") as out:
            done = subprocess.run([*command, str(asked), str(answer)], env=environment, stdout=out, stderr=subprocess.STDOUT)
        if done.returncode or not answer.exists():
            last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-12:])
            raise BenchError(f"{name}: {' '.join(command)} ended with {done.returncode}; its last lines:\n{last}")
        return json.loads(answer.read_text())


def command(
    against: str, visual_tokens: int, num_generations: int, max_completion_length: int, steps: int, rounds: int, trl_python: Path | None,
    file: Path | None,
) -> None:  # fmt: skip
    """What the command line calls."""
    if against != "trl":
        raise BenchError(f"--against: got {against!r}; known: trl")
    width, height = picture_size(visual_tokens)
    python = find_trl(trl_python)
    with tempfile.TemporaryDirectory(prefix="mmrl-bench-") as folder:
        pictures = prepare(Path(folder), width, height, steps)
        work = _Work(Path(folder), pictures, num_generations, max_completion_length, python)
        point = {"visual_tokens": visual_tokens} | _compare(work, steps, rounds)
    write_bench(file, [point])


def picture_size(visual_tokens: int) -> tuple[int, int]:
    """Width and height in pixels of the picture of that many visual tokens that is nearest to a square."""
    height = next(side for side in range(math.isqrt(visual_tokens), 0, -1) if visual_tokens % side == 0)
    width = visual_tokens // height
    if width > 16 * height:
        raise BenchError(
            f"--visual-tokens: {visual_tokens} makes a picture of {width} by {height} tokens; give a number with closer factors"
        )
    return width * BLOCK, height * BLOCK


def find_trl(given: Path | None) -> str:
    """The interpreter that runs TRL. Raises BenchError, which says how to make an environment, where there is none."""
    named = str(given) if given is not None else os.environ.get("MMRL_TRL_PYTHON")
    if named is None and importlib.util.find_spec("trl") is not None:
        return sys.executable
    same = " ".join(f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision", "transformers"))
    how = (
        f"make an environment for it:\n  python -m venv trl-env\n  trl-env/bin/pip install {TRL} datasets {same}\n"
        "and give --trl-python trl-env/bin/python"
    )
    if named is None:
        raise BenchError(f"this interpreter has no TRL; {how}")
    try:
        has_trl = subprocess.run([named, "-c", "import importlib.util as i; raise SystemExit(i.find_spec('trl') is None)"]).returncode == 0
    except OSError as error:
        raise BenchError(f"--trl-python: {named!r} cannot be run ({error.strerror}); {how}") from error
    if not has_trl:
        raise BenchError(f"--trl-python: {named!r} has no TRL; {how}")
    return named


def prepare(folder: Path, width: int, height: int, count: int) -> list[str]:
    """Writes model/ (random weights) and tasks/, one task a step with a picture of its own; returns the pictures' paths in task order."""
    model, processor = build_untrained(SHAPE)
    end = "<|image_pad|>"
    processor.tokenizer.eos_token = end
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(end)
    processor.image_processor.size = {"shortest_edge": 4 * BLOCK**2, "longest_edge": max(1280 * BLOCK**2, width * height)}
    with quiet_transformers():
        save(model, processor, folder / "model")
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},)
    tasks = [Task(f"picture/{n}", messages, (_picture(width, height, n),), "", {"picture": n}) for n in range(count)]
    write_tasks(tasks, folder / "tasks")
    rows = [json.loads(line) for line in (folder / "tasks" / "tasks.jsonl").read_text().splitlines()]
    return [str(folder / "tasks" / row["images"][0]) for row in rows]


def _picture(width: int, height: int, number: int) -> Media:
    """Every patch of the vision tower in a colour of its own."""
    patch = BLOCK // 2
    colours = stream("bench step", number).integers(0, 256, (1, height // patch, width // patch, 3)).astype(np.uint8)
    return Media(colours.repeat(patch, 1).repeat(patch, 2))


def _compare(work: _Work, steps: int, rounds: int) -> dict[str, Any]:
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    mine, theirs = work.folder / "mmrl.npz", work.folder / "trl.npz"
    versions = {
        "mmrl": work.mmrl("check", work="check", steps=steps, arrays=str(mine))["versions"],
        "trl": work.trl("check", work="check", steps=steps, arrays=str(theirs), completions=str(mine))["versions"],
    }
    _require_same_versions(versions["mmrl"], versions["trl"])
    agreement = require_agreement(np.load(mine), np.load(theirs))
    say(f"same work: {agreement}")
    runs: dict[str, list[dict[str, Any]]] = {"mmrl": [], "trl": []}
    for n in range(rounds):
        for side, run in (("mmrl", work.mmrl), ("trl", work.trl)):
            runs[side].append(run(f"round-{n + 1}", work="steps", steps=steps))
            seconds = [record["step"] for record in runs[side][-1]["steps"]]
            say(f"  round {n + 1}: {side} {', '.join(f'{s:.2f}' for s in seconds)} s a step, the first not counted")
    as_shipped = work.trl("as-shipped", work="steps", steps=2, score_completions_only=False)
    for result in [*runs["mmrl"], *runs["trl"]]:
        _require_fixed_length(result, work.max_completion_length)
    return {
        "num_generations": work.num_generations, "max_completion_length": work.max_completion_length, "steps": steps, "rounds": rounds,
        **summary(runs["mmrl"], runs["trl"], as_shipped),
        "agreement": agreement, "versions": versions,
        "settings": "float32, one thread, CPU time; both on-policy, beta 0; TRL without gradient checkpointing, scoring completions only",
    }  # fmt: skip


def require_agreement(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest differences of log-probabilities, advantages and gradients for the same ids. Raises BenchError if the two sides do not do the
    same work: the timings would compare nothing."""
    for name in ("prompt", "completions"):
        if not np.array_equal(mine[name], theirs[name]):
            raise BenchError(f"void: mmrl and TRL were given different token ids ({name}: {mine[name].shape} and {theirs[name].shape})")
    names = sorted(name for name in {*mine, *theirs} if name.startswith("grad/"))
    missing = [name for name in names if name not in mine or name not in theirs]
    if missing:
        raise BenchError(f"void: only one side has a gradient of {len(missing)} parameters, for example {missing[0]}")
    floor = 1e-3 * max(float(np.abs(theirs[name]).max()) for name in names)
    gaps = {
        "logps": float(np.abs(mine["logps"] - theirs["logps"]).max()),
        "advantages": float(np.abs(mine["advantages"] - theirs["advantages"]).max()),
        "grad": max(float(np.abs(mine[n] - theirs[n]).max()) / max(float(np.abs(theirs[n]).max()), floor) for n in names),
    }
    limits = {"logps": LARGEST_LOGP_GAP, "advantages": LARGEST_GRAD_GAP, "grad": LARGEST_GRAD_GAP}
    for name, limit in limits.items():
        if not gaps[name] <= limit:  # NaN too
            raise BenchError(f"void: mmrl and TRL do not compute the same {name}: they differ by {gaps[name]:.2g}, the limit is {limit:g}")
    return gaps


def _require_same_versions(mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    for name in ("torch", "transformers"):
        if mine[name].split("+")[0] != theirs[name].split("+")[0]:
            raise BenchError(f"void: mmrl runs on {name} {mine[name]}, TRL on {theirs[name]}; install {name}=={mine[name]} beside TRL")


def _require_fixed_length(result: Mapping[str, Any], length: int) -> None:
    if result["lengths"] != [length]:
        raise BenchError(f"void: completions have {result['lengths']} tokens; all should have {length}")
    if result.get("forwarded", 1.0) < 1:
        raise BenchError("void: mmrl skipped rows whose advantage is 0; all rewards of a group were equal")


def summary(mmrl: Sequence[Mapping[str, Any]], trl: Sequence[Mapping[str, Any]], as_shipped: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds: medians over all rounds' steps but the first of each. Speed-ups: TRL's seconds over mmrl's within a round, and the median of
    the rounds. `mmrl`, `trl`: what the workers gave, a round each.

    step: end of a step to the end of the next. generate: prefill and decode. update: loss to optimizer, of which logps_forward is the
    forward with gradients and backward_optimizer the rest. other: reading pictures, prompts, rewards, advantages, logging.
    """
    rows = {"mmrl": _medians(mmrl), "trl": _medians(trl), "trl_as_shipped": _medians([as_shipped])}
    updates = [statistics.median(result["concatenated"]["update"][1:]) for result in mmrl]
    by_round = [(_medians([a]), _medians([b])) for a, b in zip(mmrl, trl, strict=True)]
    ratios = {name: [b[name] / a[name] for a, b in by_round] for name in PHASES}
    over_concatenated = [theirs / a["update"] for theirs, (a, _) in zip(updates, by_round, strict=True)]
    peaks = {
        name: {"peak": max(r["peak_mb"] for r in of), "above_start": max(r["peak_mb"] - r["resident_mb"] for r in of)}
        for name, of in (("mmrl", mmrl), ("trl", trl), ("trl_as_shipped", [as_shipped]))
    }
    above = {name: of["above_start"] for name, of in peaks.items()}
    of_update = {"above_start": max(result["concatenated"]["peak_above_start_mb"] for result in mmrl)}
    seconds = rows | {"concatenated": {"update": statistics.median(updates)}}
    return {
        "speedup_step": round(statistics.median(ratios["step"]), 2),
        "speedup_step_range": [round(min(ratios["step"]), 2), round(max(ratios["step"]), 2)],
        "speedup": {name: round(statistics.median(of), 2) for name, of in ratios.items()},
        "speedup_update_over_concatenated": round(statistics.median(over_concatenated), 2),
        "speedup_step_over_trl_as_shipped": round(rows["trl_as_shipped"]["step"] / rows["mmrl"]["step"], 2),
        "memory_ratio": round(above["mmrl"] / above["trl"], 3) if above["trl"] else None,
        "seconds": {name: {k: round(v, 4) for k, v in of.items()} for name, of in seconds.items()},
        "peak_mb": {name: {k: round(v) for k, v in of.items()} for name, of in (peaks | {"concatenated": of_update}).items()},
    }  # fmt: skip


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    steps = [step for result in rounds for step in result["steps"][1:]]
    whole = [
        step | {"backward_optimizer": step["update"] - step["logps_forward"], "other": step["step"] - step["generate"] - step["update"]}
        for step in steps
    ]
    return {name: statistics.median(step[name] for step in whole) for name in PHASES}
