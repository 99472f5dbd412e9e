"""What can be said about a maze: facts to perceive, questions with short answers, and the maze as text."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

VERTICAL = ("in the same row", "below", "above")
HORIZONTAL = ("in the same column", "to the right", "to the left")
SIDES = {"up": "above", "down": "below", "left": "to the left", "right": "to the right"}


def sign(x: int) -> int:
    return (x > 0) - (x < 0)


def listing(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def walls_sentence(letter: str, open_sides: tuple[str, ...]) -> str:
    closed = [SIDES[side] for side in SIDES if side not in open_sides]
    return f"{letter} has walls {listing(closed)}." if closed else f"{letter} has no walls around it."


def perception(
    size: tuple[int, int],
    start: tuple[int, int],
    goal: tuple[int, int],
    moves: tuple[str, ...],
    exits: tuple[tuple[str, ...], tuple[str, ...]],
) -> dict[str, str]:
    """Facts that are true of the picture, one sentence each. Rows and columns count from 1 at the top left.

    `moves` is the solution; `exits` are the open sides of start and goal, each in the order up, down, left, right.
    """
    down, right = sign(goal[0] - start[0]), sign(goal[1] - start[1])
    places = [place for place in (VERTICAL[down] if down else "", HORIZONTAL[right] if right else "") if place]
    same = "" if down and right else f", {HORIZONTAL[0] if down else VERTICAL[0]}"
    return {
        "size": f"The maze has {size[0]} rows and {size[1]} columns.",
        "start": f"O is in row {start[0] + 1}, column {start[1] + 1}.",
        "goal": f"T is in row {goal[0] + 1}, column {goal[1] + 1}.",
        "goal_direction": f"T is {listing(places)} of O{same}.".replace("below of", "below").replace("above of", "above"),
        "start_walls": walls_sentence("O", exits[0]),
        "goal_walls": walls_sentence("T", exits[1]),
        "start_exits": f"From O one can go {listing(list(exits[0]))}.",
        "first_move": f"The way from O to T starts {moves[0]}.",
        "distance": f"T is {len(moves)} {'move' if len(moves) == 1 else 'moves'} away from O.",
    }


def checklist(start: tuple[int, int], goal: tuple[int, int], exits: tuple[tuple[str, ...], tuple[str, ...]]) -> list[dict[str, str]]:
    """Questions that the picture answers, none of them by its size alone; each answer is a number or a fixed label."""
    return [
        {"question": "In which row is O, counted from 1 at the top?", "answer": str(start[0] + 1)},
        {"question": "In which column is O, counted from 1 at the left?", "answer": str(start[1] + 1)},
        {"question": "In which row is T, counted from 1 at the top?", "answer": str(goal[0] + 1)},
        {"question": "In which column is T, counted from 1 at the left?", "answer": str(goal[1] + 1)},
        {
            "question": "Is T above O, below O, or in the same row? Answer above, below or same.",
            "answer": ("same", "below", "above")[sign(goal[0] - start[0])],
        },
        {
            "question": "Is T left of O, right of O, or in the same column? Answer left, right or same.",
            "answer": ("same", "right", "left")[sign(goal[1] - start[1])],
        },
        {"question": "How many of the four sides of O are walls?", "answer": str(4 - len(exits[0]))},
        {"question": "Which sides of O are open? List them in the order up, down, left, right.", "answer": ", ".join(exits[0])},
    ]


VISIBLE = ("start", "goal", "goal_direction", "start_walls", "goal_walls")
"""Names of `perception` that one look at the picture gives, no two saying the same: nothing that has to be worked out, such as the way."""


def with_options(items: list[dict[str, str]], rows: int, cols: int) -> list[dict[str, Any]]:
    """The items of `checklist`, each with all answers that its question allows, in an order that says nothing of the right one."""
    down, across = ([str(number + 1) for number in range(size)] for size in (rows, cols))
    sides = [", ".join(some) for number in range(1, 5) for some in combinations(SIDES, number)]
    allowed = (down, across, down, across, ["above", "below", "same"], ["left", "right", "same"], [*"0123"], sides)
    return [{**item, "options": options} for item, options in zip(items, allowed, strict=True)]


def text_view(meta: Mapping[str, Any]) -> str:
    """The maze in characters: `+` posts, `---` and `|` walls, O the start, T the goal."""
    rows, cols = meta["rows"], meta["cols"]
    opened = {(r, c, s, d) for (r, c), (s, d) in meta["openings"]}
    marks = {tuple(meta["start"]): "O", tuple(meta["goal"]): "T"}
    lines = ["+" + "---+" * cols]
    for r in range(rows):
        cells = (f" {marks.get((r, c), ' ')} {' ' if (r, c, r, c + 1) in opened else '|'}" for c in range(cols))
        floors = ("   +" if (r, c, r + 1, c) in opened else "---+" for c in range(cols))
        lines += ["|" + "".join(cells), "+" + "".join(floors)]
    return "\n".join(lines)
