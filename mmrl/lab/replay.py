"""`mmrl reward replay`: what other rewards would have paid for the very rollouts of a run, and what that would have taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmrl.check import Checker
from mmrl.errors import RecipeError, RewardError
from mmrl.lab.logged import LoggedGroup, LoggedStep, advantages_of, read_logged_run
from mmrl.lab.probes import Probes, Tally
from mmrl.lab.spec import SAME, Rewarding, checked, read_advantage, read_rewards
from mmrl.lab.statistics import best, is_dead, kendall, spearman
from mmrl.lab.tables import markdown, number, share
from mmrl.lab.trl_log import REMEDY, is_trl_log, read_trl_log
from mmrl.loop.score import WeightedReward, score
from mmrl.metrics import provenance, write_json, write_whole
from mmrl.protocols import AdvantageEstimator

EXAMPLES = 5
"""Groups in the JSON whose advantages change most."""
WITHOUT_LENGTHS = ("grpo", "rloo")
"""Advantages that do not look at the lengths of completions, which TRL does not log."""


@dataclass(frozen=True)
class Log:
    """Logged rollouts, and how the run that logged them made advantages."""

    path: Path
    steps: tuple[LoggedStep, ...]
    own: Rewarding | None
    """None where the log does not say (TRL's)."""
    reward_failure_limit: float = 0.0


@dataclass
class Scored:
    """A log under one set of rewards: a list item per group, and what the probes earned."""

    rewards: list[np.ndarray] = field(default_factory=list)
    """float32 [G] each; NaN = not scored."""
    parts: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    advantages: list[np.ndarray] = field(default_factory=list)
    """float32 [G] each, mean over tokens."""
    probes: Tally = field(default_factory=Tally)


def open_log(
    path: Path, *, num_generations: int | None = None, weights: Mapping[str, float] | None = None, steps: range | None = None
) -> Log:
    """A run folder of mmrl, or TRL's completions (`read_trl_log` says what the options are). RecipeError if it is neither."""
    if not path.exists():
        raise RecipeError(f"{path}: no such file or folder; give a run folder, or TRL's completions folder or one of its files")
    if is_trl_log(path):
        if num_generations is None:
            raise RecipeError(
                f"{path}: TRL's log does not say where a group ends; give --num-generations, as in the GRPOConfig of that run"
            )
        return Log(path, tuple(read_trl_log(path, num_generations, weights, steps)), None)
    if num_generations is not None or weights is not None:
        raise RecipeError(f"{path}: --num-generations and --logged are for TRL's completions; this is no folder with completions_*.parquet")
    file = path / "recipe.yaml"
    if not file.is_file():
        raise RecipeError(f"{path}: neither a run folder (no recipe.yaml) nor TRL's completions (no completions_*.parquet)")
    tree = yaml.safe_load(file.read_text())
    own = checked({key: tree[key] for key in ("rewards", "advantage") if key in tree}, Checker(lambda dotted: f"{file}: {dotted}"))
    return Log(path, tuple(read_logged_run(path, steps)), own, float(tree["trainer"]["reward_failure_limit"]))


def replay(
    log: Log, candidates: Mapping[str, Sequence[WeightedReward]], estimator: AdvantageEstimator, probes: Probes | None
) -> dict[str, Any]:
    """Scores every logged group with each of the candidates, and compares with what was logged; plain JSON.

    Advantages on both sides are the `estimator`'s, of a step's groups together, so that only the rewards differ. `reproduced`: the largest
    difference between the advantages that were logged and those that the estimator makes of the logged rewards.
    """
    before = Scored()
    after = {name: Scored() for name in candidates}
    reproduced = 0.0
    for step in log.steps:
        rewards, parts = [group.rewards for group in step.groups], [group.parts for group in step.groups]
        _note(before, step, rewards, parts, estimator)
        logged = np.concatenate([group.advantages for group in step.groups])
        again = np.concatenate(before.advantages[-len(step.groups) :])
        reproduced = max(reproduced, float(np.abs(logged - again).max()))
        for name, items in candidates.items():
            scored = _score(log, step, items)
            _note(after[name], step, [item.rewards for item in scored], [item.parts for item in scored], estimator)
            if probes is not None:
                after[name].probes.add(probes, [group.group for group in step.groups], items)
    groups = [(step.step, group) for step in log.steps for group in step.groups]
    return {
        "steps": [step.step for step in log.steps],
        "groups": len(groups),
        "rollouts": sum(map(len, before.rewards)),
        "advantage": repr(estimator),
        "reproduced": reproduced,
        "logged": _described(before, before) | {"parts": _means(before.parts)},
        "candidates": {
            name: {"rewards": [f"{item.weight:g} * {item.reward!r}" for item in candidates[name]], "parts": _means(scored.parts)}
            | _described(before, scored)
            | {"examples": _examples(groups, before, scored)}
            | ({"probes": scored.probes.table(scored.rewards)} if probes is not None else {})
            for name, scored in after.items()
        },
    }


def compare(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], old_advantages: Sequence[np.ndarray], advantages: Sequence[np.ndarray]
) -> dict[str, Any]:
    """How rewards of the same groups differ; all sequences hold an array [G] per group, NaN = not scored.

    - `same`: share of rollouts with the very same reward, bit for bit (both not scored counts).
    - `sign_flips`: share of rollouts whose advantage changes sign, + to - or back; to or from 0 is no flip.
    - `mean_abs_change`: mean of |new - old advantage| over rollouts; `mean_abs` is the mean size of the new ones.
    - `spearman`, `kendall`: mean over the groups that are alive on both sides (`alive_in_both` of them) of the rank correlation of their
      rewards; None where there is no such group.
    - `dead`: share of groups without signal after; `revived`, `died`: shares of all groups that changed sides.
    - `winner_changes`: share of the groups alive in both of which no rollout that was (among) the best still is.
    """
    old, new = np.concatenate(before), np.concatenate(after)
    a, b = (np.concatenate(side).astype(np.float64) for side in (old_advantages, advantages))
    was_dead, now_dead = (np.array([is_dead(group) for group in side]) for side in (before, after))
    both = [_scored_in_both(x, y) for x, y, s, t in zip(before, after, was_dead, now_dead, strict=True) if not (s or t)]
    changes = [best(x).isdisjoint(best(y)) for x, y, s, t in zip(before, after, was_dead, now_dead, strict=True) if not (s or t)]
    return {
        "mean": _mean(new),
        "not_scored": int(np.isnan(new).sum()),
        "same": float(np.mean((old == new) | (np.isnan(old) & np.isnan(new)))),
        "sign_flips": float(np.mean(np.sign(a) * np.sign(b) < 0)),
        "mean_abs_change": float(np.abs(b - a).mean()),
        "mean_abs": float(np.abs(b).mean()),
        "alive_in_both": len(both),
        "spearman": _mean([spearman(x, y) for x, y in both]),
        "kendall": _mean([kendall(x, y) for x, y in both]),
        "dead": float(now_dead.mean()),
        "revived": float((was_dead & ~now_dead).mean()),
        "died": float((~was_dead & now_dead).mean()),
        "winner_changes": _mean(changes),
    }


