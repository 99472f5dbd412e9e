"""How fast clips are made and checked, on one core: prints JSON, and writes it with --out.

COMMAND  OMP_NUM_THREADS=1 python scripts/bench_clips.py --out docs/results/clips.json
EXPECT   more than 500 tasks/s of 12 frames of 56 x 56 pixels
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from bench_mazes import commit, cpu, rates

from data_pipelines.tasks.clips import ClipTasks, synthetic_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; needs a commit")
    parser.add_argument("--tasks", type=int, default=360, help="tasks in a round")
    parser.add_argument("--rounds", type=int, default=10)
    wanted = parser.parse_args()
    known = commit()
    if wanted.out and known is None:
        parser.error("--out: no commit to name; commit first")
    began = time.process_time()
    for index in range(wanted.tasks):
        synthetic_clip("train", 0, index)
    unlabelled = wanted.tasks / (time.process_time() - began)
    report = {
        "12_frames_56x56_per_s": rates(ClipTasks("train"), wanted.tasks, wanted.rounds),
        "12_frames_56x56_test_per_s": rates(ClipTasks("test"), wanted.tasks, wanted.rounds),
        "12_frames_84x84_textured_per_s": rates(
            ClipTasks("train", height=84, width=84, background="textured"), wanted.tasks, wanted.rounds
        ),
        "unlabelled_48_frames_56x56_per_s": round(unlabelled),
        "tasks": wanted.tasks,
        "rounds": wanted.rounds,
        "clock": "CPU time of the process",
        "commit": known,
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": cpu(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if wanted.out:
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        wanted.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
