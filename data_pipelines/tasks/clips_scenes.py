"""Scenes with a wanted answer: shapes and paths for each kind and level of task.

A scene is tried with one stream of draws and may fail (None): a shape finds no place, or is covered too long. It is then tried with
another stream and the same label, so that failures cannot favour an answer.
"""

from collections.abc import Callable
from typing import NamedTuple

from data_pipelines.tasks.clips_layout import (
    ASKED,
    FINE,
    Path,
    Shape,
    Space,
    are_apart,
    below,
    between,
    bounce,
    bouncing,
    box_of,
    clear_frames,
    near,
    place,
    some_size,
    still,
    travel,
)
from data_pipelines.tasks.clips_questions import Label
from data_pipelines.tasks.keyed import Draw, shuffle


class Scene(NamedTuple):
    shapes: tuple[Shape, ...]
    """From the lowest to the topmost."""
    named: tuple[int, ...]
    """Those that the question names, in its order."""


def stage(kind: str, space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """A scene whose answer is `label`; None if this attempt failed.

    Each shape is shown with nothing over it in `space.clear` frames or more; those whose appearance is asked for, also when they appear.
    """
    scene = STAGES[kind](space, level, label, draw)
    if scene is None:
        return None
    for i, shape in enumerate(scene.shapes):
        clear = clear_frames(scene.shapes, i)
        if len(clear) < space.clear or (kind == "order" and clear[0] != shape.first):
            return None
    return scene


def some_kind(draw: Draw) -> int:
    return below(draw, len(ASKED))


def resting(space: Space, draw: Draw, spans: list[tuple[int, int]]) -> list[Shape] | None:
    """Shapes of any kind that never move, shown in `spans`, all apart."""
    boxes = place(space, draw, [some_size(space, draw) for _ in spans])
    if boxes is None:
        return None
    return [
        Shape(some_kind(draw), size, still(space, x), still(space, y), first, end)
        for (x, y, size), (first, end) in zip(boxes, spans, strict=True)
    ]


def on_top(shapes: list[Shape], named: int) -> Scene:
    """The first `named` shapes are the question's and lie over the others; their order says nothing of the answer."""
    return Scene((*shapes[named:], *shapes[:named]), tuple(range(len(shapes) - named, len(shapes))))


def laid(axis: int, along: Path, across: Path) -> tuple[Path, Path]:
    """xs and ys of a path along an axis, 0 = x, and one across it."""
    return (along, across) if axis == 0 else (across, along)


def mixed(shapes: list[Shape], named: int, draw: Draw) -> Scene:
    """The first `named` shapes are the question's; all lie in random order."""
    order = list(range(len(shapes)))
    shuffle(order, draw)
    return Scene(tuple(shapes[i] for i in order), tuple(order.index(i) for i in range(named)))


def counting(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Level 1: all rest and stay. 2: they come and go. 3: and move about. Up to `level` shapes of other kinds are there too."""
    asked, count = label
    kinds = [asked] * count + [(asked + 1 + below(draw, 2)) % 3 for _ in range(between(draw, 1, level))]
    shuffle(kinds, draw)
    spans = [(0, space.frames) if level == 1 else stay(space, draw) for _ in kinds]
    if level == 3:
        shapes = [bouncing(space, draw, kind, *span) for kind, span in zip(kinds, spans, strict=True)]
    else:
        rest = resting(space, draw, spans)
        if rest is None:
            return None
        shapes = [shape._replace(kind=kind) for shape, kind in zip(rest, kinds, strict=True)]
    return Scene(tuple(shapes), ())


def stay(space: Space, draw: Draw) -> tuple[int, int]:
    """Frames of a visit: at least twice `space.clear`, anywhere in the clip."""
    length = between(draw, 2 * space.clear, space.frames - 1)
    first = below(draw, space.frames - length + 1)
    return first, first + length


def order(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Each shape appears after the first frame, at a frame of its own. Level 3: they move, and vanish again."""
    count = level + 1
    options = label if level > 1 else (label[0], 1 - label[0])
    latest = space.frames - space.clear
    apart = min(2, (latest - 1) // (count - 1))
    slack = latest - 1 - apart * (count - 1)
    begins = sorted(1 + below(draw, slack + 1) for _ in range(count))
    first = [0] * count
    for rank, option in enumerate(options):
        first[option] = begins[rank] + apart * rank
    if level < 3:
        shapes = resting(space, draw, [(begin, space.frames) for begin in first])
    else:
        shapes = [
            bouncing(space, draw, some_kind(draw), begin, between(draw, min(begin + 2 * space.clear, space.frames), space.frames))
            for begin in first
        ]
    return mixed(shapes, count, draw) if shapes else None


STEPS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""x and y of WAYS."""


def direction(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Level 1: one shape goes straight. 2: two others go other ways. 3: and it changes its way in the middle third.

    Where it starts says nothing of where it goes: the start leaves as much room on all sides. The others start anywhere.
    """
    shapes = [straying(space, draw, label)]
    for _ in range(2 if level > 1 else 0):
        others = [way for way in range(4) if way != label[-1]]
        shapes.append(straying(space, draw, (others[below(draw, 3)],), anywhere=True))
    return on_top(shapes, 1)


def straying(space: Space, draw: Draw, ways: Label, anywhere: bool = False) -> Shape:
    """A shape that goes one way, or one and then another, by a quarter to two fifths of the room that it has (a third at most if it
    turns). It starts where it could go any way, or anywhere from where it stays in the frame."""
    size, end = some_size(space, draw), space.frames - 1
    turn = between(draw, space.frames // 3, 2 * space.frames // 3) if len(ways) == 2 else end
    legs = ((0, turn), (turn, end))[: len(ways)]
    paths: list[Path] = []
    for axis, room in enumerate((space.width - size, space.height - size)):
        most = room // 3 if len(ways) == 2 else room * 2 // 5
        moved = still(space, 0)
        for way, (begin, stop) in zip(ways, legs, strict=True):
            leg = travel(space, 0, STEPS[way][axis] * between(draw, room // 4, most), begin, stop)
            moved = tuple(one + other for one, other in zip(moved, leg, strict=True))
        low, high = (-min(moved), room - max(moved)) if anywhere else (most, room - most)
        start = between(draw, low, high)
        paths.append(tuple(start + by for by in moved))
    xs, ys = paths
    return Shape(some_kind(draw), size, xs, ys, 0, space.frames)


def speed(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Shapes that go straight all the time and never meet. Level 1: two side by side, one at least twice as fast. 2: two along any
    axes, at least 1.5 times. 3: three, thrown back at the edges, the fastest at least 1.5 times as fast as any other."""
    count = 3 if level == 3 else 2
    axis = below(draw, 2)
    sizes = [some_size(space, draw) for _ in range(count)]
    axes = [below(draw, 2) if level == 2 else axis for _ in range(count)]
    least, most = ((512, 768), (384, 512), (384, 640))[level - 1]
    rooms = [(space.width, space.height)[along] - size for along, size in zip(axes, sizes, strict=True)]
    slowest, fastest = (space.side * FINE // 14, space.side * FINE // 10) if level == 3 else (min(rooms) * 3 // 4, min(rooms))
    fast = between(draw, slowest, fastest)
    shapes = []
    for option, (size, along, room) in enumerate(zip(sizes, axes, rooms, strict=True)):
        pace = fast if option == label[0] else fast * 256 // between(draw, least, most)
        sign = 1 if below(draw, 2) else -1
        if level == 3:
            path = bounce(space, below(draw, room + 1), sign * pace, room)
        else:
            start = below(draw, room - pace + 1)
            path = travel(space, start if sign > 0 else start + pace, sign * pace, 0, space.frames - 1)
        lane = still(space, below(draw, (space.height, space.width)[along] - size + 1))
        shapes.append(Shape(some_kind(draw), size, *laid(along, path, lane), 0, space.frames))
    return mixed(shapes, count, draw) if are_apart(space, shapes) else None


def grounding(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Level 1: a shape is there for a while, between two that stay. 2: it moves for a while, and so do two others. 3: it meets another
    shape for a while, and a third rests."""
    whole = (0, space.frames)
    if level == 1:
        shapes = resting(space, draw, [(label[0], label[1]), whole, whole])
        return mixed(shapes, 1, draw) if shapes else None
    if level == 3:
        return meeting(space, label, draw)
    shapes = []
    for i in range(3):
        length = between(draw, 2, max(3, space.frames // 3))
        begin = below(draw, space.frames - length)
        begin, end = label if i == 0 else (begin, begin + length)
        size, axis = some_size(space, draw), below(draw, 2)
        room = (space.width, space.height)[axis] - size
        way = between(draw, max(room // 3, end - begin), max(room // 2, end - begin))
        start = below(draw, room - way + 1)
        path = travel(space, start, way, begin, end) if below(draw, 2) else travel(space, start + way, -way, begin, end)
        lane = still(space, below(draw, (space.height, space.width)[axis] - size + 1))
        shapes.append(Shape(some_kind(draw), size, *laid(axis, path, lane), 0, space.frames))
    return mixed(shapes, 1, draw) if are_apart(space, shapes) else None


def meeting(space: Space, label: Label, draw: Draw) -> Scene | None:
    """A shape that comes near another, touches it during `label` with half of the smaller box over the other, and goes back. Before and
    after that at least a ninth of the side lies between them."""
    begin, end = label
    kinds, (size, other, third) = [some_kind(draw) for _ in range(3)], [some_size(space, draw) for _ in range(3)]
    axis, sign = below(draw, 2), (1 if below(draw, 2) else -1)
    length, breadth = (space.width, space.height) if axis == 0 else (space.height, space.width)
    away = min(size, other) // 2 + space.side // 9
    at, across = below(draw, length - other + 1), below(draw, breadth - other + 1)
    contact = at - size + min(size, other) // 2 if sign < 0 else at + other - min(size, other) // 2
    room = contact if sign < 0 else length - size - contact
    aside = across + (other - size) // 2
    if room < away or not 0 <= aside <= breadth - size:
        return None
    far = [between(draw, away, room) for _ in range(2)]
    coming = travel(space, far[0], away - far[0], 0, max(begin - 1, 1))
    going = travel(space, away, far[1] - away, end, max(space.frames - 1, end + 1))
    offsets = [0 if begin <= frame < end else coming[frame] if frame < begin else going[frame] for frame in range(space.frames)]
    path = tuple(contact + sign * offset for offset in offsets)
    mover = Shape(kinds[0], size, *laid(axis, path, still(space, aside)), 0, space.frames)
    rest = Shape(kinds[1], other, *laid(axis, still(space, at), still(space, across)), 0, space.frames)
    x, y = (still(space, below(draw, side - third + 1)) for side in (space.width, space.height))
    shown = Shape(kinds[2], third, x, y, 0, space.frames)
    for frame in range(space.frames):
        if any(near(box_of(shown, frame), box_of(one, frame), space.gap) for one in (mover, rest)):
            return None
    pair = [mover, rest] if below(draw, 2) else [rest, mover]
    return mixed([*pair, shown], 2, draw)


def first_frame(space: Space, level: int, label: Label, draw: Draw) -> Scene | None:
    """Level 1: one of four shapes is there at first; it goes and the others come. 2: a shape moves from one corner to another while a
    second one rests. 3: four shapes, one in each corner, all move to other corners."""
    if level == 1:
        spans = [(between(draw, space.clear, space.frames // 2), space.frames) for _ in range(4)]
        spans[label[0]] = (0, between(draw, space.clear, space.frames // 2))
        shapes = resting(space, draw, spans)
        return mixed(shapes, 4, draw) if shapes else None
    target = from_to(space, draw, *label)
    if level == 2:
        rest = resting(space, draw, [(0, space.frames)])
        return on_top([target, *rest], 1) if rest else None
    others = [from_to(space, draw, corner, (corner + between(draw, 1, 3)) % 4) for corner in range(4) if corner != label[0]]
    shuffle(others, draw)
    return on_top([target, *others], 1)


def from_to(space: Space, draw: Draw, start: int, end: int) -> Shape:
    """A shape on its way from one corner of CORNERS to another, in both well off the middle."""
    size, paths = some_size(space, draw), []
    for length, before, after in ((space.width, start % 2, end % 2), (space.height, start // 2, end // 2)):
        reach = length // 2 - size - space.gap
        begin, stop = (below(draw, reach + 1) + side * (length - size - reach) for side in (before, after))
        paths.append(travel(space, begin, stop - begin, 0, space.frames - 1) if stop != begin else still(space, begin))
    xs, ys = paths
    return Shape(some_kind(draw), size, xs, ys, 0, space.frames)


STAGES: dict[str, Callable[[Space, int, Label, Draw], Scene | None]] = {
    "counting": counting,
    "order": order,
    "direction": direction,
    "speed": speed,
    "grounding": grounding,
    "first_frame": first_frame,
}
