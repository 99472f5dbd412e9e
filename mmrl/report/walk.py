"""A maze completion as a walk on the maze's cells, for drawing: the very walk that the maze rewards score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.types import Task
from rewards.answer import after_think, leading_moves
from rewards.maze import Cell
from rewards.maze import walk as follow


@dataclass(frozen=True)
class Walk:
    """The legal part of a completion's moves."""

    cells: tuple[Cell, ...]
    """(row, column) of every cell from the start on, as long as each step was legal."""
    bump: str | None
    """Direction of the first illegal step, taken from `cells[-1]`; None when every step was legal."""


def is_maze(meta: Mapping[str, Any]) -> bool:
    return {"rows", "cols", "openings", "start", "goal"} <= meta.keys()


def walk(meta: Mapping[str, Any], completion: str) -> Walk:
    """Follows the action tokens that the answer (the text after the last </think>) begins with, up to the first illegal step."""
    moves = leading_moves(after_think(completion) or "")
    cells, blocked = follow(Task(id="", messages=(), media=(), solution="", meta=meta), moves)
    return Walk(tuple(cells), bump=moves[len(cells) - 1] if blocked else None)
