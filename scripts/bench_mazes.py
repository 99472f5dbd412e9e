"""How fast mazes are made, on one core, and whether memory grows: prints JSON, and writes it with --out.

COMMAND  OMP_NUM_THREADS=1 python scripts/bench_mazes.py --out docs/results/mazes.json
EXPECT   more than 2,000 tasks/s without and 300 tasks/s with pictures for 5 x 5 cells; memory growth near 0
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL

from data_pipelines.tasks.maze import MazeTasks

REPOSITORY = Path(__file__).resolve().parent.parent


def rates(source: MazeTasks, tasks: int, rounds: int) -> dict[str, float]:
    """Whole tasks (facts, checklist, check by the second solver) per second of this process's CPU time, over rounds of `tasks`."""
    for i in range(tasks):
        source.task(source.key(i))  # warm-up: tables and tiles
    seen = []
    for turn in range(rounds):
        began = time.process_time()
        for i in range(turn * tasks, (turn + 1) * tasks):
            source.task(source.key(i))
        seen.append(tasks / (time.process_time() - began))
    return {"min": round(min(seen)), "median": round(statistics.median(seen)), "max": round(max(seen))}


def growth_mb(source: MazeTasks, tasks: int) -> float:
    """By how much the process's peak memory grows over `tasks` tasks, after 2,000."""
    for i in range(2000):
        source.task(source.key(i))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(2000, 2000 + tasks):
        source.task(source.key(i))
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 2)


def commit() -> str | None:
    """The commit, "+changes" if the tree differs from it; None outside a repository or before the first commit."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    status = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("+changes" if status.stdout else "")


def cpu() -> str:
    names = (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return next(itertools.chain(names, [platform.processor()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; needs a commit")
    parser.add_argument("--tasks", type=int, default=500, help="tasks in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-tasks", type=int, default=20_000)
    wanted = parser.parse_args()
    known = commit()
    if wanted.out and known is None:
        parser.error("--out: no commit to name; commit first")
    report = {
        "unrendered_per_s": rates(MazeTasks("train", render=False), wanted.tasks, wanted.rounds),
        "rendered_per_s": rates(MazeTasks("train"), wanted.tasks, wanted.rounds),
        "test_1_to_10_moves_unrendered_per_s": rates(
            MazeTasks("test", moves="1-10", turns="0-4", render=False), wanted.tasks, wanted.rounds
        ),
        "peak_rss_growth_mb": growth_mb(MazeTasks("train"), wanted.memory_tasks),
        "tasks": wanted.tasks,
        "rounds": wanted.rounds,
        "memory_tasks": wanted.memory_tasks,
        "clock": "CPU time of the process",
        "commit": known,
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cpu": cpu(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if wanted.out:
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        wanted.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
