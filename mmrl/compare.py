"""Two evaluations of the same tasks, side by side and tested: did the change from one checkpoint to another do anything?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.component import suggest
from mmrl.errors import RecipeError


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of paired yes/no outcomes: under the null hypothesis a pair that changed is as likely to have changed either way."""

    lost: int
    """b: pairs that were yes and are no."""
    gained: int
    """c: pairs that were no and are yes."""
    exact_p: float
    """Two-sided binomial: min(1, 2 * P(X <= min(b, c))), X ~ Binomial(b + c, 1/2). 1 where nothing changed."""
    chi2: float
    """max(0, |b - c| - 1)^2 / (b + c), with Edwards' correction; 0 where nothing changed."""
    chi2_p: float
    """Its upper tail with one degree of freedom; not to be trusted below some 25 changed pairs: take exact_p."""


def mcnemar(lost: int, gained: int) -> McNemar:
    """The test from the two counts of changed pairs, each 0 or more."""
    if lost < 0 or gained < 0:
        raise ValueError(f"counts of pairs cannot be negative; got {lost} and {gained}")
    changed = lost + gained
    tail = sum(math.comb(changed, number) for number in range(min(lost, gained) + 1))
    exact = min(1.0, 2 * tail / 2**changed) if changed else 1.0
    chi2 = max(0, abs(lost - gained) - 1) ** 2 / changed if changed else 0.0
    return McNemar(lost, gained, exact, chi2, math.erfc(math.sqrt(chi2 / 2)))


def compare(before: Mapping[str, Any], after: Mapping[str, Any], outcome: str = "success", at_least: float = 1.0) -> dict[str, Any]:
    """Two results of `mmrl.evaluate.evaluate`, task by task, as plain JSON.

    `outcome`: "success", or the name of a reward; a task is a yes where it is `at_least` that. A task that either of them did not score is
    left out and counted. Raises RecipeError for evaluations that cannot be paired: of other tasks, with several completions a task, without
    that outcome, or made before outcomes were kept.
    """
    one, other = (_outcomes(result, outcome, which) for result, which in ((before, "first"), (after, "second")))
    if one.keys() != other.keys():
        shared = len(one.keys() & other.keys())
        raise RecipeError(
            f"the evaluations are of different tasks: {len(one)} and {len(other)}, {shared} of them shared; "
            "evaluate both on the same tasks.eval"
        )
    pairs = [(x >= at_least, y >= at_least) for x, y in ((one[task], other[task]) for task in one) if x is not None and y is not None]
    if not pairs:
        raise RecipeError(f"outcome {outcome!r}: no task was scored in both evaluations")
    test = mcnemar(sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))
    return {
        "outcome": outcome,
        "at_least": at_least,
        "tasks": len(pairs),
        "unscored": len(one) - len(pairs),
        "before": sum(x for x, _ in pairs) / len(pairs),
        "after": sum(y for _, y in pairs) / len(pairs),
        **vars(test),
    }


def _outcomes(result: Mapping[str, Any], outcome: str, which: str) -> dict[str, float | None]:
    """Task id -> value."""
    kept = result.get("outcomes")
    if kept is None:
        raise RecipeError(f"the {which} evaluation holds no outcomes by task; make it again with `mmrl eval`")
    if outcome not in kept["values"]:
        raise RecipeError(f"the {which} evaluation has no outcome {outcome!r}{suggest(outcome, kept['values'])}")
    rows = kept["values"][outcome]
    if any(len(row) != 1 for row in rows):
        raise RecipeError(
            f"the {which} evaluation has {len(rows[0])} completions a task; McNemar's test pairs one outcome a task: evaluate with "
            "eval.num_generations: 1"
        )
    return {task: row[0] for task, row in zip(kept["tasks"], rows, strict=True)}


def compare_command(before: Path, after: Path | None, outcome: str, at_least: float) -> dict[str, Any]:
    """`mmrl compare`: each is a file of an evaluation or a run's folder, which stands for its last evaluation; one run alone is compared
    with its own first evaluation."""
    if after is None:
        every = _evaluations(before)
        if len(every) < 2:
            raise RecipeError(f"{before}: has {len(every)} evaluation; give two runs or two files of evaluations")
        files = (every[0], every[-1])
    else:
        files = (_evaluations(before)[-1], _evaluations(after)[-1])
    one, other = (_read(path) for path in files)
    return {"files": [str(path) for path in files], **compare(one, other, outcome, at_least)}


def _evaluations(path: Path) -> list[Path]:
    """The evaluation itself, or those of a run, its own by step; where training made none, those of `mmrl eval`."""
    if path.is_file():
        return [path]
    found = sorted(path.glob("eval/step-*.json")) or sorted(path.glob("eval/*.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise RecipeError(f"{path}: no such file, and no run with evaluations in eval/")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: not an evaluation; give a file of a run's eval/ folder")
    return content
