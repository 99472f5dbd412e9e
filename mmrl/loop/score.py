"""Groups -> scored groups: every reward on every group, each part kept, failures kept as data until there are too many."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from mmrl.errors import RewardError, Unscored
from mmrl.protocols import Reward
from mmrl.types import Group, ScoredGroup

CONCURRENT_CALLS = 16
"""Calls in flight at once of rewards that declare `concurrent: ClassVar[bool] = True`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedReward:
    """A reward with its factor in the sum and the name its part is kept under."""

    reward: Reward
    weight: float
    """Finite. 0 = computed and logged only."""
    name: str
    arms: tuple[str, ...] = ()
    """Arms it scores, `Rollout.arm`; () = all. To the others it adds nothing."""

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise ValueError(f"reward {self.name!r}: weight must be finite; got {self.weight}")


@dataclass(frozen=True)
class _Part:
    values: np.ndarray
    """float32 [G]; NaN = failed or not scored."""
    tracebacks: tuple[str | None, ...]
    """G; None = did not fail."""
    given_up: Unscored | None = None
    """Set where the reward gave the whole group up."""


def score(groups: Sequence[Group], rewards: Sequence[WeightedReward], *, reward_failure_limit: float = 0.05) -> list[ScoredGroup]:
    """Run every reward on every group and add the parts up.

    A rollout's reward is the sum of weight · part over the rewards with a weight other than 0. It is NaN where such a reward failed
    (raised, or returned something else than float32 [G] without infinities) and where it gave NaN, "not scored". A reward that scored
    no rollout of a group does not apply to that task and is left out of its sum, and so is one that is not for a rollout's arm; a rollout
    to which none applies has NaN. A reward for some arms is shown their rollouts only.
    A `per_completion` reward that fails on a group is tried again one rollout at a time, so that a failure costs one rollout.
    A reward that raises `Unscored` (a judge that cannot be reached) gives the group up: NaN without a failure, the reason kept and logged.

    Args:
        groups: the step's groups, as far as this process holds them.
        rewards: at least one; names differ.
        reward_failure_limit: share in [0, 1] of rollouts that may have a failed reward. Rewards of weight 0 do not count.

    Raises:
        RewardError: more rollouts failed than the limit allows (found out at the first group that makes it certain), or no
            rollout of the step has a reward.
    """
    _check_arguments(rewards, reward_failure_limit)
    num_rollouts = sum(len(group.rollouts) for group in groups)
    failed, scored = 0, []
    pool = ThreadPoolExecutor(CONCURRENT_CALLS, thread_name_prefix="reward")
    try:
        calls = {
            (number, item.name): pool.submit(_part, item, group)
            for number, group in enumerate(groups)
            for item in rewards
            if getattr(item.reward, "concurrent", False)
        }
        for number, group in enumerate(groups):
            parts = {
                item.name: calls[number, item.name].result() if (number, item.name) in calls else _part(item, group) for item in rewards
            }
            scored.append(_add_up(group, rewards, parts))
            failed += _count_failed(group, rewards, parts)
            if failed and (failed > reward_failure_limit * num_rollouts or failed == num_rollouts):
                raise RewardError(_describe(scored, rewards, failed, num_rollouts, reward_failure_limit))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    _warn_of_unscored(scored)
    if scored and all(np.isnan(item.rewards).all() for item in scored):
        raise RewardError(
            f"no rollout of this step has a reward: {', '.join(repr(item.name) for item in rewards)} gave NaN (not scored) for all "
            f"{num_rollouts}, first for task {groups[0].task.id}. Add a reward that applies to these tasks, or leave the tasks out"
        )
    return scored


def _warn_of_unscored(scored: Sequence[ScoredGroup]) -> None:
    """One line a reward, whatever the number of groups."""
    for name in dict.fromkeys(name for item in scored for name in item.unscored):
        theirs = [item for item in scored if name in item.unscored]
        kind, reason = theirs[0].unscored[name]
        where = f"first on task {theirs[0].group.task.id}"
        _log.warning("reward %r left %d of %d groups unscored, %s: %s: %s", name, len(theirs), len(scored), where, kind, reason)


def _check_arguments(rewards: Sequence[WeightedReward], reward_failure_limit: float) -> None:
    names = [item.name for item in rewards]
    if not names:
        raise ValueError("score needs at least one reward")
    if len(set(names)) != len(names):
        raise ValueError(f"reward names must differ; got {names}")
    if not 0 <= reward_failure_limit <= 1:
        raise ValueError(f"reward_failure_limit must be in [0, 1]; got {reward_failure_limit}")


