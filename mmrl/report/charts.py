"""Which curves the page draws, from which metrics. Metrics that no chart names go into charts of their own, so none is hidden."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.report.run_folder import Evaluation, Run, Series

POINTS_PER_CURVE = 600
"""A longer curve is drawn as means over runs of steps; more points than pixels would only make the file heavy."""


@dataclass(frozen=True)
class Chart:
    title: str
    metrics: tuple[tuple[str, str], ...] = ()
    """(metric, label) in drawing order; metrics that the run does not have are left out."""
    pattern: str | None = None
    """Regular expression: every metric that it matches whole is drawn too, labelled by its first group."""
    unit: Literal["", "%", "s"] = ""
    stacked: bool = False
    """Areas on top of each other instead of lines."""
    spread: str | None = None
    """Metric drawn as a band of ± its value around the first curve."""


CHARTS = (
    Chart("Success", (("success", "training"), ("eval/success", "evaluation")), unit="%"),
    Chart("Reward", (("reward", "mean"),), spread="reward_std"),
    Chart("Reward parts", pattern=r"rewards/(.+)/mean"),
    Chart("Evaluation by difficulty", pattern=r"eval/success/(.+)", unit="%"),
    Chart("Evaluation's reward parts", pattern=r"eval/rewards/(.+)/mean"),
    Chart("Completion length (tokens)", (("completions/mean_length", "mean"),)),
    Chart("Completions cut at the limit", (("completions/clipped_ratio", "share"),), unit="%"),
    Chart("Groups without signal", (("frac_reward_zero_std", "all rewards equal"),), unit="%"),
    Chart("Entropy (nats)", (("entropy", "entropy"),)),
    Chart("KL to the reference (nats)", (("kl", "KL"),)),
    Chart("Perception: divergence from the masked view (nats)", (("perception/kl", "KL"), ("perception/gap", "mean gap"))),
    Chart(
        "Perception: share of tokens",
        (("perception/dependent", "vision-dependent"), ("perception/capped", "at the cap")),
        unit="%",
    ),
    Chart(
        "VOGUE: share of tokens at a cap",
        (("vogue/view_capped", "view uncertainty"), ("vogue/entropy_capped", "entropy")),
        unit="%",
    ),
    Chart("Tokens clipped", (("clip_ratio/region_mean", "share"),), unit="%"),
    Chart("Gradient norm", (("grad_norm", "norm"),)),
    Chart("Loss", (("loss", "loss"),)),
    Chart("Learning rate", (("learning_rate", "rate"),)),
    Chart(
        "Seconds a step, by phase",
        (
            ("perf/tasks_s", "tasks"),
            ("perf/rollout_s", "rollout"),
            ("perf/reward_s", "reward"),
            ("perf/old_s", "old log-probs"),
            ("perf/ref_s", "reference log-probs"),
            ("perf/update_s", "update"),
        ),
        unit="s",
        stacked=True,
    ),
)
_NOT_DRAWN_ALONE = frozenset({"time_s", "perf/step_s"})


def build_charts(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the charts of `CHARTS`, charts of all remaining metrics), as plain data for the page's script."""
    drawn = set(_NOT_DRAWN_ALONE)
    named = []
    for chart in CHARTS:
        curves = [(metric, label) for metric, label in chart.metrics if metric in run.metrics]
        if chart.pattern is not None:
            matches = (re.fullmatch(chart.pattern, metric) for metric in run.metrics)
            curves += sorted(((match[0], match[1]) for match in matches if match), key=lambda curve: _natural(curve[1]))
        drawn |= {metric for metric, _ in curves} | ({chart.spread} if chart.spread else set())
        if any(value is not None for metric, _ in curves for value in run.metrics[metric].values()):
            named.append(_chart(chart, curves, run))
    rest = [
        _chart(Chart(metric), [(metric, metric)], run)
        for metric, series in sorted(run.metrics.items())
        if metric not in drawn and any(value is not None for value in series.values())
    ]
    return named, rest


def thin(series: Series, spread: Series | None = None) -> dict[str, list[Any]]:
    """At most POINTS_PER_CURVE points: {"steps", "values"} and, with a spread, {"low", "high"}. A point is the mean of `every`
    neighbouring steps, at the last of them; values that are None are left out of the mean, and a point of nothing else is None."""
    steps = sorted(series)
    every = -(-len(steps) // POINTS_PER_CURVE)
    points: dict[str, list[Any]] = {"steps": [], "values": []}
    if spread is not None:
        points |= {"low": [], "high": []}
    for begin in range(0, len(steps), max(every, 1)):
        chunk = steps[begin : begin + every]
        value = _mean(series[step] for step in chunk)
        points["steps"].append(chunk[-1])
        points["values"].append(_rounded(value))
        if spread is not None:
            half = _mean(spread.get(step) for step in chunk)
            low, high = (None, None) if value is None or half is None else (value - half, value + half)
            points["low"].append(_rounded(low))
            points["high"].append(_rounded(high))
    return points


def _chart(chart: Chart, curves: list[tuple[str, str]], run: Run) -> dict[str, Any]:
    drawn = []
    for index, (metric, label) in enumerate(curves):
        spread = run.metrics.get(chart.spread) if chart.spread and index == 0 else None
        points = thin(run.metrics[metric], spread)
        if metric == "eval/success":
            points |= _eval_band(points["steps"], run.evaluations)
        drawn.append({"key": metric, "label": label, "markers": metric.startswith("eval/"), **points})
    return {"title": chart.title, "unit": chart.unit, "stacked": chart.stacked, "curves": drawn}


def _eval_band(steps: list[int], evaluations: Iterable[Evaluation]) -> dict[str, list[float | None]]:
    intervals = {evaluation.step: evaluation.interval for evaluation in evaluations}
    bands: list[tuple[float | None, float | None]] = [intervals.get(step) or (None, None) for step in steps]
    return {"low": [low for low, _ in bands], "high": [high for _, high in bands]}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _natural(label: str) -> list[Any]:
    """Sort key by which "moves=10" comes after "moves=9"."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", label)]


def means_of_ends(series: Mapping[int, float | None]) -> tuple[float, float] | None:
    """Mean of the first and of the last tenth (at least one) of the finite values; None when there are fewer than two."""
    values = [series[step] for step in sorted(series)]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    tenth = max(1, len(known) // 10)
    return sum(known[:tenth]) / tenth, sum(known[-tenth:]) / tenth
