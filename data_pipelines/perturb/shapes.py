"""Shapes pasted into frames: VideoSSR's Object Counting (arXiv:2511.06281; released pretext_tasks/counting.py)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

ShapeName = Literal["circle", "square", "triangle"]

UNIT = 256
"""Steps of a pixel that corners are rounded to, so that no maths library decides which pixels a shape covers."""
CORNERS = {"square": 4, "triangle": 3}


@dataclass(frozen=True)
class PastedShape:
    """A filled shape in one frame. Plain numbers: the same ones cover the same pixels on every machine."""

    frame: int
    shape: ShapeName
    x: float
    """Centre in pixels from the left edge."""
    y: float
    """Centre in pixels from the top edge."""
    size: float
    """Pixels: a circle's diameter, the side of a square or of an equilateral triangle."""
    angle: int
    """Degrees by which a square or triangle is turned."""
    colour: tuple[int, int, int]
    """RGB."""

    def __post_init__(self) -> None:
        if self.shape not in get_args(ShapeName):
            raise ValueError(f"shape must be one of {', '.join(get_args(ShapeName))}; got {self.shape!r}")
        if self.frame < 0 or not self.size > 0:
            raise ValueError(f"a pasted shape needs frame >= 0 and size > 0; got {self.frame} and {self.size}")


def pasted(frames: np.ndarray, shapes: Iterable[PastedShape]) -> np.ndarray:
    """A copy of `frames` uint8 [F, H, W, 3] with the shapes, later ones over earlier ones. ValueError for a frame that is not there."""
    target = frames.copy()
    for shape in shapes:
        if shape.frame >= len(frames):
            raise ValueError(f"a shape is pasted into frame {shape.frame}, but there are {len(frames)} frames")
        rows, columns, inside = covered(shape, *frames.shape[1:3])
        target[shape.frame, rows, columns][inside] = shape.colour
    return target


def covered(shape: PastedShape, height: int, width: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of a box in a frame, and bool [rows, columns]: the pixels in it whose middle lies in the shape."""
    reach = 0.75 * shape.size + 1
    rows, columns = (
        slice(max(0, int(at - reach)), max(0, min(side, int(at + reach) + 1))) for at, side in ((shape.y, height), (shape.x, width))
    )
    x, y = round(shape.x * UNIT), round(shape.y * UNIT)
    across = (np.arange(columns.start, columns.stop, dtype=np.int64) * UNIT + UNIT // 2 - x)[None, :]
    down = (np.arange(rows.start, rows.stop, dtype=np.int64) * UNIT + UNIT // 2 - y)[:, None]
    if shape.shape == "circle":
        return rows, columns, 4 * (across**2 + down**2) <= round(shape.size * UNIT) ** 2
    corners = corner_offsets(shape)
    inside = np.ones((down.size, across.size), bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (x1 - x0) * (down - y0) - (y1 - y0) * (across - x0) >= 0
    return rows, columns, inside


def corner_offsets(shape: PastedShape) -> list[tuple[int, int]]:
    """(x, y) of the corners from the centre, clockwise, in UNITs."""
    count = CORNERS[shape.shape]
    radius = shape.size * UNIT / (2 * math.sin(math.pi / count))
    turns = [math.radians(shape.angle + 360 * corner / count) for corner in range(count)]
    return [(round(radius * math.cos(turn)), round(radius * math.sin(turn))) for turn in turns]
