"""What can be seen in a clip and is not said in its question: facts for judges, and questions with short answers.

Left out is what the question asks, what it gives away by naming it, and what its kind and level settle for every clip.
"""

from collections.abc import Sequence
from typing import Any

from data_pipelines.tasks.clips_layout import ASKED, COLOURS, SHAPES, Shape, Space, box_of, clear_frames

MOST = 8
"""Shapes that a clip can hold: the five of counting's third level and three more."""
CLEAR_BY = 2
"""Pixels by which a shape must lie over a middle line to count as in the middle; one that lies over it by less has no place."""
PLACES = ("top left", "top middle", "top right", "middle left", "middle", "middle right", "bottom left", "bottom middle", "bottom right")


def visual_facts(kind: str, level: int, space: Space, shapes: Sequence[Shape], names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Sentences that are true of the clip, by name of the shape.

    `names`: such as "red circle", of `shapes`; `asked`: those that the question names, or for counting the kind of shape.
    """
    facts = []
    for i in sorted(range(len(shapes)), key=lambda i: names[i]):
        if names[i] not in asked:
            facts.append(f"A {names[i]} appears in the video.".replace("A orange", "An orange"))
        place = _place_asked(kind, level, space, shapes, i, names, asked)
        if place:
            facts.append(f"The {names[i]} is first seen at the {place}.")
        if kind == "counting" and level > 1:
            since = "is there in the first frame" if shapes[i].first == 0 else "appears after the first frame"
            if shapes[i].first or clear_frames(shapes, i)[0] == 0:
                facts.append(f"The {names[i]} {since}.")
    return facts


def checklist(
    kind: str, level: int, space: Space, shapes: Sequence[Shape], names: Sequence[str], asked: Sequence[str]
) -> list[dict[str, Any]]:
    """Questions with one of a few possible answers, at most eight of them; arguments as of `visual_facts`."""
    items: list[dict[str, Any]] = []
    kinds = [SHAPES[shape.kind] for shape in shapes]
    numbers = [str(number) for number in range(MOST + 1)]
    if kind == "counting":
        items.append(_item("How many shapes appear in the video?", str(len(shapes)), numbers[1:]))
    if not set(names) <= set(asked):
        items += [_item(f"How many {one}s appear in the video?", str(kinds.count(one)), numbers) for one in ASKED if one not in asked]
        for one in ASKED:
            name = names[kinds.index(one)] if kinds.count(one) == 1 else None
            if name and name not in asked and one not in asked:
                items.append(_item(f"What colour is the {one}?", name.split()[0], list(COLOURS)))
    for i in sorted(range(len(shapes)), key=lambda i: names[i]):
        place = _place_asked(kind, level, space, shapes, i, names, asked)
        if place and len(items) < MOST:
            items.append(_item(f"Where is the {names[i]} when it is first seen?", place, list(PLACES)))
    return items


def _item(question: str, answer: str, options: list[str]) -> dict[str, Any]:
    return {"question": question, "answer": answer, "options": options}


def _place_asked(
    kind: str, level: int, space: Space, shapes: Sequence[Shape], which: int, names: Sequence[str], asked: Sequence[str]
) -> str | None:
    """Where a shape is when it is first seen; None where that is the clip's own question, or in doubt."""
    if kind == "first_frame" and level > 1 and names[which] in asked:
        return None
    return place_of(space, shapes, which)


def place_of(space: Space, shapes: Sequence[Shape], which: int) -> str | None:
    """One of PLACES: on which side of the middle lines a shape's box lies in its first frame, or over them. None if something covers it
    then, or if it lies over a line by less than CLEAR_BY pixels."""
    shape = shapes[which]
    if clear_frames(shapes, which)[:1] != [shape.first]:
        return None
    x, y, size = box_of(shape, shape.first)
    vertical = _side(y, size, space.height, ("top", "middle", "bottom"))
    horizontal = _side(x, size, space.width, ("left", "middle", "right"))
    if vertical is None or horizontal is None:
        return None
    return vertical if vertical == horizontal else f"{vertical} {horizontal}"


def _side(start: int, size: int, length: int, sides: tuple[str, str, str]) -> str | None:
    before, after = length // 2 - start, start + size - length // 2  # pixels of the box on this side of the middle line, and on that
    if after <= 0 or before <= 0:
        return sides[0] if after <= 0 else sides[2]
    return sides[1] if min(before, after) >= CLEAR_BY else None
