"""A second opinion on every maze, from its public data alone and by other algorithms than the generator's.

Union-find for connection, dead-end filling for trees, Dijkstra over (cell, direction) for mazes with loops. Shares no code with the
generator, so that a bug there cannot hide here.
"""

import heapq
import re
from collections.abc import Mapping
from typing import Any

Cell = tuple[int, int]

DELTAS: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def check_maze(meta: Mapping[str, Any], solution: str) -> None:
    """Raise AssertionError unless the maze is sound and `solution` is a shortest legal route with the stated moves and turns.

    Sound: `rows`, `cols`, `openings`, `start`, `goal` describe a grid all of whose cells are connected. With loops, `turns` must be
    the fewest among the shortest routes.
    """
    problem = fault(meta, solution)
    if problem:
        raise AssertionError(f"{problem}; solution {solution!r}, meta {dict(meta)!r}")


def fault(meta: Mapping[str, Any], solution: str) -> str | None:
    """What is wrong, or None."""
    rows, cols = meta["rows"], meta["cols"]
    near: dict[Cell, list[Cell]] = {(row, col): [] for row in range(rows) for col in range(cols)}
    root = {cell: cell for cell in near}
    parts = len(near)
    for (r, c), (s, d) in meta["openings"]:
        a, b = (r, c), (s, d)
        if a not in near or b not in near or (s - r, d - c) not in ((0, 1), (1, 0)) or b in near[a]:
            return f"opening {a}-{b} does not join two neighbouring cells once"
        near[a].append(b)
        near[b].append(a)
        while root[a] != a:
            root[a] = a = root[root[a]]
        while root[b] != b:
            root[b] = b = root[root[b]]
        if a != b:
            root[a] = b
            parts -= 1
    if parts != 1:
        return f"the maze falls into {parts} parts"

    start, goal = (meta["start"][0], meta["start"][1]), (meta["goal"][0], meta["goal"][1])
    names = re.findall(r"<\|(\w+)\|>", solution)
    if "".join(f"<|{name}|>" for name in names) != solution:
        return "the solution is not made of action tokens"
    trail = [start]
    for name in names:
        down, right = DELTAS[name]
        cell = (trail[-1][0] + down, trail[-1][1] + right)
        if cell not in near[trail[-1]]:
            return f"the solution walks into a wall from {trail[-1]} {name}"
        trail.append(cell)
    if trail[-1] != goal:
        return f"the solution ends at {trail[-1]}"
    turns = sum(name != names[i] for i, name in enumerate(names[1:]))
    if (len(names), turns) != (meta["moves"], meta["turns"]):
        return f"the solution has {len(names)} moves and {turns} turns"

    if len(meta["openings"]) == rows * cols - 1:
        left = undead(near, start, goal)
        return None if left == set(trail) and len(left) == len(trail) else f"dead-end filling leaves {sorted(left)}"
    best = cheapest(near, start, goal)
    return None if best == (len(names), turns) else f"Dijkstra finds {best[0]} moves with {best[1]} turns"


def undead(near: Mapping[Cell, list[Cell]], start: Cell, goal: Cell) -> set[Cell]:
    """The cells left after every dead end other than start and goal is filled, again and again: in a tree, the route."""
    degree = {cell: len(others) for cell, others in near.items()}
    degree[start] += 2
    degree[goal] += 2
    ends = [cell for cell, ways in degree.items() if ways == 1]
    filled = set(ends)
    for cell in ends:
        for other in near[cell]:
            degree[other] -= 1
            if degree[other] == 1 and other not in filled:
                filled.add(other)
                ends.append(other)
    return near.keys() - filled


def cheapest(near: Mapping[Cell, list[Cell]], start: Cell, goal: Cell) -> tuple[int, int]:
    """(moves, turns) of the shortest route with the fewest turns."""
    settled: set[tuple[Cell, Cell]] = set()
    queue: list[tuple[int, int, Cell, Cell]] = [(0, 0, start, (0, 0))]
    while queue:
        moves, turns, cell, heading = heapq.heappop(queue)
        if cell == goal:
            return moves, turns
        if (cell, heading) in settled:
            continue
        settled.add((cell, heading))
        for other in near[cell]:
            towards = (other[0] - cell[0], other[1] - cell[1])
            heapq.heappush(queue, (moves + 1, turns + (heading not in ((0, 0), towards)), other, towards))
    raise AssertionError("a connected maze has a route")