def replay_command(
    path: Path,
    rewards: Sequence[str],
    *,
    advantage: str | None,
    steps: str | None,
    with_probes: bool,
    out: Path | None,
    num_generations: int | None,
    logged: Sequence[str],
) -> str:
    """`mmrl reward replay`: the tables as text; with `out` also in the folder, as table.md and table.json."""
    log = open_log(path, num_generations=num_generations, weights=_weights(logged), steps=_range(steps))
    estimator = _estimator(log, advantage)
    conversational = log.own is not None or not isinstance(log.steps[0].groups[0].group.rollouts[0].prompt.text, str)
    chosen = list(dict.fromkeys(rewards)) or [SAME]
    candidates = {name: _rewarding(log, name, conversational).weighted() for name in chosen}
    probes = Probes.of(group for step in log.steps for group in step.groups) if with_probes else None
    result = replay(log, candidates, estimator, probes)
    text = _tables(log, result)
    if out is not None:
        write_json(out / "table.json", provenance() | {"run": path.name, **result})
        write_whole(out / "table.md", f"{text}\n".encode())
    return text


def _rewarding(log: Log, name: str, conversational: bool) -> Rewarding:
    if name != SAME:
        return read_rewards(name, conversational=conversational)
    if log.own is None:
        raise RecipeError(f"{log.path}: TRL's log does not name its reward functions; give --rewards module:function, or a reward of mmrl")
    return log.own


def _estimator(log: Log, advantage: str | None) -> AdvantageEstimator:
    own = log.own.advantage if log.own is not None else read_advantage("use=grpo")
    spec = own if advantage is None else read_advantage(advantage)
    if log.own is None and spec.use not in WITHOUT_LENGTHS:
        raise RecipeError(
            f"--advantage {advantage}: needs the lengths of completions, which TRL does not log; {' and '.join(WITHOUT_LENGTHS)} do without"
        )
    return spec.build()


