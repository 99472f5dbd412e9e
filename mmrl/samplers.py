"""Task samplers: which tasks a step uses. Draws are keyed by their number in the run (`step`; dynamic sampling makes several draws for
one turn of the trainer), so a resumed run draws what the stopped one would have drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmrl.errors import RecipeError, TaskError
from mmrl.protocols import TaskSource
from mmrl.seeding import stream
from mmrl.types import TaskKey


@dataclass
class UniformSampler:
    """All tasks alike. A finite source is walked in shuffled epochs, so that each task comes once before any comes twice; an endless one
    gives a new task every time, its buckets in turn by chance with `weights`."""

    seed: int = 0
    weights: tuple[float, ...] = ()
    """One weight >= 0 per bucket of an endless source; empty = equal."""

    def draw(self, source: TaskSource, step: int, count: int) -> list[TaskKey]:
        buckets = list(source.buckets)
        sizes = [source.size(bucket) for bucket in buckets]
        if all(size is not None for size in sizes):
            if self.weights:
                raise RecipeError("tasks.sampler.weights: buckets of a finite source are drawn by size; leave weights out")
            return self._epochs(buckets, [size or 0 for size in sizes], step * count, count)
        weights = _checked_weights(self.weights or (1.0,) * len(buckets), buckets)
        chosen = stream(self.seed, "sampler", step).choice(len(buckets), size=count, p=weights)
        return [_keyed_task(source, buckets[b], self.seed, step * count + n) for n, b in enumerate(chosen)]

    def _epochs(self, buckets: Sequence[str], sizes: Sequence[int], first: int, count: int) -> list[TaskKey]:
        keys = [TaskKey(bucket, index) for bucket, size in zip(buckets, sizes, strict=True) for index in range(size)]
        if not keys:
            raise TaskError("tasks.train: the source has no tasks")
        order: dict[int, np.ndarray] = {}
        drawn = []
        for position in range(first, first + count):
            epoch, place = divmod(position, len(keys))
            if epoch not in order:
                order[epoch] = stream(self.seed, "epoch", epoch).permutation(len(keys))
            drawn.append(keys[order[epoch][place]])
        return drawn

    def observe(self, step: int, outcomes: Mapping[TaskKey, float]) -> None:
        """Outcomes change nothing here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: draws are a function of the step."""


@dataclass
class CurriculumSampler:
    """Easiest bucket first; the next one opens when the moving success of the hardest open one reaches `threshold` (Ariadne,
    arXiv:2511.00710, as a bucket curriculum). Open buckets share the draws equally, but the newest gets `newest_share` of them."""

    seed: int = 0
    threshold: float = 0.7
    """Success rate in (0, 1] that opens the next bucket."""
    window: int = 64
    """Tasks of the hardest open bucket that the moving success is taken over; it opens nothing before it is full."""
    newest_share: float = 0.5
    """Share in [0, 1] of the draws that the newest bucket gets; the others share the rest."""
    start: int = 1
    """Buckets open at the start."""
    _opened: int = field(default=0, init=False, repr=False)
    _recent: list[float] = field(default_factory=list, init=False, repr=False)
    _buckets: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.window < 1 or not 0 <= self.newest_share <= 1 or self.start < 1:
            raise ValueError(
                "need threshold in (0, 1], window >= 1, newest_share in [0, 1] and start >= 1; "
                f"got {self.threshold}, {self.window}, {self.newest_share}, {self.start}"
            )
        self._opened = self.start

    @property
    def opened(self) -> int:
        """Buckets open now; logged as `curriculum/opened`."""
        return self._opened

    def draw(self, source: TaskSource, step: int, count: int) -> list[TaskKey]:
        self._buckets = list(source.buckets)
        opened = self._buckets[: self._opened]
        weights = np.full(len(opened), 1.0)
        if len(opened) > 1:
            weights[:-1], weights[-1] = (1 - self.newest_share) / (len(opened) - 1), self.newest_share
        chosen = stream(self.seed, "curriculum", step).choice(len(opened), size=count, p=weights / weights.sum())
        return [_keyed_task(source, opened[b], self.seed, step * count + n) for n, b in enumerate(chosen)]

    def observe(self, step: int, outcomes: Mapping[TaskKey, float]) -> None:
        if not self._buckets or self._opened >= len(self._buckets):
            return
        newest = self._buckets[self._opened - 1]
        self._recent += [success for key, success in outcomes.items() if key.bucket == newest]
        self._recent = self._recent[-self.window :]
        if len(self._recent) == self.window and float(np.mean(self._recent)) >= self.threshold:
            self._opened, self._recent = self._opened + 1, []

    def state_dict(self) -> dict[str, Any]:
        return {"opened": self._opened, "recent": list(self._recent), "buckets": list(self._buckets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._opened, self._recent, self._buckets = int(state["opened"]), list(state["recent"]), list(state["buckets"])


def first_keys(source: TaskSource, count: int) -> list[TaskKey]:
    """The first `count` tasks, buckets in turn, each from its index 0: a fixed set to evaluate on. Fewer if the source has fewer."""
    sizes = {bucket: source.size(bucket) for bucket in source.buckets}
    keys: list[TaskKey] = []
    index = 0
    while len(keys) < count:
        row = [TaskKey(bucket, index) for bucket, size in sizes.items() if size is None or index < size]
        if not row:
            break
        keys += row
        index += 1
    return keys[:count]


def _keyed_task(source: TaskSource, bucket: str, seed: int, position: int) -> TaskKey:
    """An endless bucket gives task number `position`, never used before; a finite one gives a keyed random task."""
    size = source.size(bucket)
    if size is None:
        return TaskKey(bucket, position)
    if not size:
        raise TaskError(f"tasks.train: bucket {bucket!r} has no tasks")
    return TaskKey(bucket, int(stream(seed, "task", position).integers(size)))


def _checked_weights(weights: Sequence[float], buckets: Sequence[str]) -> np.ndarray:
    if len(weights) != len(buckets):
        raise RecipeError(f"tasks.sampler.weights: {len(weights)} weights for {len(buckets)} buckets {list(buckets)}; give one each")
    shares = np.asarray(weights, np.float64)
    if (shares < 0).any() or shares.sum() == 0:
        raise RecipeError(f"tasks.sampler.weights: weights must be >= 0 and not all 0; got {list(weights)}")
    return shares / shares.sum()
