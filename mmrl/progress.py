"""The progress display: bar, time left, and the numbers to watch."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SHOWN = (
    ("reward", "reward"),
    ("success", "success"),
    ("entropy", "entropy"),
    ("completions/mean_length", "length"),
    ("perf/step_s", "s/step"),
)


class Progress:
    """A live bar on a terminal; every tenth of the run, a plain line elsewhere (a log file)."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self.total, self.enabled = total, enabled
        self.console = Console(stderr=True)
        self.live = enabled and self.console.is_terminal
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self.bar = Bar(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        text = "  ".join(f"{label} {metrics[name]:.3g}" for name, label in SHOWN if name in metrics)
        self.bar.update(self.task, completed=step, description=text)
        if self.enabled and not self.live and (step % max(1, self.total // 10) == 0 or step == 1):
            self.console.print(f"step {step}/{self.total}  {text}", highlight=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
