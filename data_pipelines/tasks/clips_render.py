"""Clips as pixels, by integer arithmetic alone, so that they are the same everywhere."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import shake_256
from typing import NamedTuple

import numpy as np

from data_pipelines.tasks.clips_layout import SHAPES, Shape, Space
from data_pipelines.tasks.maze_render import FINE, covered

RGB = {
    "red": (225, 30, 35),
    "orange": (255, 145, 20),
    "yellow": (250, 230, 50),
    "green": (40, 180, 70),
    "blue": (60, 110, 255),
    "purple": (165, 70, 225),
    "pink": (255, 130, 195),
    "white": (250, 250, 250),
}
"""Of COLOURS, in their order: all brighter in some channel than any background."""
GRAIN = 14
"""Patches of texture along the shorter side."""


class Paint(NamedTuple):
    """What a scene leaves open."""

    colours: tuple[int, ...]
    """Of the shapes, as places in COLOURS."""
    base: tuple[int, int, int]
    """RGB of the background, each 16 to 79."""
    texture: bytes
    """Key of the background's texture; empty = plain."""


@lru_cache(maxsize=512)
def sprite(kind: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that a shape touches in its box: rows, columns, int64 [P], and how much of each it covers, 1 to FINE**2, uint32 [P, 1]."""
    unit = 2 * size * FINE
    centres = 2 * np.arange(size * FINE) + 1
    y, x = np.meshgrid(centres, centres, indexing="ij")  # of sub-pixels, in half sub-pixels: the box is `unit` wide
    middle = 3 * np.abs(2 * x - unit) <= unit  # the middle third of the columns
    match SHAPES[kind]:
        case "circle":
            inside = (2 * x - unit) ** 2 + (2 * y - unit) ** 2 <= unit**2
        case "square":
            inside = np.ones_like(x, bool)
        case "triangle":
            inside = np.abs(2 * x - unit) <= y
        case "cross":
            inside = middle | middle.T
        case "ell":
            inside = (3 * x <= unit) | (3 * y >= 2 * unit)
        case _:
            inside = middle | (3 * y <= unit)
    cover = covered(inside, size)
    rows, cols = np.nonzero(cover)
    return rows, cols, cover[rows, cols, None].astype(np.uint32)


def background(space: Space, paint: Paint) -> np.ndarray:
    """uint8 [H, W, 3]: one colour, or patches up to 16 brighter or darker than it."""
    picture = np.empty((space.height, space.width, 3), np.int16)
    picture[:] = paint.base
    if paint.texture:
        patch = max(2, space.side // GRAIN)
        rows, cols = -(-space.height // patch), -(-space.width // patch)
        noise = np.frombuffer(shake_256(paint.texture).digest(rows * cols), np.uint8).reshape(rows, cols) >> 3
        wide = noise.repeat(patch, axis=0).repeat(patch, axis=1)[: space.height, : space.width]
        picture += wide[..., None].astype(np.int16) - 16
    return picture.clip(0, 255).astype(np.uint8)


def render(space: Space, shapes: Sequence[Shape], paint: Paint) -> np.ndarray:
    """uint8 [F, H, W, 3] RGB; later shapes lie over earlier ones."""
    frames = np.empty((*space, 3), np.uint8)
    frames[:] = background(space, paint)
    pixels = frames.reshape(-1, 3)
    palette = np.array(list(RGB.values()), np.uint32)
    for shape, colour in zip(shapes, paint.colours, strict=True):
        rows, cols, cover = sprite(shape.kind, shape.size)
        shown = np.arange(shape.first, shape.end)
        corners = (shown * space.height + shape.ys[shape.first : shape.end]) * space.width + shape.xs[shape.first : shape.end]
        at = corners[:, None] + rows * space.width + cols
        ink = palette[colour] * cover + FINE**2 // 2
        pixels[at] = (pixels[at] * (FINE**2 - cover) + ink) // FINE**2
    return frames
