"""Mazes as pictures.

The `cells` style draws one cell as one block of 28 x 28 pixels with nothing around the grid: the patch that Qwen2.5-VL turns into one
visual token (14-pixel patches, merged 2 x 2). Each block holds its own half of each of its walls, so a block alone shows all four of
its sides. The `ariadne` style is the layout of arXiv:2511.00710: a margin of about one cell, 300 x 300 pixels for 5 x 5 cells.
All pixels come from integer arithmetic, so they are the same everywhere.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

CELL = 28
"""Pixels of a cell's side in the `cells` style."""

Style = Literal["cells", "ariadne"]
Colour = tuple[int, int, int]

FLOOR: Colour = (255, 255, 255)
LINE: Colour = (220, 225, 232)
START: Colour = (144, 238, 144)
GOAL: Colour = (240, 128, 128)
LETTER: Colour = (23, 30, 42)
ROUTE: Colour = (37, 99, 235)
OPAQUE = 225
"""How much of a drawn path covers what is below, of 255."""
FINE = 8
"""Sub-pixels per pixel and axis of the letters' edges."""
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
"""Open sides of a cell."""


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a picture lie, in pixels."""

    width: int
    height: int
    left: int
    top: int
    cell: int
    wall: int
    """Half the thickness of a wall."""
    ink: Colour


def geometry(style: Style, rows: int, cols: int) -> Geometry:
    if style == "cells":
        return Geometry(CELL * cols, CELL * rows, 0, 0, CELL, 3, (31, 41, 55))
    width, height = 60 * cols, 60 * rows
    cell = min(width // (cols + 2), height // (rows + 2))
    return Geometry(width, height, (width - cell * cols) // 2, (height - cell * rows) // 2, cell, 2, (0, 0, 0))


def fine_grid(cell: int) -> tuple[np.ndarray, np.ndarray, int]:
    """y, x of the sub-pixels' centres, int64 [cell * FINE, cell * FINE] from the middle of the cell, and 1/28 of a cell in that unit."""
    unit = 2 * cell * FINE
    centres = (2 * np.arange(cell * FINE) + 1) * 28 - 14 * unit
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return y, x, unit


def covered(shape: np.ndarray, cell: int) -> np.ndarray:
    """Sub-pixels -> int64 [cell, cell]: how many of each pixel's FINE**2 are covered."""
    return shape.reshape(cell, FINE, cell, FINE).sum(axis=(1, 3))


def letter_o(cell: int) -> np.ndarray:
    """A ring, 4 to 7 of 28 parts of a cell from its middle."""
    y, x, unit = fine_grid(cell)
    return covered((x**2 + y**2 <= (7 * unit) ** 2) & (x**2 + y**2 >= (4 * unit) ** 2), cell)


def letter_t(cell: int) -> np.ndarray:
    """A bar 14 wide and 3 high on a stem 4 wide, 14 high in all, in 1/28 of a cell."""
    y, x, unit = fine_grid(cell)
    bar = (abs(x) <= 7 * unit) & (y >= -7 * unit) & (y <= -4 * unit)
    stem = (abs(x) <= 2 * unit) & (y >= -7 * unit) & (y <= 7 * unit)
    return covered(bar | stem, cell)


