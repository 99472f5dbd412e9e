"""Rewards for mazes: prefix credit as in Ariadne, and a walker. They read `task.solution` and `task.meta` only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, ClassVar

import numpy as np

from mmrl.types import Group, Task
from rewards.answer import after_think, leading_moves, parse_moves

Cell = tuple[int, int]
"""(row, column), from the top left."""

_STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def count_turns(moves: Sequence[str]) -> int:
    """How often the direction changes along the moves."""
    return sum(before != after for before, after in pairwise(moves))


@dataclass(frozen=True)
class MazePrefix:
    """Ariadne's r_acc (arXiv:2511.00710; the released plugin.py). Range [0, 2·L·(turns + 1)], or [0, 1] with `normalise`.

    With L moves in the solution, the right answer earns L · 2 · (turns + 1). Any other earns k · (turns of the first k + 1),
    k = how many leading moves agree with the solution: half of the full sum at most, moves after the goal included.
    The answer is the text after the thought. Later wrong moves cost nothing, and with loops another shortest route counts
    as wrong: that is the paper's rule, `MazeWalker` has neither property.
    """

    normalise: bool = False
    """Divide by the right answer's value, so that long and winding mazes do not outweigh the others."""
    strict: bool = False
    """Compare strings, as the released code does: white space between the tokens loses the factor 2. False compares the moves."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        solution = parse_moves(task.solution)
        if solution is None:
            raise ValueError(f"task {task.id}: solution must be action tokens like <|up|><|left|>; got {task.solution!r}")
        full = len(solution) * 2 * (count_turns(solution) + 1)
        answer = after_think(text)
        if answer is None:
            return 0.0
        if answer == task.solution if self.strict else parse_moves(answer) == solution:
            earned = full
        else:
            agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(leading_moves(answer), solution, strict=False)))
            earned = agreed * (count_turns(solution[:agreed]) + 1)
        return earned / full if self.normalise else float(earned)


@dataclass(frozen=True)
class MazeWalker:
    """1 when the moves, walked through the maze, end on the goal and every step is legal, else 0. Range {0, 1}.

    Any legal route counts, so it is right for mazes with loops. The answer is the text after the thought and must be action
    tokens and white space only.
    """

    shortest_only: bool = False
    """Count only routes of `meta["moves"]` steps, the length of the shortest."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        answer = after_think(text)
        moves = parse_moves(answer) if answer is not None else None
        if moves is None or not reaches_goal(task, moves):
            return 0.0
        if not self.shortest_only:
            return 1.0
        shortest = _meta(task, "moves")
        if len(moves) < shortest:
            raise ValueError(f"task {task.id}: meta['moves'] is {shortest}, but {len(moves)} legal moves reach the goal: the task is wrong")
        return float(len(moves) == shortest)


@dataclass(frozen=True)
class MazeReaches:
    """1 when the walk comes by the goal, whether it stops there or not, and meets no wall before, else 0. Range {0, 1}.

    Beside `maze_walker` it tells finding the way from stopping in time: give it weight 0 and watch both.
    """

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        cells, _ = walk(task, leading_moves(after_think(text) or ""))
        return float(_cell(_meta(task, "goal")) in cells)


def success(task: Task, text: str) -> bool:
    """Whether the completion's text solves the maze by any legal route: what evaluation and curriculum count."""
    return MazeWalker().value(task, text) == 1.0


def reaches_goal(task: Task, moves: Iterable[str]) -> bool:
    """Whether the moves lead from start to goal without meeting a wall. Being on the goal before the end is not enough."""
    cells, blocked = walk(task, moves)
    return not blocked and cells[-1] == _cell(_meta(task, "goal"))


def walk(task: Task, moves: Iterable[str]) -> tuple[list[Cell], bool]:
    """The cells visited, the start first, and whether a wall stopped the walk (the moves after it are not walked)."""
    pairs = [(_cell(a), _cell(b)) for a, b in _meta(task, "openings")]
    passages = {*pairs, *((b, a) for a, b in pairs)}
    cells = [_cell(_meta(task, "start"))]
    for move in moves:
        row, column = cells[-1]
        down, right = _STEPS[move]
        step = (row + down, column + right)
        if (cells[-1], step) not in passages:
            return cells, True
        cells.append(step)
    return cells, False


def best_constant(tasks: Sequence[Task], value: Callable[[Task, str], float]) -> tuple[str, float]:
    """The fixed answer that earns most on average, and that average: the floor a policy that sees nothing can reach.

    `value` is e.g. `MazePrefix().value` or `success`. Tried are the tasks' own solutions: in the prefix reward no other string can
    be better, because moves that leave every solution earn nothing and a beginning of a solution may be completed at no cost.
    """
    if not tasks:
        raise ValueError("best_constant needs at least one task")
    means = {answer: sum(float(value(task, answer)) for task in tasks) / len(tasks) for answer in sorted({task.solution for task in tasks})}
    return max(means.items(), key=lambda item: item[1])


def _cell(pair: Sequence[int]) -> Cell:
    row, column = pair
    return row, column


def _meta(task: Task, key: str) -> Any:
    meta: Mapping[str, Any] = task.meta
    if key not in meta:
        raise ValueError(
            f"task {task.id}: meta has no {key!r} (it has {sorted(meta)}); the maze walker reads openings, start, goal and moves"
        )
    return meta[key]
