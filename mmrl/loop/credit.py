"""Scored groups -> samples: advantages over all ranks' groups, samples dealt into updates, and each token's share of the loss fixed there,
before anything is split over micro-batches or ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from accelerate.utils import gather_object

from mmrl.aggregate import Aggregation, token_weights
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards, Sample, ScoredGroup

T = TypeVar("T")


def gather_from_ranks(items: Sequence[T]) -> list[list[T]]:
    """Every rank's list, in rank order; one list when there is one process."""
    return gather_object([list(items)])


def credit(
    scored: Sequence[ScoredGroup],
    estimator: AdvantageEstimator,
    *,
    aggregation: Aggregation,
    max_completion_length: int,
    mask_truncated: bool,
    num_mini_batches: int,
    rank: int,
    token_rewards: Sequence[tuple[np.ndarray, ...]] | None = None,
) -> list[list[Sample]]:
    """This rank's samples of each of the `num_mini_batches` updates. Groups stay whole; group n goes to update n % num_mini_batches.

    A rollout without a reward (NaN), or that is not trained (train_prompt None), becomes no sample and counts in no denominator. With
    `mask_truncated`, completions cut at the length limit have weight 0 and leave the denominator; their reward stays in the baseline.
    """
    mine = [
        GroupRewards(
            rewards=group.rewards,
            lengths=np.array([len(r.completion.ids) for r in group.group.rollouts]),
            token_rewards=None if token_rewards is None else tuple(token_rewards[n]),
        )
        for n, group in enumerate(scored)
    ]
    trained = [
        [r.train_prompt is not None and not np.isnan(reward) for r, reward in zip(g.group.rollouts, g.rewards, strict=True)] for g in scored
    ]
    truncated = [[r.completion.finish == "length" for r in g.group.rollouts] for g in scored]
    everyone = gather_from_ranks(list(zip(mine, trained, truncated, strict=True)))
    first = sum(len(items) for items in everyone[:rank])
    flat = [item for items in everyone for item in items]
    advantages = estimator([rewards for rewards, _, _ in flat])
    updates: list[list[Sample]] = []
    for part in range(num_mini_batches):
        rows = [
            (n, i)
            for n, (_, used, _) in enumerate(flat)
            if _update_of(n, everyone, num_mini_batches) == part
            for i in range(len(used))
            if used[i]
        ]
        weights = token_weights(
            [int(flat[n][0].lengths[i]) for n, i in rows],
            [not flat[n][2][i] for n, i in rows] if mask_truncated else None,
            aggregation,
            max_completion_length,
        )
        updates.append(
            [
                Sample(scored[n - first].group.rollouts[i], advantages[n][i], weight)
                for (n, i), weight in zip(rows, weights, strict=True)
                if first <= n < first + len(scored)
            ]
        )
    return updates


def _update_of(number: int, everyone: Sequence[Sequence[object]], num_mini_batches: int) -> int:
    """Update of the global group `number`: its place within its own rank, modulo the updates, so that every rank has work in each."""
    for items in everyone:
        if number < len(items):
            return number % num_mini_batches
        number -= len(items)
    raise AssertionError(f"group {number} past the last rank")
