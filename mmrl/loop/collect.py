"""Tasks -> groups -> scored groups, with DAPO's dynamic sampling when asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmrl.advantages.filters import keep_group
from mmrl.errors import TaskError
from mmrl.loop.credit import gather_from_ranks
from mmrl.loop.score import WeightedReward, score
from mmrl.models.processor import PromptMaker
from mmrl.protocols import Reward, RolloutEngine, RolloutStrategy, Sampling, TaskSampler, TaskSource
from mmrl.recipe import DynamicSamplingSection
from mmrl.types import ScoredGroup, TaskKey


@dataclass
class Collected:
    """One step's groups on this rank, what solved them, and where the time went."""

    scored: list[ScoredGroup] = field(default_factory=list)
    success: list[np.ndarray] = field(default_factory=list)
    """Per group float32 [G]: the success reward of each rollout, 1 = solved."""
    drawn: int = 0
    """Tasks drawn, all ranks together; more than are kept under dynamic sampling."""
    seconds: dict[str, float] = field(default_factory=lambda: {"tasks": 0.0, "rollout": 0.0, "reward": 0.0})


@dataclass(frozen=True)
class Collector:
    """Everything that makes groups, put together once for a run."""

    source: TaskSource
    sampler: TaskSampler
    engine: RolloutEngine
    strategy: RolloutStrategy
    make_prompts: PromptMaker
    rewards: Sequence[WeightedReward]
    success: Reward
    num_generations: int
    reward_failure_limit: float
    dynamic: DynamicSamplingSection | None
    rank: int
    num_ranks: int

    def __call__(self, step: int, tasks_per_step: int, sampling: Sampling) -> Collected:
        """`tasks_per_step` groups, all ranks together; with dynamic sampling it draws on until that many groups are worth an update.

        Each draw samples under its own key, so a task that comes again within a step gets other completions.
        """
        out = Collected()
        tries = 1 if self.dynamic is None else self.dynamic.max_tries
        for attempt in range(tries):
            keys = self._draw(step, tasks_per_step, attempt, tries)
            scored, success = self._groups(keys[self.rank :: self.num_ranks], replace(sampling, step=step * tries + attempt), out)
            out.drawn += len(keys)
            self._observe(step, keys, success)
            kept = [n for n in range(len(scored)) if self._kept(success[n])]
            room = tasks_per_step // self.num_ranks - len(out.scored)
            out.scored += [scored[n] for n in kept[:room]]
            out.success += [success[n] for n in kept[:room]]
            if min(gather_from_ranks([len(out.scored)]))[0] == tasks_per_step // self.num_ranks:
                return out
        assert self.dynamic is not None
        raise TaskError(
            f"update.dynamic_sampling: after {tries} draws of {tasks_per_step} tasks at step {step} only {len(out.scored)} groups had "
            f"a success rate between {self.dynamic.low:g} and {self.dynamic.high:g}; the tasks are all too easy or too hard for the "
            "policy. Change the tasks, warm the model up, or raise update.dynamic_sampling.max_tries"
        )

    def _draw(self, step: int, count: int, attempt: int, tries: int) -> list[TaskKey]:
        """Draw `attempt` of a step; with one draw a step it is the sampler's own step."""
        return self.sampler.draw(self.source, step * tries + attempt, count)

    def _groups(self, keys: Sequence[TaskKey], sampling: Sampling, out: Collected) -> tuple[list[ScoredGroup], list[np.ndarray]]:
        start = time.perf_counter()
        tasks = [self.source.task(key) for key in keys]
        out.seconds["tasks"] += time.perf_counter() - start
        start = time.perf_counter()
        groups = self.strategy(tasks, self.engine, self.make_prompts, self.num_generations, sampling)
        out.seconds["rollout"] += time.perf_counter() - start
        start = time.perf_counter()
        scored = score(groups, self.rewards, reward_failure_limit=self.reward_failure_limit)
        success = [self.success(group) for group in groups]
        out.seconds["reward"] += time.perf_counter() - start
        return scored, success

    def _observe(self, step: int, keys: Sequence[TaskKey], success: Sequence[np.ndarray]) -> None:
        rates = gather_from_ranks([float(np.mean(values >= 1)) for values in success])
        outcomes = {key: rates[n % self.num_ranks][n // self.num_ranks] for n, key in enumerate(keys)}
        self.sampler.observe(step, outcomes)

    def _kept(self, success: np.ndarray) -> bool:
        return self.dynamic is None or keep_group((success >= 1).astype(np.float32), self.dynamic.low, self.dynamic.high)
