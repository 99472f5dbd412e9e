"""How far a run is: what it remembers and when it is done; and the display, with bar, time left and the numbers to watch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mmrl.recipe import CollapseSection, EarlyStopSection, PlateauSection, TrainerSection

SHOWN = (
    ("reward", "reward"),
    ("success", "success"),
    ("entropy", "entropy"),
    ("completions/mean_length", "length"),
    ("perf/step_s", "s/step"),
)


@dataclass
class Progressed:
    """What a run remembers besides weights and optimizer: small JSON in every checkpoint, the same on all ranks."""

    step: int = 0
    """Steps finished."""
    draws: int = 0
    """Draws made of the task sampler: one a step, more under dynamic sampling."""
    updates: int = 0
    """Optimizer steps made; the engine's policy_version."""
    skipped: int = 0
    """Updates in a row left out because the gradient was not finite."""
    num_tokens: int = 0
    seconds: float = 0.0
    metrics_size: int = 0
    evaluated: int = -1
    """Step of the last evaluation; -1 = none."""
    best: dict[str, float] = field(default_factory=dict)
    """{"step", "value"} of the best evaluation so far; empty before the first."""
    stale: int = 0
    """Values of early_stop's metric in a row without a new best."""
    watched: float | None = None
    """Best of them so far, negated under mode min."""
    recent: list[list[float]] = field(default_factory=list)
    """[reward, reward_std] of the last steps, as far back as plateau looks."""
    tried: dict[str, bool] = field(default_factory=dict)
    """Tasks of a finite source under a strategy that gates, and whether the policy has ever had a try at them."""
    factor: float = 1.0
    """What collapse has left of its term's weight."""
    start: list[list[float]] = field(default_factory=list)
    """[entropy, the term's metric, reward] of the first steps, which collapse compares with."""
    latest: list[list[float]] = field(default_factory=list)
    """The same of the steps since it last looked."""

    def done(self, section: TrainerSection) -> bool:
        """By steps, by time, or by early_stop: a question of the state alone, so all ranks stop together and a finished run stays so."""
        if self.step >= section.max_steps or (section.max_minutes is not None and self.seconds / 60 >= section.max_minutes):
            return True
        if section.plateau is not None and self._is_flat(section.plateau):
            return True
        rule = section.early_stop
        if rule is None or self.watched is None:
            return False
        reached = rule.threshold is not None and self.watched >= (rule.threshold if rule.mode == "max" else -rule.threshold)
        return reached or self.stale >= rule.patience

    def watch(self, rule: EarlyStopSection, value: float) -> None:
        """Notes a new value of early_stop's metric; NaN is never a new best."""
        value = value if rule.mode == "max" else -value
        if not math.isnan(value) and (self.watched is None or value > self.watched):
            self.watched, self.stale = value, 0
        else:
            self.stale += 1

    def note(self, rule: PlateauSection, metrics: Mapping[str, float]) -> None:
        """Notes a step's reward and spread."""
        self.recent = [*self.recent, [metrics["reward"], metrics["reward_std"]]][-(rule.window + rule.span) :]

    def never_passed(self, tried: Mapping[str, bool]) -> float:
        """Notes whether the policy had a try at some tasks; share of all tasks so far at which it never had one."""
        self.tried |= {task: had or self.tried.get(task, False) for task, had in tried.items()}
        return 1 - sum(self.tried.values()) / len(self.tried)

    def look(self, rule: CollapseSection, metrics: Mapping[str, float]) -> str | None:
        """Notes a step for collapse and, at every `window`-th one after the start, looks whether training collapses: if so, lowers `factor`
        and says why. A step without the numbers (the term was off, or no row was forwarded) does not count."""
        seen = [metrics.get(name, math.nan) for name in ("entropy", rule.metric, "reward")]
        if not all(map(math.isfinite, seen)):
            return None
        if len(self.start) < rule.window:
            self.start = [*self.start, seen]
            return None
        self.latest = [*self.latest, seen]
        if len(self.latest) < rule.window:
            return None
        (entropy_0, metric_0, reward_0), (entropy, metric, reward) = (
            [sum(column) / rule.window for column in zip(*rows, strict=True)] for rows in (self.start, self.latest)
        )
        self.latest = []
        rising = entropy > rule.growth * entropy_0 and metric > rule.growth * metric_0
        if not (entropy > rule.max_growth * entropy_0 or (rising and reward < reward_0 - rule.reward_drop)):
            return None
        self.factor *= rule.factor
        return (
            f"collapse: entropy {entropy_0:.3g} -> {entropy:.3g}, {rule.metric} {metric_0:.3g} -> {metric:.3g}, reward {reward_0:.3g} -> "
            f"{reward:.3g} since the start; the weight of {rule.term!r} is now {self.factor:.3g} of the recipe's"
        )

    def _is_flat(self, rule: PlateauSection) -> bool:
        if self.step < rule.min_steps or len(self.recent) < rule.window + rule.span:
            return False
        before, now = self.recent[: rule.window], self.recent[-rule.window :]
        moved = [abs(sum(a) - sum(b)) / rule.window for a, b in zip(zip(*before, strict=True), zip(*now, strict=True), strict=True)]
        return all(distance < rule.tolerance for distance in moved)


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
