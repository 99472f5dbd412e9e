"""Scored groups -> samples: advantages over all ranks' groups, samples dealt into updates, and each token's share of the loss fixed there,
before anything is split over micro-batches or ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object

from mmrl.aggregate import Aggregation, token_weights
from mmrl.errors import MmrlError
from mmrl.loop.passes import Known
from mmrl.ops import kl_k1
from mmrl.protocols import AdvantageEstimator
from mmrl.types import GroupRewards, Sample, ScoredGroup

T = TypeVar("T")


def gather_from_ranks(items: Sequence[T]) -> list[list[T]]:
    """Every rank's list, in rank order; one list when there is one process."""
    return gather_object([list(items)])


def together(work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)` on every rank, none of which goes on alone: where it failed on any rank it fails on all, so that no rank waits
    for one that is gone. The rank that failed raises its own error; the others raise an MmrlError again by its class and message, and
    anything else as a RuntimeError. `work` must not exchange anything between ranks itself."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return work(*arguments)
    result: Any = None
    failure: Exception | None = None
    try:
        result = work(*arguments)
    except Exception as error:  # raised again below, once the other ranks know
        failure = error
    told = None if failure is None else (type(failure) if isinstance(failure, MmrlError) else RuntimeError, repr(failure), str(failure))
    for rank, (elsewhere,) in enumerate(gather_from_ranks([told])):
        if failure is not None:
            raise failure
        if elsewhere is not None:
            kind, shown, message = elsewhere
            raise kind(f"process {rank}: {shown if kind is RuntimeError else message}")
    return result


@dataclass(frozen=True, eq=False)
class _Dealt:
    """What the other ranks need to know of a group."""

    place: int
    rank: int
    index: int
    """In its own rank's list."""
    rewards: GroupRewards
    trained: list[bool]
    truncated: list[bool]


def credit(
    scored: Sequence[ScoredGroup],
    places: Sequence[int],
    estimator: AdvantageEstimator,
    *,
    aggregation: Aggregation,
    max_completion_length: int,
    mask_truncated: bool,
    num_mini_batches: int,
    rank: int,
    token_rewards: Sequence[tuple[np.ndarray, ...]] | None = None,
    arm_weights: Mapping[str, float] | None = None,
) -> tuple[list[list[Sample]], dict[str, float]]:
    """This rank's samples of each of the `num_mini_batches` updates; and what the estimator tells of all ranks' groups, for the log.

    `places`: each group's number in the step, all ranks together, 0, 1, ... without gaps. Groups stay whole and are dealt by place, in
    `num_mini_batches` blocks of equal size (to one group), so that the number of ranks changes neither advantages nor updates.
    A rollout without a reward (NaN), or that is not trained (train_prompt None), becomes no sample and counts in no denominator. With
    `mask_truncated`, completions cut at the length limit have weight 0 and leave the denominator; their reward stays in the baseline.
    The rows of an arm in `arm_weights` have denominators of their own, and their weights that factor.
    """
    mine = [
        _Dealt(
            place=place,
            rank=rank,
            index=n,
            rewards=GroupRewards(
                rewards=group.rewards,
                lengths=np.array([len(r.completion.ids) for r in group.group.rollouts]),
                token_rewards=None if token_rewards is None else tuple(token_rewards[n]),
                arms=tuple(r.arm for r in group.group.rollouts),
                parts=group.parts,
            ),
            trained=[
                r.train_prompt is not None and not np.isnan(reward) for r, reward in zip(group.group.rollouts, group.rewards, strict=True)
            ],
            truncated=[r.completion.finish == "length" for r in group.group.rollouts],
        )
        for n, (group, place) in enumerate(zip(scored, places, strict=True))
    ]
    everyone = sorted((group for items in gather_from_ranks(mine) for group in items), key=lambda group: group.place)
    rewards = [group.rewards for group in everyone]
    advantages = estimator(rewards)
    updates: list[list[Sample]] = []
    for part in range(num_mini_batches):
        block = range(len(everyone) * part // num_mini_batches, len(everyone) * (part + 1) // num_mini_batches)
        rows = [(n, i) for n in block for i, used in enumerate(everyone[n].trained) if used]
        weights: dict[tuple[int, int], np.ndarray] = {}
        for factor, some in _branches(rows, everyone, arm_weights or {}):
            shares = token_weights(
                [int(everyone[n].rewards.lengths[i]) for n, i in some],
                [not everyone[n].truncated[i] for n, i in some] if mask_truncated else None,
                aggregation,
                max_completion_length,
            )
            weights.update(zip(some, (np.float32(factor) * share for share in shares), strict=True))
        updates.append(
            [
                Sample(scored[everyone[n].index].group.rollouts[i], advantages[n][i], weights[n, i])
                for n, i in rows
                if everyone[n].rank == rank
            ]
        )
    told = estimator.metrics(rewards) if hasattr(estimator, "metrics") else {}  # pyright: ignore[reportAttributeAccessIssue] (few have it)
    return updates, told


def kl_in_reward(
    scored: Sequence[ScoredGroup], known: Known, factor: float
) -> tuple[list[tuple[np.ndarray, ...]] | None, dict[str, float]]:
    """`token_rewards` of `credit`: -factor * log(policy / reference) of each token, both as the step began; and the mean of the log-ratio
    over all ranks' tokens, by its metric's name. (None, {}) where the factor is 0."""
    if factor == 0:
        return None, {}
    k1 = {n: kl_k1(torch.from_numpy(known.signals[n]["old_logps"]), torch.from_numpy(ref)).numpy() for n, ref in known.ref_logps.items()}
    token_rewards = [  # a rollout that is only compared with has no log-probabilities, and no KL
        tuple(-factor * k1.get(id(r), np.zeros(len(r.completion.ids), np.float32)) for r in group.group.rollouts) for group in scored
    ]
    sums = gather_from_ranks([(sum(float(v.sum(dtype=np.float64)) for v in k1.values()), sum(map(len, k1.values())))])
    return token_rewards, {"kl_in_reward": sum(total for ((total, _),) in sums) / sum(count for ((_, count),) in sums)}


def _branches(
    rows: Sequence[tuple[int, int]], groups: Sequence[_Dealt], arm_weights: Mapping[str, float]
) -> list[tuple[float, list[tuple[int, int]]]]:
    """A factor and the rows (group, rollout) that are aggregated together under it; first those of no arm that has a weight."""
    arms = {row: groups[row[0]].rewards.arms[row[1]] for row in rows}
    rest = (1.0, [row for row in rows if arms[row] not in arm_weights])
    return [rest, *((factor, [row for row in rows if arms[row] == arm]) for arm, factor in arm_weights.items())]