@lru_cache(maxsize=32)
def tiles(cell: int, wall: int, ink: Colour) -> np.ndarray:
    """uint8 [3, 16, 16, cell, cell, 3]: plain, start and goal cells, with every set of open sides and every set of posts."""
    first, last, before, after = np.s_[:1], np.s_[-1:], np.s_[:wall], np.s_[-wall:]
    drawn = np.empty((3, 16, 16, cell, cell, 3), np.uint8)
    for content, floor in enumerate((FLOOR, START, GOAL)):
        drawn[content] = floor
        for sides in range(16):
            some = drawn[content, sides]
            for up_down, thin in ((UP, first), (DOWN, last)):
                if sides & up_down:
                    some[:, thin] = LINE
            for left_right, thin in ((LEFT, first), (RIGHT, last)):
                if sides & left_right:
                    some[:, :, thin] = LINE
            for up_down, thick in ((UP, before), (DOWN, after)):
                if not sides & up_down:
                    some[:, thick] = ink
            for left_right, thick in ((LEFT, before), (RIGHT, after)):
                if not sides & left_right:
                    some[:, :, thick] = ink
        for posts in range(16):
            corners = ((before, before), (before, after), (after, before), (after, after))
            for rows, cols in (corner for i, corner in enumerate(corners) if posts >> i & 1):
                drawn[content, :, posts, rows, cols] = ink
    for content, cover in ((1, letter_o(cell)), (2, letter_t(cell))):
        part = cover[..., None]
        drawn[content] = (drawn[content] * (FINE**2 - part) + np.array(LETTER) * part + FINE**2 // 2) // FINE**2
    drawn.setflags(write=False)
    return drawn


def posts_of(sides: np.ndarray) -> np.ndarray:
    """int64 [rows, cols] of open sides -> the corners of each cell where a wall ends or passes, as bits 1, 2, 4, 8 in reading order.

    A corner may be filled by walls that belong to the other three cells there; without it their join would lack a quarter.
    """
    rows, cols = sides.shape
    post = np.ones((rows + 1, cols + 1), bool)
    right, down = sides & RIGHT == 0, sides & DOWN == 0
    post[1:-1, 1:-1] = right[:-1, :-1] | right[1:, :-1] | down[:-1, :-1] | down[:-1, 1:]
    return post[:-1, :-1] + 2 * post[:-1, 1:] + 4 * post[1:, :-1] + 8 * post[1:, 1:]


def render(meta: Mapping[str, Any], style: Style = "cells") -> np.ndarray:
    """uint8 [H, W, 3] RGB of the maze in a task's meta; H = 28 * rows and W = 28 * cols in the `cells` style."""
    rows, cols = meta["rows"], meta["cols"]
    g = geometry(style, rows, cols)
    opened = [0] * (rows * cols)
    for (r, c), (s, d) in meta["openings"]:
        opened[r * cols + c] |= RIGHT if d > c else DOWN
        opened[s * cols + d] |= LEFT if d > c else UP
    sides = np.array(opened).reshape(rows, cols)
    content = np.zeros((rows, cols), np.int64)
    content[tuple(meta["start"])] = 1
    content[tuple(meta["goal"])] = 2
    cells = tiles(g.cell, g.wall, g.ink)[content, sides, posts_of(sides)]
    blocks = cells.transpose(0, 2, 1, 3, 4).reshape(rows * g.cell, cols * g.cell, 3)
    if style == "cells":
        return blocks
    picture = np.full((g.height, g.width, 3), 255, np.uint8)
    picture[g.top : g.top + blocks.shape[0], g.left : g.left + blocks.shape[1]] = blocks
    return picture


def moves_of(solution: str) -> list[str]:
    """ "<|up|><|left|>" -> ["up", "left"]."""
    return re.findall(r"<\|(up|down|left|right)\|>", solution)


def walk(meta: Mapping[str, Any], moves: Sequence[str]) -> tuple[list[tuple[int, int]], str | None]:
    """The cells (row, column) that `moves` lead through, start included, and the first move that a wall stops (None if all are legal)."""
    opened = {frozenset(((r, c), (s, d))) for (r, c), (s, d) in meta["openings"]}
    trail = [(meta["start"][0], meta["start"][1])]
    for move in moves:
        row, col = trail[-1]
        down, right = STEPS[move]
        if frozenset(((row, col), (row + down, col + right))) not in opened:
            return trail, move
        trail.append((row + down, col + right))
    return trail, None


def draw_path(image: Image.Image, meta: Mapping[str, Any], moves: Sequence[str], colour: Colour = ROUTE, scale: int = 1) -> Image.Image:
    """A copy of a rendered maze, `scale` times enlarged, with `moves` ("up", "down", "left", "right") drawn from the start.

    The line ends in an arrow, or, where a wall stops a move, in a cross before that wall. Raises ValueError for a picture of another
    size, or for an unknown move.
    """
    unknown = sorted(set(moves) - STEPS.keys())
    if unknown:
        raise ValueError(f"moves are {', '.join(STEPS)}; got {unknown[0]!r}")
    rows, cols = meta["rows"], meta["cols"]
    g = next((g for g in (geometry("cells", rows, cols), geometry("ariadne", rows, cols)) if (g.width, g.height) == image.size), None)
    if g is None:
        raise ValueError(f"a picture of {image.size} pixels is no rendered maze of {rows} x {cols} cells")
    enlarged = image.convert("RGB").resize((g.width * scale, g.height * scale), Image.Resampling.NEAREST)
    if not moves:
        return enlarged
    trail, stopped = walk(meta, moves)
    fine = 4 * scale  # drawn at four times the size and reduced, for smooth edges
    unit = g.cell * fine

    def place(row: float, col: float) -> tuple[float, float]:
        return g.left * fine + (col + 0.5) * unit, g.top * fine + (row + 0.5) * unit

    mask = Image.new("L", (g.width * fine, g.height * fine), 0)
    pen = ImageDraw.Draw(mask)
    (down, right), cells = STEPS[moves[0]], list[tuple[float, float]](trail)
    if len(trail) > 1:
        cells[0] = (cells[0][0] + 0.27 * down, cells[0][1] + 0.27 * right)  # leaves the letter O legible
    broad, arm = max(1, unit * 9 // 64), unit * 0.15
    if stopped:
        down, right = STEPS[stopped]
        points = [place(*cell) for cell in [*cells, (trail[-1][0] + 0.3 * down, trail[-1][1] + 0.3 * right)]]
        x, y = points[-1]
        pen.line([(x - arm, y - arm), (x + arm, y + arm)], fill=OPAQUE, width=broad)
        pen.line([(x - arm, y + arm), (x + arm, y - arm)], fill=OPAQUE, width=broad)
    else:
        down, right = STEPS[moves[-1]]
        row, col = trail[-1]
        points = [place(*cell) for cell in [*cells[:-1], (row - 0.5 * down, col - 0.5 * right)]]
        x, y = place(row - 0.27 * down, col - 0.27 * right)
        length = unit * 0.24
        base = (x - length * right, y - length * down)
        pen.polygon([(x, y), (base[0] + arm * down, base[1] + arm * right), (base[0] - arm * down, base[1] - arm * right)], fill=OPAQUE)
    pen.line(points, fill=OPAQUE, width=broad, joint="curve")
    enlarged.paste(colour, (0, 0), mask.resize(enlarged.size, Image.Resampling.BOX))
    return enlarged
