"""Finished runs of several variants, seed by seed: means, intervals, differences to the base, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.lab.statistics import t_interval
from mmrl.lab.tables import interval, markdown, number, signed
from mmrl.report.run_folder import Series, read_run

STEP_S = "perf/step_s"


@dataclass(frozen=True)
class Finished:
    """What the table needs of one run."""

    series: Mapping[str, Series]
    """Name in metrics.jsonl -> its values by step."""
    commit: str | None


def read_finished(folder: Path) -> Finished:
    run = read_run(folder)
    return Finished(run.metrics, run.manifest.get("commit"))


def final_value(metric: str, series: Series) -> float | None:
    """What a run ends with: of a metric of evaluations ("eval/…") the last value; of a metric of steps, which is noisy, the mean of the
    last tenth of its values, at least one. None where there is none."""
    known = [series[step] for step in sorted(series)]
    values = [value for value in known if value is not None]
    if not values:
        return None
    return values[-1] if metric.startswith("eval/") else float(np.mean(values[-max(1, len(values) // 10) :]))


def compare_runs(runs: Mapping[str, Mapping[int, Finished]], metrics: Sequence[str]) -> dict[str, Any]:
    """Plain JSON. `runs`: variant -> seed -> run, the first variant being the base.

    For each variant and metric: `by_seed`; `mean` and 95 % t-interval over seeds (`t_interval`: None below two seeds); `difference` to the
    base, paired: the mean of the differences of runs of equal seed, and the t-interval of that mean. `step_s`: the median seconds of a
    run's steps, mean over seeds, and its ratio to the base's.
    """
    base = next(iter(runs))
    step_s = {name: _mean([_median_step(run) for run in seeded.values()]) for name, seeded in runs.items()}
    ends = {
        name: {metric: {seed: final_value(metric, run.series.get(metric, {})) for seed, run in seeded.items()} for metric in metrics}
        for name, seeded in runs.items()
    }
    variants = {}
    for name in runs:
        cost = step_s[name]
        whole = step_s[base]
        variants[name] = {
            "seeds": sorted(runs[name]),
            "metrics": {metric: _summary(ends[name][metric], ends[base][metric], is_base=name == base) for metric in metrics},
            "step_s": cost,
            "step_ratio": cost / whole if cost is not None and whole else None,
        }
    return {"base": base, "metrics": list(metrics), "variants": variants}


def tables_of(result: Mapping[str, Any]) -> str:
    """The result as one Markdown table, and a line that says how to read it."""
    headings = ["variant", "seeds"]
    for metric in result["metrics"]:
        headings += [metric, f"− {result['base']}"]
    headings += ["s/step", f"× {result['base']}"]
    rows = []
    for name, variant in result["variants"].items():
        row = [name, str(len(variant["seeds"]))]
        for metric in result["metrics"]:
            summary = variant["metrics"][metric]
            difference = summary["difference"] or {"mean": None, "interval": None}
            row += [number(summary["mean"]) + interval(summary["interval"]), signed(difference["mean"]) + interval(difference["interval"])]
        rows.append([*row, number(variant["step_s"]), number(variant["step_ratio"])])
    legend = (
        "Mean over seeds [95 % t-interval], and the difference to the base, paired by seed. Metrics of evaluations: the last value; "
        "others: mean of the last tenth of the steps. s/step: median of a run's steps, mean over seeds."
    )
    return f"{markdown(headings, rows)}\n\n{legend}"


def _summary(values: Mapping[int, float | None], base: Mapping[int, float | None], *, is_base: bool) -> dict[str, Any]:
    known = {seed: value for seed, value in values.items() if value is not None}
    differences = [value - under for seed, value in known.items() if (under := base.get(seed)) is not None]
    return {
        "by_seed": {str(seed): value for seed, value in sorted(known.items())},
        "mean": _mean(list(known.values())),
        "interval": t_interval(list(known.values())),
        "difference": None if is_base or not differences else {"mean": _mean(differences), "interval": t_interval(differences)},
    }


def _median_step(run: Finished) -> float | None:
    seconds = [value for value in run.series.get(STEP_S, {}).values() if value is not None]
    return float(np.median(seconds)) if seconds else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