def _score(log: Log, step: LoggedStep, rewards: Sequence[WeightedReward]) -> list[Any]:
    try:
        return score([group.group for group in step.groups], rewards, reward_failure_limit=log.reward_failure_limit)
    except RewardError as error:
        remedy = f"\n{REMEDY}" if log.own is None else ""
        raise RewardError(f"{step.file}: {error}{remedy}") from error


def _note(
    into: Scored, step: LoggedStep, rewards: list[np.ndarray], parts: list[Mapping[str, np.ndarray]], estimator: AdvantageEstimator
) -> None:
    into.rewards += rewards
    into.parts += parts
    into.advantages += advantages_of(step.groups, rewards, parts, estimator)


def _described(before: Scored, after: Scored) -> dict[str, Any]:
    return compare(before.rewards, after.rewards, before.advantages, after.advantages)


def _scored_in_both(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = ~np.isnan(one) & ~np.isnan(other)
    return one[both], other[both]


def _means(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _mean(np.concatenate([part[name] for part in parts if name in part])) for name in names}


def _mean(values: Sequence[float | None] | np.ndarray) -> float | None:
    """Over those that are there; None where none is."""
    known = np.array([value for value in values if value is not None], np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


def _examples(groups: Sequence[tuple[int, LoggedGroup]], before: Scored, after: Scored) -> list[dict[str, Any]]:
    """The groups whose advantages change most."""
    change = np.array([np.abs(b - a).mean() for a, b in zip(before.advantages, after.advantages, strict=True)])
    out = []
    for n in np.argsort(-change, kind="stable")[:EXAMPLES]:
        if change[n] == 0:
            break
        step, group = groups[n][0], groups[n][1].group
        texts = [rollout.completion.text for rollout in group.rollouts]
        rollouts = [
            {"completion": text, "reward": [_plain(old), _plain(new)], "advantage": [float(was), float(now)]}
            for text, old, new, was, now in zip(
                texts, before.rewards[n], after.rewards[n], before.advantages[n], after.advantages[n], strict=True
            )
        ]
        out.append({"step": step, "task": group.task.id, "mean_abs_change": float(change[n]), "rollouts": rollouts})
    return out


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _tables(log: Log, result: Mapping[str, Any]) -> str:
    steps = result["steps"]
    lines = [
        f"{log.path.name}: {result['rollouts']} rollouts in {result['groups']} groups of "
        f"{f'steps {steps[0]} to {steps[-1]}' if len(steps) > 1 else f'step {steps[0]}'}; advantage {result['advantage']}",
        f"Advantages of the log, made again from its rewards: largest difference {result['reproduced']:.2g}",
    ]
    headings = (
        "rewards", "mean reward", "same", "sign flips", "A changes by", "size of A", "Spearman", "Kendall", "dead groups", "best changes",
        "not scored",
    )  # fmt: skip
    rows = [
        [
            name, number(row["mean"]), share(row["same"]), share(row["sign_flips"]), number(row["mean_abs_change"]),
            number(row["mean_abs"]), number(row["spearman"]), number(row["kendall"]), share(row["dead"]), share(row["winner_changes"]),
            str(row["not_scored"]),
        ]
        for name, row in (("as logged", result["logged"]), *result["candidates"].items())
    ]  # fmt: skip
    lines += ["", markdown(headings, rows)]
    if any("probes" in row for row in result["candidates"].values()):
        lines += ["", *_probe_table(result["candidates"])]
    return "\n".join(lines)


def _probe_table(candidates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    headings = ("rewards", "probe", "earns", "policy's mean", "its median", "percentile", "beats the mean", "tasks", "flag")
    rows = [
        [
            name, probe["name"], number(probe["mean"]), number(probe["policy_mean"]), number(probe["policy_median"]),
            share(probe["percentile"]), share(probe["beats_mean"]), str(probe["tasks"]), "ABOVE THE MEDIAN" if probe["flagged"] else "",
        ]
        for name, row in candidates.items()
        for probe in row["probes"]
    ]  # fmt: skip
    return [markdown(headings, rows)]


def _range(text: str | None) -> range | None:
    """ "100-200" or "100" -> a range that holds both ends."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise RecipeError(f"--steps {text}: give one step, or first-last, such as 100-200")
    return range(int(first), int(last or first) + 1)


def _weights(logged: Sequence[str]) -> dict[str, float] | None:
    """["accuracy", "format=0.5"] -> {"accuracy": 1.0, "format": 0.5}; None for nothing."""
    out = {}
    for item in logged:
        name, _, weight = item.rpartition("=") if "=" in item else (item, "", "1")
        try:
            out[name] = float(weight)
        except ValueError as error:
            raise RecipeError(f"--logged {item}: give the name of a reward's column, or name=weight") from error
    return out or None