def _scores(item: WeightedReward, group: Group) -> np.ndarray:
    """bool [G]: the rollouts of its arms."""
    return np.array([not item.arms or rollout.arm in item.arms for rollout in group.rollouts])


def _part(item: WeightedReward, group: Group) -> _Part:
    mine = np.flatnonzero(_scores(item, group))
    if len(mine) == len(group.rollouts):
        return _attempt(item, group)
    values = np.full(len(group.rollouts), np.nan, np.float32)
    tracebacks: list[str | None] = [None] * len(group.rollouts)
    given_up = None
    if len(mine):
        part = _attempt(item, replace(group, rollouts=tuple(group.rollouts[n] for n in mine)))
        values[mine], given_up = part.values, part.given_up
        for n, failure in zip(mine, part.tracebacks, strict=True):
            tracebacks[n] = failure
    return _Part(values, tuple(tracebacks), given_up)


def _attempt(item: WeightedReward, group: Group) -> _Part:
    size = len(group.rollouts)
    try:
        return _Part(_checked_values(item, group), (None,) * size)
    except Unscored as given_up:
        return _Part(np.full(size, np.nan, np.float32), (None,) * size, given_up)
    except Exception:  # a failed reward is data: the traceback is kept, and `score` stops the run when there are too many
        failure = traceback.format_exc()
    if size == 1 or not item.reward.per_completion:
        return _Part(np.full(size, np.nan, np.float32), (failure,) * size)
    singles = [_attempt(item, replace(group, rollouts=(rollout,))) for rollout in group.rollouts]
    if all(single.tracebacks == (None,) for single in singles):
        _log.warning("reward %r failed on task %s but not on its rollouts one by one:\n%s", item.name, group.task.id, failure)
    return _Part(np.concatenate([single.values for single in singles]), tuple(single.tracebacks[0] for single in singles))


def _checked_values(item: WeightedReward, group: Group) -> np.ndarray:
    values = item.reward(group)
    where, shape = f"reward {item.name!r} on task {group.task.id}", (len(group.rollouts),)
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != shape:
        came = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else f"{type(values).__name__} {values!r}"
        raise ValueError(f"{where} must return a float32 array of shape {shape}; got {came}")
    if np.isinf(values).any():
        raise ValueError(f"{where} returned an infinite value: {values.tolist()}")
    return values


def _add_up(group: Group, rewards: Sequence[WeightedReward], parts: Mapping[str, _Part]) -> ScoredGroup:
    total, applied = np.zeros(len(group.rollouts)), np.zeros(len(group.rollouts), bool)
    for item in rewards:
        part = parts[item.name]
        if item.weight == 0 or (np.isnan(part.values).all() and not any(part.tracebacks)):
            continue
        mine = _scores(item, group)
        total[mine] += item.weight * part.values[mine].astype(np.float64)
        applied |= mine
    if any(item.weight != 0 for item in rewards):
        total[~applied] = np.nan
    return ScoredGroup(
        group=group,
        rewards=total.astype(np.float32),
        parts={name: part.values for name, part in parts.items()},
        tracebacks={name: part.tracebacks for name, part in parts.items() if any(part.tracebacks)},
        unscored={name: (given_up.kind, given_up.reason) for name, part in parts.items() if (given_up := part.given_up) is not None},
    )


def _count_failed(group: Group, rewards: Sequence[WeightedReward], parts: Mapping[str, _Part]) -> int:
    weighted = [parts[item.name].tracebacks for item in rewards if item.weight != 0]
    return sum(any(tracebacks[number] for tracebacks in weighted) for number in range(len(group.rollouts)))


def _describe(scored: Sequence[ScoredGroup], rewards: Sequence[WeightedReward], failed: int, num_rollouts: int, limit: float) -> str:
    weighted = {item.name for item in rewards if item.weight != 0}
    item, name = next((item, name) for item in scored for name in item.tracebacks if name in weighted)
    number, failure = next((number, text) for number, text in enumerate(item.tracebacks[name]) if text)
    return (
        f"{failed} of the step's {num_rollouts} rollouts could not be scored, reward_failure_limit is {limit:g}. "
        f"The first: reward {name!r}, task {item.group.task.id}, rollout {number}. "
        f"Mend the reward or the task, or raise trainer.reward_failure_limit. What went wrong:\n{failure}"
    )
