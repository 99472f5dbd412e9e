#!/usr/bin/env python
"""One JSON from several finished runs of a recipe: success before and after by seed, with intervals, time and memory.

python scripts/learning_results.py --out docs/results/demo.json runs/demo-seed0 runs/demo-seed1 runs/demo-seed2 --control runs/demo-shuffled
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.metrics import write_json


def read_run(folder: Path) -> dict[str, Any]:
    """What one run shows: its first and last evaluation and what it cost."""
    files = sorted((folder / "eval").glob("step-*.json"))
    if len(files) < 2:
        raise SystemExit(f"{folder}/eval: needs an evaluation before and one after training; found {len(files)}")
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["status"] != "finished":
        raise SystemExit(f"{folder}/manifest.json: status is {manifest['status']!r}; let the run finish")
    if manifest["commit"] is None:
        raise SystemExit(f"{folder}/manifest.json: the commit is unknown; run from a git checkout")
    before, after = (json.loads(file.read_text()) for file in (files[0], files[-1]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["perf/step_s"] for line in lines if "perf/step_s" in line]
    return {
        "seed": manifest["seed"],
        "commit": manifest["commit"],
        "command": " ".join(Path(word).name if word.startswith("/") else word for word in manifest["command"].split(" ")),
        "steps": after["step"],
        "training_seconds": round(manifest["seconds"], 1),
        "max_rss_gb": manifest["max_rss_gb"],
        "seconds_per_step": {name: round(float(np.percentile(steps, q)), 3) for name, q in (("min", 0), ("median", 50), ("max", 100))},
        "tasks": after["tasks"],
        "before": measured(before),
        "after": measured(after),
        "change_points": round(100 * (after["success"] - before["success"]), 1),
        "intervals_overlap": after["interval"][0] <= before["interval"][1],
    }


def measured(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Success in all and by number of moves, and the share of walks that come by T, where the run watched it; of other tasks the mean of
    each reward by bucket, and what answers earn that see nothing."""
    out = {"success": evaluation["success"], "interval": evaluation["interval"]}
    if "moves" not in evaluation["table"][0]:
        keys = ("bucket", "n", "success", "rewards", "baselines")
        return out | {"buckets": [{key: cell[key] for key in keys if key in cell} for cell in evaluation["table"]]}
    out["by_moves"] = by_moves(evaluation, lambda cell: cell["success"])
    if "maze_reaches" in evaluation.get("rewards", {}):
        out["reaches"] = evaluation["rewards"]["maze_reaches"]
        out["reaches_by_moves"] = by_moves(evaluation, lambda cell: cell["rewards"]["maze_reaches"])
    return out


def by_moves(evaluation: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """Number of moves -> mean of the value over the tasks."""
    cells: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for cell in evaluation["table"]:
        cells[cell["moves"]].append((cell["n"], value(cell)))
    return {str(moves): round(sum(n * rate for n, rate in rows) / sum(n for n, _ in rows), 4) for moves, rows in sorted(cells.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs, one a seed")
    parser.add_argument("--control", nargs="*", type=Path, default=[], help="finished runs with shuffled rewards")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs, controls = [read_run(run) for run in args.runs], [read_run(run) for run in args.control]
    manifest = json.loads((args.runs[0] / "manifest.json").read_text())
    changes = [run["change_points"] for run in runs]
    summary = {"seeds": len(runs), "change_points": {"min": min(changes), "median": float(np.median(changes)), "max": max(changes)}}
    write_json(
        args.out, {"machine": manifest["machine"], "versions": manifest["versions"], "summary": summary, "runs": runs, "controls": controls}
    )
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
