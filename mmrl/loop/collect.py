"""Tasks -> groups -> scored groups, with DAPO's dynamic sampling when asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmrl.advantages.filters import keep_group
from mmrl.errors import TaskError
from mmrl.loop.credit import gather_from_ranks, together
from mmrl.loop.score import WeightedReward, score
from mmrl.models.processor import PromptMaker
from mmrl.protocols import RolloutEngine, RolloutStrategy, Sampling, TaskSampler, TaskSource
from mmrl.recipe import DynamicSamplingSection
from mmrl.types import ScoredGroup, TaskKey


@dataclass
class Collected:
    """One step's groups on this rank, what solved them, and where the time went."""

    scored: list[ScoredGroup] = field(default_factory=list)
    success: list[np.ndarray] = field(default_factory=list)
    """Per group float32 [G]: the success reward of each rollout, 1 = solved, NaN = failed."""
    places: list[int] = field(default_factory=list)
    """Per group its number in the step, all ranks together: the same whatever the number of ranks."""
    draws: int = 0
    """Times the sampler was asked; 1 without dynamic sampling."""
    drawn: int = 0
    """Tasks drawn, all ranks together; more than are kept under dynamic sampling."""
    gated: int = 0
    """Of these, tasks that the strategy let the policy have no try at."""
    tried: dict[TaskKey, bool] = field(default_factory=dict)
    """Each task drawn, all ranks together, and whether the policy had a try at it."""
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
    success: WeightedReward
    """Scored by itself unless it is one of `rewards`."""
    num_generations: int
    reward_failure_limit: float
    dynamic: DynamicSamplingSection | None
    rank: int
    num_ranks: int

    def __call__(self, first_draw: int, tasks_per_step: int, sampling: Sampling) -> Collected:
        """`tasks_per_step` groups, all ranks together; with dynamic sampling it draws on until that many groups are worth an update.

        `first_draw`: draws of the run so far. A draw's number is the sampler's step and a part of the sampling key, so a finite source
        is walked without gaps, and a task that comes again within a step gets other completions. Task n of a draw belongs to rank
        n % num_ranks. An error on any rank is raised on all of them.
        """
        out = Collected()
        filled, tries = 0, 1 if self.dynamic is None else self.dynamic.max_tries
        for draw in range(first_draw, first_draw + tries):
            keys = self.sampler.draw(self.source, draw, tasks_per_step)
            mine = keys[self.rank :: self.num_ranks]
            scored, success = together(self._groups, mine, replace(sampling, step=draw), out)
            out.draws, out.drawn = out.draws + 1, out.drawn + len(keys)
            ranks = gather_from_ranks([self._outcome(group, values) for group, values in zip(scored, success, strict=True)])
            solved = [ranks[n % self.num_ranks][n // self.num_ranks] for n in range(len(keys))]
            self.sampler.observe(draw, {key: rate for key, (rate, _) in zip(keys, solved, strict=True) if rate is not None})
            out.gated += sum(rate is None for rate, _ in solved)
            for key, (rate, _) in zip(keys, solved, strict=True):
                out.tried[key] = out.tried.get(key, False) or rate is not None
            kept = [n for n, (_, keep) in enumerate(solved) if keep][: tasks_per_step - filled]
            for place, n in enumerate(kept, start=filled):
                if n % self.num_ranks == self.rank:
                    out.scored.append(scored[n // self.num_ranks])
                    out.success.append(success[n // self.num_ranks])
                    out.places.append(place)
            filled += len(kept)
            if filled == tasks_per_step:
                return out
        assert self.dynamic is not None
        low, high = self.dynamic.low, self.dynamic.high
        bounds = f"below {high:g}" if low is None else f"between {low:g} and {high:g}"
        raise TaskError(
            f"update.dynamic_sampling: {tries} draws of {tasks_per_step} tasks gave only {filled} groups with a success rate {bounds}; "
            "the tasks are all too easy or too hard for the policy. Change the tasks, "
            "warm the model up, or raise update.dynamic_sampling.max_tries"
        )

    def _groups(self, keys: Sequence[TaskKey], sampling: Sampling, out: Collected) -> tuple[list[ScoredGroup], list[np.ndarray]]:
        start = time.perf_counter()
        tasks = [self.source.task(key) for key in keys]
        out.seconds["tasks"] += time.perf_counter() - start
        start = time.perf_counter()
        groups = self.strategy(tasks, self.engine, self.make_prompts, self.num_generations, sampling)
        out.seconds["rollout"] += time.perf_counter() - start
        start = time.perf_counter()
        scored = score(groups, self.rewards, reward_failure_limit=self.reward_failure_limit)
        success = self._success(scored)
        out.seconds["reward"] += time.perf_counter() - start
        return scored, success

    def _success(self, scored: Sequence[ScoredGroup]) -> list[np.ndarray]:
        """A judge is not asked twice: where the success reward is one of the rewards, its part is taken."""
        if any(item is self.success for item in self.rewards):
            return [group.parts[self.success.name] for group in scored]
        again = score([group.group for group in scored], [self.success], reward_failure_limit=self.reward_failure_limit)
        return [group.parts[self.success.name] for group in again]

    def _outcome(self, group: ScoredGroup, success: np.ndarray) -> tuple[float | None, bool]:
        """Success rate of the policy's tries at the task, None if it had none, and whether the group is worth an update."""
        tries = success[[rollout.attempt for rollout in group.group.rollouts]]
        rate = float(np.mean(tries >= 1)) if len(tries) else None
        if self.dynamic is None:
            return rate, True
        solved = np.where(np.isnan(tries), np.nan, tries >= 1)
        kept = keep_group(solved, self.dynamic.low, self.dynamic.high)
        return rate, kept or any(keep_group(group.parts[name]) for name in self.dynamic.also)
