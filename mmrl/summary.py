"""A run's first and last evaluation side by side, for the terminal."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(run: Path, console: Console | None = None) -> None:
    """Prints success before and after, by number of moves (or bucket) and in all, then the means of the rewards. Prints nothing for a run
    without two evaluations."""
    files = sorted((run / "eval").glob("step-*.json"))
    if len(files) < 2:
        return
    before, after = json.loads(files[0].read_text()), json.loads(files[-1].read_text())
    table = Table(title=f"{run.name}: success on {after['tasks']} unseen tasks")
    for heading in ("", "tasks", f"step {before['step']}", f"step {after['step']}", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    old, new = _rows(before), _rows(after)
    for name in new:
        count, rate = new[name]
        table.add_row(name, str(count), f"{old[name][1]:.1%}", f"{rate:.1%}", f"{100 * (rate - old[name][1]):+.1f}")
    table.add_section()
    table.add_row(
        "all",
        str(after["tasks"]),
        _interval(before),
        _interval(after),
        f"{100 * (after['success'] - before['success']):+.1f}",
        style="bold",
    )
    for name, value in after.get("rewards", {}).items():
        old_value = before["rewards"].get(name)
        if value is not None and old_value is not None:
            table.add_row(f"mean {name}", str(after["tasks"]), f"{old_value:.3f}", f"{value:.3f}", f"{value - old_value:+.3f}")
    (console or Console()).print(table)


def _rows(evaluation: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Name of the row -> tasks, success rate."""
    cells: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for cell in evaluation["table"]:
        name = f"{cell['moves']} move{'s' if cell['moves'] > 1 else ''}" if "moves" in cell else str(cell["bucket"] or "tasks")
        cells[name].append((cell["n"], cell["success"]))
    counts = {name: sum(n for n, _ in values) for name, values in cells.items()}
    return {name: (counts[name], sum(n * rate for n, rate in values) / counts[name]) for name, values in cells.items()}


def _interval(evaluation: dict[str, Any]) -> str:
    low, high = evaluation["interval"]
    return f"{evaluation['success']:.1%} [{low:.1%}, {high:.1%}]"
