"""Clips as whole numbers: shapes, their paths and the frames they are shown in.

A shape fills a square box; positions are those of the box's upper left corner, in whole pixels, one for each frame. Lists of shapes go
from the lowest to the topmost. What a clip asks, and its colours, are decided elsewhere.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import pack
from typing import NamedTuple

from data_pipelines.tasks.keyed import Draw

SHAPES = ("circle", "square", "triangle", "cross", "ell", "tee")
"""Tasks are about the first three; the others fill clips without a task."""
ASKED = SHAPES[:3]
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
FINE = 256
"""Parts of a pixel in a speed."""
TRIES = 40
"""Places tried for one box before the whole scene is drawn anew."""


class Space(NamedTuple):
    """Size of a clip."""

    frames: int
    height: int
    width: int

    @property
    def side(self) -> int:
        """The shorter one, in pixels: shapes, gaps and speeds are shares of it."""
        return min(self.height, self.width)

    @property
    def gap(self) -> int:
        """Pixels between boxes that do not touch."""
        return max(2, self.side // 28)

    @property
    def clear(self) -> int:
        """Least number of frames in which each shape is shown with nothing over its box."""
        return max(2, self.frames // 6)


class Shape(NamedTuple):
    kind: int
    """Place in SHAPES."""
    size: int
    """Pixels of its box's side."""
    xs: tuple[int, ...]
    """Left edge of the box in each frame, shown or not."""
    ys: tuple[int, ...]
    """Top edge."""
    first: int
    """Shown in the frames first, ..., end - 1."""
    end: int


Path = tuple[int, ...]
Box = tuple[int, int, int]
"""x, y, size."""


def below(draw: Draw, number: int) -> int:
    """0 to number - 1."""
    return draw() * number >> 32


def between(draw: Draw, low: int, high: int) -> int:
    """low to high, both included."""
    return low + (draw() * (high - low + 1) >> 32)


def some_size(space: Space, draw: Draw) -> int:
    """9 to 13 of 56 parts of the side."""
    return between(draw, space.side * 9 // 56, space.side * 13 // 56)


def still(space: Space, at: int) -> Path:
    return (at,) * space.frames


def travel(space: Space, start: int, way: int, begin: int, end: int) -> Path:
    """At `start` until frame `begin`, then evenly to `start + way` at frame `end`, then still. Both senses round alike."""
    sign, steps = (1 if way > 0 else -1), end - begin
    return tuple(start + sign * (abs(way) * min(max(frame - begin, 0), steps) // steps) for frame in range(space.frames))


def bounce(space: Space, start: int, speed: int, free: int) -> Path:
    """Between 0 and `free`, thrown back at either end; `speed` is in parts of a pixel a frame, negative for the other sense."""
    path, lap = [], 2 * free * FINE
    for frame in range(space.frames):
        along = (start * FINE + speed * frame) % lap
        path.append(min(along, lap - along) // FINE)
    return tuple(path)


def place(space: Space, draw: Draw, sizes: Sequence[int]) -> list[Box] | None:
    """Boxes with a gap between any two, anywhere in the frame; None if one finds no place."""
    taken: list[Box] = []
    for size in sizes:
        for _ in range(TRIES):
            box = (below(draw, space.width - size + 1), below(draw, space.height - size + 1), size)
            if not any(near(box, other, space.gap) for other in taken):
                taken.append(box)
                break
        else:
            return None
    return taken


def near(a: Box, b: Box, gap: int = 0) -> bool:
    """Whether two boxes overlap or are less than `gap` pixels apart."""
    return a[0] < b[0] + b[2] + gap and b[0] < a[0] + a[2] + gap and a[1] < b[1] + b[2] + gap and b[1] < a[1] + a[2] + gap


def box_of(shape: Shape, frame: int) -> Box:
    return shape.xs[frame], shape.ys[frame], shape.size


def are_apart(space: Space, shapes: Sequence[Shape]) -> bool:
    """Whether all boxes keep the gap in all frames, shown or not."""
    return not any(
        near(box_of(one, frame), box_of(other, frame), space.gap)
        for i, one in enumerate(shapes)
        for other in shapes[:i]
        for frame in range(space.frames)
    )


def clear_frames(shapes: Sequence[Shape], which: int) -> list[int]:
    """The frames in which a shape is shown with no box over its own."""
    one, above = shapes[which], shapes[which + 1 :]
    return [
        frame
        for frame in range(one.first, one.end)
        if not any(over.first <= frame < over.end and near(box_of(one, frame), box_of(over, frame)) for over in above)
    ]


def bouncing(space: Space, draw: Draw, kind: int, first: int, end: int) -> Shape:
    """A shape that crosses the frame aslant and is thrown back at its edges: 1/40 to 1/14 of the side a frame along each axis."""
    size = some_size(space, draw)
    paths = []
    for length in (space.width, space.height):
        speed = between(draw, space.side * FINE // 40, space.side * FINE // 14) * (1 if below(draw, 2) else -1)
        paths.append(bounce(space, below(draw, length - size + 1), speed, length - size))
    return Shape(kind, size, paths[0], paths[1], first, end)


def layout_hash(space: Space, shapes: Sequence[Shape], colours: Sequence[int] = ()) -> int:
    """64-bit hash of what is shown where and when; of the colours too if given. The order of the shapes does not count."""
    parts = []
    for i, shape in enumerate(shapes):
        numbers = (shape.kind, shape.size, shape.first, shape.end, *colours[i : i + 1])
        seen = slice(shape.first, shape.end)
        parts.append(pack(f"<{len(numbers)}H", *numbers) + pack(f"<{2 * (shape.end - shape.first)}H", *shape.xs[seen], *shape.ys[seen]))
    parts.sort()
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8, person=b"%dx%dx%d" % space).digest(), "little")
