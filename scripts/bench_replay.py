"""How long `mmrl reward replay` takes for 10,000 logged rollouts: prints JSON, and writes it with --out.

COMMAND  OMP_NUM_THREADS=1 python scripts/bench_replay.py --out docs/results/bench/replay.json
EXPECT   about 3 s of CPU time a call, start of Python and reading included; on an idle core that is the time on the clock
"""

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.tasks.maze import MazeTasks
from mmrl.loop.score import WeightedReward, score
from mmrl.metrics import provenance, write_json, write_rollouts
from mmrl.recipe import load_recipe, to_yaml
from mmrl.seeding import stream
from mmrl.types import Completion, Group, Prompt, Rollout

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "methods" / "demo.yaml"
GENERATIONS, STEPS, TOKENS = 8, 10, 64
MOVES = ("<|up|>", "<|down|>", "<|left|>", "<|right|>")
CALLS = {
    "same and two others": ("--rewards", "same", "--rewards", "use=maze_walker", "--rewards", "use=repetition"),
    "probes": ("--probes", "--rewards", "same"),
}


class Tokenizer:
    """Moves, so that the log has tokens as long as those of a run."""

    def decode(self, ids: Sequence[int]) -> str:
        return MOVES[ids[0] % 4]


def write_log(run: Path, rollouts: int) -> None:
    """A run folder as the trainer leaves it, of random walks with a thought before them, 64 tokens each."""
    recipe = load_recipe(RECIPE)
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    rewards = [WeightedReward(entry.component.build(), entry.weight, entry.name) for entry in recipe.rewards]
    source = MazeTasks("train", moves="2-4")
    groups = rollouts // (GENERATIONS * STEPS)
    for step in range(1, STEPS + 1):
        made = []
        for n in range(groups):
            task, rng = source.task(source.key(step * groups + n)), stream("bench replay", step, n)
            prompt = Prompt(task, "templated prompt " * 20, np.zeros(200, np.int64), {})
            members = []
            for _ in range(GENERATIONS):
                ids = rng.integers(0, 4, TOKENS)
                text = f"<think>{' '.join('so' for _ in range(TOKENS - 8))}</think>{''.join(MOVES[i] for i in ids[:4])}"
                completion = Completion(ids, text, rng.standard_normal(TOKENS).astype(np.float32), "stop", step)
                members.append(Rollout(prompt, completion, prompt))
            made.append(Group(task, tuple(members)))
        scored = score(made, rewards)
        write_rollouts(run, step, scored, [item.rewards for item in scored], {}, {}, Tokenizer())


def seconds(run: Path, options: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Of the whole command, the start of Python included: on the clock, and of the CPU, which a busy machine does not change much."""
    command = [sys.executable, "-m", "mmrl.cli", "reward", "replay", str(run), *options]
    seen: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(rounds):
        began, spent = time.perf_counter(), _cpu_of_children()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seen["wall"].append(time.perf_counter() - began)
        seen["cpu"].append(_cpu_of_children() - spent)
    return {
        clock: {"min": round(min(values), 2), "median": round(statistics.median(values), 2), "max": round(max(values), 2)}
        for clock, values in seen.items()
    }


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; needs a commit")
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    wanted = parser.parse_args()
    made = provenance() | {
        "command": shlex.join(
            ["python", "scripts/bench_replay.py", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])]
        )
    }
    if wanted.out and made["commit"] is None:
        parser.error("--out: no commit to name; commit first")
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), wanted.rollouts)
        report = made | {
            "rollouts": wanted.rollouts, "tokens": TOKENS, "num_generations": GENERATIONS, "rounds": wanted.rounds,
            "seconds": {name: seconds(Path(folder), options, wanted.rounds) for name, options in CALLS.items()},
        }  # fmt: skip
    print(json.dumps(report, indent=1))
    if wanted.out:
        write_json(wanted.out, report)


if __name__ == "__main__":
    main()
