"""What is asked about a clip, and the answers that are possible.

A label is what decides an answer, as whole numbers. For each kind and level all labels are listed; a task draws one of them, each as
likely as any other, before anything is drawn that could depend on it. So the chances of a guess can be counted.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from data_pipelines.tasks.clips_layout import ASKED

KINDS = ("counting", "order", "direction", "speed", "grounding", "first_frame")
LEVELS = (1, 2, 3)
EVENTS = ("visible", "moving", "touching")
"""Of grounding, by level."""
LETTERS = "ABCD"
WAYS = ("up", "down", "left", "right")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
FPS = (1, 2, 4, 5, 10, 20, 25)
"""Frame rates whose frames begin at seconds of at most two decimals."""

Label = tuple[int, ...]


@lru_cache(maxsize=256)
def labels(kind: str, level: int, frames: int) -> tuple[Label, ...]:
    """All labels.

    counting     (place of the shape in ASKED, how many)
    order        level 1: (option that is first); else the options in their order of appearance
    direction    level 3: (way before the turn, way after it); else (way,)
    speed        (option that is fastest)
    grounding    (first frame, frame after the last): a sixth to a third of the clip
    first_frame  level 1: (option); else (corner in the first frame, corner in the last)
    """
    match kind:
        case "counting":
            return tuple(product(range(len(ASKED)), range(1, level + 3)))
        case "order":
            return ((0,), (1,)) if level == 1 else tuple(permutations(range(level + 1)))
        case "direction":
            return tuple(permutations(range(4), 2)) if level == 3 else tuple((way,) for way in range(4))
        case "speed":
            return tuple((option,) for option in range(3 if level == 3 else 2))
        case "grounding":
            last = frames - 1 if level == 2 else frames  # a move ends with a frame: see `solution`
            lengths = range(max(2, frames // 6), max(3, frames // 3) + 1)
            return tuple((start, start + length) for length in lengths for start in range(last - length + 1))
    return tuple((option,) for option in range(4)) if level == 1 else tuple(permutations(range(4), 2))


def solution(kind: str, level: int, label: Label, fps: int) -> str:
    """The answer. Frame i is shown from i / fps seconds on, until the next: a shape seen in the frames 2, 3, 4 at 2 fps is visible
    during "1.0-2.5", and one that has left its place in frame 3 for the first time and comes to rest in frame 5 moves during "1.0-2.5"."""
    match kind:
        case "counting":
            return str(label[1])
        case "order":
            return "".join(LETTERS[option] for option in label)
        case "direction":
            return WAYS[label[-1]]
        case "grounding":
            return "-".join(f"{frame / fps:.{2 if 10 % fps else 1}f}" for frame in label)
        case "first_frame" if level > 1:
            return CORNERS[label[0]]
    return LETTERS[label[0]]


def question(kind: str, level: int, named: Sequence[str]) -> str:
    """`named`: the shapes that the question is about, such as "red circle"; for counting, "circle"."""
    options = ", ".join(f"({letter}) {name}" for letter, name in zip(LETTERS, named, strict=False))
    match kind:
        case "counting":
            return f"How many different {named[0]}s appear in the video? Answer with a number."
        case "order" if level == 1:
            return f"Which shape appears first: {options}? Answer with one letter."
        case "order":
            return f"In which order do the shapes appear: {options}? Answer with the letters, first to last, nothing between them."
        case "direction":
            after = " after it changes direction" if level == 3 else ""
            return f"Which way does the {named[0]} move{after}? Answer with up, down, left or right."
        case "speed":
            return f"Which shape moves fastest: {options}? Answer with one letter."
        case "grounding":
            what = (f"is the {named[0]} visible", f"does the {named[0]} move", f"do the {' and the '.join(named)} touch")[level - 1]
            return f"During which seconds {what}? Answer with start-end."
    if level == 1:
        return f"Which shape is in the first frame: {options}? Answer with one letter."
    return f"Where is the {named[0]} in the first frame? Answer with top left, top right, bottom left or bottom right."


class Baseline(NamedTuple):
    """What answers without a look at the video earn on average: temporal IoU for grounding, else the share of exact matches."""

    chance: float
    """Of an answer drawn like the true ones."""
    constant: float
    """Of always the same answer, the best one."""
    answer: str
    """That answer."""


@lru_cache(maxsize=64)
def baseline(kind: str, level: int, frames: int, fps: int) -> Baseline:
    """Counted over all labels."""
    every = labels(kind, level, frames)
    if kind != "grounding":
        counts = Counter(solution(kind, level, label, fps) for label in every)
        answer, most = counts.most_common(1)[0]
        return Baseline(sum(n * n for n in counts.values()) / len(every) ** 2, most / len(every), answer)
    true = np.array(every)
    guesses = np.array([(start, end) for start in range(frames) for end in range(start + 1, frames + 1)])
    constants = iou(guesses, true).mean(axis=1)
    best = int(constants.argmax())
    return Baseline(float(iou(true, true).mean()), float(constants[best]), solution(kind, level, tuple(guesses[best].tolist()), fps))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 [A, 2] and [B, 2] spans (start, end) -> float64 [A, B], intersection over union."""
    both = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    both = np.maximum(both, 0)
    return both / (np.diff(a) + np.diff(b).T - both)
