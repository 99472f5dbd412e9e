"""Kills a training run with SIGKILL again and again, resumes it each time, and compares what it leaves with the run that was left alone.

    python scripts/kill_test.py --kills 20 --out docs/results/kill_resume.json

Half of the kills come at random times, half while a checkpoint is being written. Everything is compared bit for bit: weights, optimizer,
sampler, best checkpoint, evaluations, rollouts and metrics, all but times.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrl.metrics import machine, source_commit, write_json
from mmrl.seeding import stream

LONGEST_LIFE_S = 300.0
"""A process that has neither finished nor reached its moment by then hangs."""
ERRORS = "stderr.txt"


REWARD = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Even:
    """1 where the sum of a completion's ids is even: about half of what a random model writes, so an update has something to do."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.ids.sum() % 2 == 0) for r in group.rollouts], np.float32)
'''


def prepare(folder: Path, steps: int) -> None:
    """The model, the reward and the recipe, in `folder`."""
    from mmrl.models.load import quiet_transformers
    from mmrl.models.tiny import TinyShape, build_untrained, save

    with quiet_transformers():
        shape = TinyShape(
            vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )  # fmt: skip
        save(*build_untrained(shape), folder / "model")
    (folder / "kill_reward.py").write_text(REWARD)
    maze = {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": ""}
    recipe = {
        "model": {"path": str(folder / "model"), "lora": {"r": 4, "dropout": 0.1}},
        "tasks": {
            "train": maze | {"split": "train"},
            "eval": maze | {"split": "test"},
            "sampler": {"use": "curriculum", "threshold": 0.4, "window": 8},
        },
        "rollout": {"num_generations": 4, "max_completion_length": 6},
        "rewards": [{"use": "kill_reward:Even"}],
        "update": {"num_iterations": 2},
        "optim": {"learning_rate": 1e-3},
        "trainer": {
            "output_dir": str(folder), "max_steps": steps, "tasks_per_step": 4, "save_steps": 1, "eval_steps": 3, "eval_tasks": 4,
            "log_completions_steps": 2, "trackers": [], "seed": 11,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def live(folder: str, name: str) -> None:
    """One life of the run: from its last checkpoint, or the start, to the end, if nothing kills it."""
    sys.path.append(folder)
    with Path(folder, ERRORS).open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    from mmrl.recipe import load_recipe
    from mmrl.trainer import train

    train(load_recipe(Path(folder, "recipe.yaml"), [f"trainer.name={name}"]), resume=True)


def one_life(context, folder: Path, name: str, kill: int | None, whole_run_s: float = 0.0) -> str:
    """Runs the process and ends it at the keyed moment of kill number `kill` (None: never) -> "finished", "killed", or "killed writing".

    Every other kill waits for a checkpoint to be under way; the rest come at any moment within the time that a whole run takes. A life may
    be over before its moment comes; the next run's is another.
    """
    process = context.Process(target=live, args=(str(folder), name))
    process.start()
    run, began = folder / name, time.monotonic()
    lived = _has_begun(run, process, began)
    outcome = "finished"
    if kill is not None and lived:
        rng = stream("kill test", name, kill)
        if kill % 2:
            time.sleep(rng.uniform(0, whole_run_s))
        else:
            while process.is_alive() and not any(run.glob(".checkpoint-*.part")):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            outcome = "killed writing" if any(run.glob(".checkpoint-*")) else "killed"
    process.join(LONGEST_LIFE_S)
    if process.is_alive():
        process.kill()
        raise SystemExit(f"{run}: the run did not end within {LONGEST_LIFE_S:.0f} s")
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{run}: the run ended with exit code {process.exitcode}:\n{(folder / ERRORS).read_text()}")
    return outcome if process.exitcode else "finished"


def _has_begun(run: Path, process, began: float) -> bool:
    """Waits until this life's own manifest is there: the model is loaded, and the run begins or goes on."""
    before = (run / "manifest.json").stat().st_mtime_ns if (run / "manifest.json").exists() else 0
    while process.is_alive() and time.monotonic() - began < LONGEST_LIFE_S:
        if (run / "manifest.json").exists() and (run / "manifest.json").stat().st_mtime_ns != before:
            return True
        time.sleep(0.002)
    return False


def leavings(run: Path) -> dict[str, object]:
    """All that a run leaves behind, times and paths aside, by name."""
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    out: dict[str, object] = {"hidden": sorted(path.name for path in run.rglob(".*"))}
    out["checkpoints"] = sorted(path.name for path in run.glob("checkpoint-*"))
    for file in sorted(last.rglob("*.safetensors")):
        out[f"{last.name}/{file.relative_to(last)}"] = file.read_bytes()
    state = json.loads((last / "trainer_state.json").read_text())
    out["state"] = {key: value for key, value in state.items() if key not in ("seconds", "metrics_size", "recipe")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    out["metrics"] = [{k: v for k, v in line.items() if not k.startswith("perf/") and k != "time_s"} for line in lines]
    for file in sorted([*run.glob("eval/*"), run / "best.json", *run.glob("rollouts/media/*")]):
        out[str(file.relative_to(run))] = file.read_bytes()
    for file in sorted(run.glob("rollouts/*.parquet")):
        out[str(file.relative_to(run))] = pq.read_table(file).to_pydict()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="kill-test-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    prepare(folder, arguments.steps)
    os.environ["PYTHONPATH"] = sys.path[0]  # the fork server does not inherit sys.path
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmrl.trainer"])
    one_life(context, folder, "alone", None)
    whole_run_s = json.loads((folder / "alone" / "manifest.json").read_text())["seconds"]
    expected = leavings(folder / "alone")
    kills, writing, rounds, differ = 0, 0, 0, []
    while kills < arguments.kills:
        rounds += 1
        name = f"killed-{rounds}"
        while True:
            outcome = one_life(context, folder, name, kills if kills < arguments.kills else None, whole_run_s)
            if outcome == "finished":
                break
            kills, writing = kills + 1, writing + (outcome == "killed writing")
            print(f"{name}: {outcome} ({kills}/{arguments.kills})", flush=True)
        came = leavings(folder / name)
        differ += [f"{name}: {key}" for key in sorted(expected.keys() | came.keys()) if expected.get(key) != came.get(key)]
    result = {
        "kills": kills, "kills_while_writing_a_checkpoint": writing, "runs": rounds, "steps": arguments.steps, "equal": not differ,
        "differences": differ, "seconds": round(time.monotonic() - began, 1), "commit": source_commit() or "unknown",
        "command": " ".join(["python", *sys.argv]),
        "versions": {"python": sys.version.split()[0]} | {n: importlib.metadata.version(n) for n in ("torch", "transformers", "peft")},
        "machine": machine(),
    }  # fmt: skip
    write_json(arguments.out, result)
    print(json.dumps(result, indent=1))
    if not arguments.keep:
        shutil.rmtree(folder)
    sys.exit(0 if not differ else 1)


if __name__ == "__main__":
    main()
