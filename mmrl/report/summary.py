"""The numbers at the top of the page and the success tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.report.charts import means_of_ends
from mmrl.report.run_folder import Evaluation, Run, finite


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class HeatCell:
    text: str
    count: int
    shade: str
    """CSS class: "h0" … "h10" for success, "d-5" … "d5" for a change, "" for an empty cell."""


@dataclass(frozen=True)
class HeatTable:
    title: str
    row_key: str
    column_key: str
    """"" where one key tells the classes apart."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell | None, ...]], ...]
    """(label, a cell for each column; None where no task was)."""


def tiles(run: Run) -> list[Tile]:
    """Headline numbers; one that the run does not tell is left out."""
    found = [_time(run), _steps(run), _tokens(run), _reward(run)]
    return [tile for tile in found if tile is not None]


def heat_tables(evaluations: Sequence[Evaluation]) -> list[HeatTable]:
    """Success by class, before and after, and the change between them; [] where the evaluations have no table."""
    with_table = [evaluation for evaluation in evaluations if evaluation.table]
    if not with_table:
        return []
    ends = [with_table[0], with_table[-1]] if len(with_table) > 1 else [with_table[0]]
    keys = tuple(key for key in ends[0].table[0] if key not in ("n", "success", "rewards"))
    success = [_by_class(end, keys) for end in ends]
    classes = list(dict.fromkeys(name for table in success for name in table))
    rows, columns = (sorted(dict.fromkeys(name[axis] for name in classes), key=_order) for axis in (0, 1))

    def table(title: str, cells: Mapping[tuple[Any, Any], HeatCell]) -> HeatTable:
        body = tuple((str(row), tuple(cells.get((row, column)) for column in columns)) for row in rows)
        return HeatTable(title, keys[0] if keys else "", " · ".join(keys[1:]), tuple(map(str, columns)), body)

    titles = [f"Before (step {ends[0].step})", f"After (step {ends[-1].step})"] if len(ends) > 1 else [f"Step {ends[0].step}"]
    tables = [
        table(title, {name: _success_cell(value, count) for name, (value, count) in values.items()})
        for title, values in zip(titles, success, strict=True)
    ]
    if len(ends) > 1:
        before, after = success
        tables.append(table("Change (points)", {name: _change_cell(before[name], after[name]) for name in before if name in after}))
    return tables


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """ "45 s", "12 min 5 s", "3 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _time(run: Run) -> Tile | None:
    clock = [value for value in run.metrics.get("time_s", {}).values() if value is not None]
    in_steps = [value for value in run.metrics.get("perf/step_s", {}).values() if value is not None]
    if not clock and not in_steps:
        return None
    if not in_steps:
        return Tile("Time", duration(max(clock)), "since the start, evaluation included")
    note = f"{duration(max(clock))} with evaluation" if clock else ""
    return Tile("Training time", duration(sum(in_steps)), note)


def _steps(run: Run) -> Tile | None:
    if not run.train_steps:
        return None
    planned = _setting(run, "trainer", "max_steps")
    note = f"of {planned} planned" if planned is not None and planned != run.train_steps[-1] else ""
    return Tile("Steps", f"{run.train_steps[-1]:,}".replace(",", " "), note)


def _tokens(run: Run) -> Tile | None:
    counted = [value for value in run.metrics.get("num_tokens", {}).values() if value is not None]
    if counted:
        return Tile("Tokens", _short_count(max(counted)), "prompt and completion")
    lengths = [value for value in run.metrics.get("completions/mean_length", {}).values() if value is not None]
    per_step, generations = _setting(run, "trainer", "tasks_per_step"), _setting(run, "rollout", "num_generations")
    if not lengths or per_step is None or generations is None:
        return None
    note = f"mean length × {per_step} tasks × {generations} rollouts, summed over steps"
    return Tile("Completion tokens", "≈ " + _short_count(sum(lengths) * per_step * generations), note)


def _reward(run: Run) -> Tile | None:
    ends = means_of_ends(run.metrics.get("reward", {}))
    if ends is None:
        return None
    return Tile("Training reward", f"{ends[0]:.3g} → {ends[1]:.3g}", "means of the first and the last tenth of the steps")


def _setting(run: Run, section: str, key: str) -> int | None:
    value = (run.recipe.get(section) or {}).get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _short_count(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f}"


def _by_class(evaluation: Evaluation, keys: tuple[str, ...]) -> dict[tuple[Any, Any], tuple[float | None, int]]:
    """(value of the first key, values of the others) -> (success, tasks)."""
    classes = {}
    for index, row in enumerate(evaluation.table):
        values = [row.get(key, "–") for key in keys]
        name = (values[0] if values else "all", values[1] if len(values) == 2 else " · ".join(map(str, values[1:])))
        classes[name] = (finite(row["success"], f"{evaluation.file}: table.{index}.success"), row["n"])
    return classes


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers in order, then words."""
    number = isinstance(value, int | float)
    return (not number, value if number else 0.0, str(value))


def _success_cell(value: float | None, count: int) -> HeatCell:
    if value is None or count == 0:
        return HeatCell("–", count, "")
    return HeatCell(f"{100 * value:.0f}", count, f"h{min(10, max(0, round(10 * value)))}")


def _change_cell(before: tuple[float | None, int], after: tuple[float | None, int]) -> HeatCell:
    if before[0] is None or after[0] is None or 0 in (before[1], after[1]):
        return HeatCell("–", min(before[1], after[1]), "")
    change = after[0] - before[0]
    return HeatCell(f"{100 * change:+.0f}".replace("-", "−"), min(before[1], after[1]), f"d{min(5, max(-5, round(5 * change)))}")
