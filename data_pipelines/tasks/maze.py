"""Mazes with exact control of moves and turns (Ariadne, arXiv:2511.00710), endless and by key."""

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

from data_pipelines.tasks.keyed import check_weights, dealt_key
from data_pipelines.tasks.maze_check import check_maze
from data_pipelines.tasks.maze_layout import Request, draw_item, feasible, grid, most_moves, turns_of
from data_pipelines.tasks.maze_render import render
from data_pipelines.tasks.maze_words import VISIBLE, checklist, perception, text_view, with_options
from mmrl.errors import TaskError
from mmrl.seeding import digest
from mmrl.types import Media, Task, TaskKey

ARIADNE_TRAIN_WEIGHTS = (0.21, 0.18, 0.16, 0.18, 0.21)
"""Shares of 1 to 5 moves in Ariadne's training set. They add up to 0.94, so its 5,000 tasks are in fact ARIADNE_TRAIN_TASKS."""
ARIADNE_TRAIN_TASKS = 4700
"""1050 + 900 + 800 + 900 + 1050."""

LARGEST_SIDE = 20
TEXT_LEGEND = "The maze as text: + - and | are walls, gaps are open."


@dataclass(frozen=True)
class MazeTasks:
    """Endless mazes in buckets "moves=1", "moves=2", ..., each with as many tasks as one asks for.

    A task is a pure function of (version, split, seed, rows, cols, turns, loops, bucket, index), the same on every machine. Layouts are
    split between train and test by their hash. Sources whose seeds differ modulo 64 share no (layout, start, goal), whatever their other
    fields (grids of at least 16 cells). Raises TaskError for a request that no maze can meet.
    """

    split: Literal["train", "test"]
    seed: int = 0
    rows: int = 5
    """2 to 20."""
    cols: int = 5
    """2 to 20."""
    moves: str = "1-5"
    """Length of the solution: "a-b" or "n"."""
    turns: str = "0-2"
    """Changes of direction on the solution: "a-b" or "n". Each task draws one of those that its moves allow."""
    loops: float = 0.0
    """Fraction of the walls of a tree maze that are opened, in [0, 1). 0: exactly one route joins any two cells. More: the solution is
    a shortest route, and of these one with the fewest turns."""
    weights: tuple[float, ...] = ()
    """Share of each bucket in `key`; empty = equal shares. They need not sum to 1."""
    system: str = (
        "You are given a maze seen from above: a grid of cells, with walls on some of their sides. Through a side without a wall one may "
        "step into the next cell. O (green) marks the origin, T (red) marks the target. <|up|>, <|down|>, <|left|> and <|right|> "
        "move by one cell; <|up|> leads to the row above.\n"
        "First think step by step inside <think> and </think>: find O and T, look at the walls around each cell on the way, and work out "
        "the path. Then write ONLY the moves, as tokens from {<|up|>, <|down|>, <|left|>, <|right|>} with nothing between them."
    )
    """System message; empty = none."""
    question: str = "Find the shortest path from O to T."
    render: bool = True
    """False: no picture; the maze is written out in the prompt."""
    style: Literal["cells", "ariadne"] = "cells"
    """One 28-pixel block per cell, or Ariadne's 300 x 300 picture with a margin."""
    annotated: bool = field(default=False, repr=False)
    """Also put into meta what judges and perception prompts need: `visual_facts`, and `options` for each item of `checklist`. Changes
    nothing that a model sees; not in the repr, by which embedded models know what they were taught."""
    version: ClassVar[int] = 1
    media: ClassVar[str] = "picture"
    """What its tasks show."""

    def __post_init__(self) -> None:
        for name, allowed in (("split", ("train", "test")), ("style", ("cells", "ariadne"))):
            if getattr(self, name) not in allowed:
                raise TaskError(f"maze: {name}={getattr(self, name)!r}: give one of {', '.join(allowed)}")
        for name in ("rows", "cols"):
            if not 2 <= getattr(self, name) <= LARGEST_SIDE:
                raise TaskError(f"maze: {name}={getattr(self, name)}: give 2 to {LARGEST_SIDE}")
        if self.seed < 0:
            raise TaskError(f"maze: seed={self.seed}: give 0 or more")
        if not self.question.strip():
            raise TaskError("maze: question is empty")
        self._check_loops()
        check_weights("maze", self.weights, self.buckets)

    def _check_loops(self) -> None:
        """Raises also if it would open nothing, or leave one layout only, which one split alone can own."""
        walls = self._inner_walls
        if not 0 <= self.loops < 1 or (self.loops and not 1 <= self._extra < walls):
            few, many = 0.5 / walls, (walls - 0.5) / walls
            raise TaskError(
                f"maze: loops={self.loops}: this opens {self._extra} of the {walls} inner walls of a {self.rows}x{self.cols} tree maze; "
                + (f"give 0, or {few:.3f} to {many:.3f}" if walls > 1 else "give 0")
            )

    @property
    def _inner_walls(self) -> int:
        return len(grid(self.rows, self.cols).sides) - (self.rows * self.cols - 1)

    @cached_property
    def _extra(self) -> int:
        return int(self.loops * self._inner_walls + 0.5)

    @cached_property
    def _turns(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Bucket -> (moves, the wanted turns that are possible)."""
        most = self.rows * self.cols - 1
        fewest, longest = span("moves", self.moves, 1)
        low, high = span("turns", self.turns, 0)
        size = f"in a maze of {self.rows}x{self.cols} cells"
        if longest > most:
            raise TaskError(f"maze: moves={self.moves!r}: a solution {size} has 1 to {most} moves")
        possible = {}
        for moves in range(fewest, longest + 1):
            kept = tuple(
                turns for turns in range(low, min(high, moves - 1) + 1) if feasible(self.rows, self.cols, moves, turns, self._extra)
            )
            if not kept:
                least = next(turns for turns in range(moves) if moves <= most_moves(self.rows, self.cols, turns))
                raise TaskError(
                    f"maze: moves={self.moves!r}, turns={self.turns!r}: no solution of {moves} moves with {low} to {high} turns was found "
                    f"{size} with loops={self.loops}; {moves} moves take {least} to {moves - 1} turns; change one of these"
                )
            possible[f"moves={moves}"] = (moves, kept)
        return possible

    @property
    def buckets(self) -> tuple[str, ...]:
        return tuple(self._turns)

    def size(self, bucket: str) -> None:
        """None: endless."""
        self._check_bucket(bucket)

    def _check_bucket(self, bucket: str) -> None:
        if bucket not in self._turns:
            raise TaskError(f"maze: no bucket {bucket!r}; there are {', '.join(self.buckets)}")

    def key(self, index: int) -> TaskKey:
        """Deal a global index (0, 1, ...) to a bucket, so that each block of tasks holds the `weights` by largest remainder.

        The block is the shortest one that the weights, as written in decimals, divide without remainder: for Ariadne's weights 94 tasks,
        so 4,700 tasks hold 1050, 900, 800, 900 and 1050. Past 10,000 it is 1,000 tasks instead. The order inside a block is random.
        """
        return dealt_key("maze", self.buckets, self.weights, self.split, self.seed, index)

    def task(self, key: TaskKey) -> Task:
        """The task of a key, checked by a second solver (AssertionError if the two disagree)."""
        self._check_bucket(key.bucket)
        if key.index < 0:
            raise ValueError(f"index must be >= 0; got {key.index}")
        moves, possible = self._turns[key.bucket]
        low, high = span("turns", self.turns, 0)
        number = digest("maze", self.version, self.split, self.seed, self.rows, self.cols, low, high, float(self.loops), moves, key.index)
        turns = possible[(number >> 96) * len(possible) >> 32]
        item = draw_item(Request(self.rows, self.cols, self.split, self.seed, moves, turns, self._extra), number.to_bytes(16, "little"))
        if item is None:
            raise TaskError(
                f"maze: no {self.split} maze of {self.rows}x{self.cols} cells with moves={moves}, turns={turns}, loops={self.loops} "
                f"was found for seed={self.seed}, index {key.index}; widen turns, lower moves or loops, or enlarge rows and cols"
            )
        meta, solution = described(self.rows, self.cols, item.openings, item.route)
        check_maze(meta, solution)
        if self.annotated:
            meta["checklist"] = with_options(meta["checklist"], self.rows, self.cols)
            meta["visual_facts"] = [meta["perception"][name] for name in VISIBLE]
        where = f"{self.rows}x{self.cols}/turns={low}-{high}/loops={float(self.loops)}/{self._view}"
        return Task(
            id=f"maze-v{self.version}/{self.split}/{self.seed}/{where}/{key.bucket}/{key.index}",
            messages=self._messages(meta),
            media=(Media(render(meta, self.style)[None]),) if self.render else (),
            solution=solution,
            meta=meta,
        )

    @cached_property
    def _view(self) -> str:
        """How the maze is shown: style, and a short hash of words other than the default ones."""
        view = self.style if self.render else "text"
        if (self.system, self.question) == (MazeTasks.system, MazeTasks.question):
            return view
        return f"{view}-{digest(self.system, self.question) % 16**6:06x}"

    def _messages(self, meta: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        if self.render:
            content = [{"type": "image"}, {"type": "text", "text": self.question}]
        else:
            content = [{"type": "text", "text": f"{self.question}\n{TEXT_LEGEND}\n{text_view(meta)}"}]
        user = {"role": "user", "content": content}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


@lru_cache(maxsize=256)
def span(name: str, text: str, least: int) -> tuple[int, int]:
    """ "2-5" -> (2, 5); "3" -> (3, 3)."""
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text, re.ASCII)
    if not found:
        raise TaskError(f'maze: {name}={text!r}: give a number or a range, such as "3" or "1-5"')
    low, high = int(found[1]), int(found[2] or found[1])
    if not least <= low <= high:
        raise TaskError(f"maze: {name}={text!r}: give a range from {least} up, the smaller number first")
    return low, high


def described(rows: int, cols: int, openings: int, route: list[int]) -> tuple[dict[str, Any], str]:
    """A task's meta and solution from the generator's integers."""
    pairs, exits = [], {route[0]: set(), route[-1]: set()}
    for cell in range(rows * cols):
        for below in (0, 1):
            if openings >> (2 * cell + below) & 1:
                other = cell + cols if below else cell + 1
                pairs.append([list(divmod(cell, cols)), list(divmod(other, cols))])
                for end, side in ((cell, "down" if below else "right"), (other, "up" if below else "left")):
                    if end in exits:
                        exits[end].add(side)
    names = {-cols: "up", cols: "down", -1: "left", 1: "right"}
    moves = tuple(names[route[i + 1] - route[i]] for i in range(len(route) - 1))
    start, goal = divmod(route[0], cols), divmod(route[-1], cols)
    from_start, from_goal = (tuple(side for side in ("up", "down", "left", "right") if side in exits[end]) for end in (route[0], route[-1]))
    open_sides = (from_start, from_goal)
    meta = {
        "rows": rows,
        "cols": cols,
        "openings": pairs,
        "start": list(start),
        "goal": list(goal),
        "moves": len(moves),
        "turns": turns_of(route),
        "perception": perception((rows, cols), start, goal, moves, open_sides),
        "checklist": checklist(start, goal, open_sides),
    }
    return meta, "".join(f"<|{move}|>" for move in moves)
