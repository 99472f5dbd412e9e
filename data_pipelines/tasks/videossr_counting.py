"""VideoSSR's Object Counting: shapes are pasted into some frames, and their number over all frames is asked for.

Source: arXiv:2511.06281, section 3.2; released pretext_tasks/counting.py. Kinds "counting-easy" and "counting-hard"; "counting-single",
which is ours, has one large shape in a frame, for small frames and small models.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np

from data_pipelines.perturb.shapes import PastedShape, ShapeName, covered
from data_pipelines.tasks.videossr_baseline import Baseline

SHAPES: tuple[ShapeName, ...] = get_args(ShapeName)


class Kind(NamedTuple):
    """What is pasted."""

    frames: int
    """Most frames of one shape."""
    instances: int
    """Most of it in one frame."""
    sizes: tuple[float, float] = (0.2, 0.4)
    """Least and largest size, as a share of the frame's shorter side."""


KINDS = {"counting-easy": Kind(3, 3), "counting-hard": Kind(4, 4), "counting-single": Kind(3, 1, (0.55, 0.65))}
TRIES = 20
"""Places and colours tried for one shape; then it is left out, and not counted."""
CONTRAST = 24.0
"""Levels of 0 to 255 by which a shape differs on average from what it covers. Less may not be seen."""
QUESTION = (
    "Circles, squares and triangles of one colour each have been pasted into some frames of this video. How many are there of each, over "
    "all frames? Answer with three whole numbers separated by commas: circles,squares,triangles."
)


def gap(num_frames: int) -> int:
    """Least distance between two frames with the same shape: 9 of 48 frames, in proportion for fewer."""
    return max(1, 9 * num_frames // 48)


def draw_frames(rng: np.random.Generator, num_frames: int, most: int) -> dict[ShapeName, list[int]]:
    """The frames of each shape, 1 to `most` of them: `gap` apart for one shape, none shared by two.

    A choice that leaves no room for the next is made again; how many frames each shape gets stays. ValueError for fewer than 4 * `most`
    frames.
    """
    if num_frames < 4 * most:
        raise ValueError(f"up to {most} frames of each shape need {4 * most} frames; got {num_frames}")
    wanted: dict[ShapeName, int] = {shape: int(rng.integers(1, most + 1)) for shape in SHAPES}
    while True:
        free = set(range(num_frames))
        chosen: dict[ShapeName, list[int]] = {}
        for shape, count in wanted.items():
            own = _apart(rng, free, count, gap(num_frames))
            free -= set(own)
            chosen[shape] = own
        if all(len(chosen[shape]) == count for shape, count in wanted.items()):
            return chosen


def _apart(rng: np.random.Generator, free: set[int], count: int, least: int) -> list[int]:
    """Up to `count` of the frames `free`, any two at least `least` apart."""
    own: list[int] = []
    for _ in range(count):
        room = [frame for frame in sorted(free) if all(abs(frame - other) >= least for other in own)]
        if not room:
            break
        own.append(room[int(rng.integers(len(room)))])
    return sorted(own)


def draw_shapes(rng: np.random.Generator, frames: np.ndarray, kind: Kind) -> tuple[PastedShape, ...]:
    """Shapes to paste into `frames` uint8 [F, H, W, 3]: those that found a place.

    Each: colour channels 50 to 255, size 0.2 to 0.4 of the shorter side (the kind's `sizes`), centre in the middle 70 % of the frame and
    0.75 sizes from its edges, and at least its own size from the centres of those before it.
    """
    found: list[PastedShape] = []
    for shape, own in draw_frames(rng, len(frames), kind.frames).items():
        for frame in own:
            canvas, placed = frames[frame].copy(), []
            for _ in range(int(rng.integers(1, kind.instances + 1))):
                one = _place(rng, canvas, frame, shape, placed, kind.sizes)
                if one is not None:
                    rows, columns, inside = covered(one, *canvas.shape[:2])
                    canvas[rows, columns][inside] = one.colour
                    placed.append(one)
            found += placed
    return tuple(found)


def _place(
    rng: np.random.Generator, canvas: np.ndarray, frame: int, shape: ShapeName, placed: Sequence[PastedShape], sizes: tuple[float, float]
) -> PastedShape | None:
    """A shape that keeps its distance and stands out from `canvas` uint8 [H, W, 3]; None after TRIES."""
    height, width = canvas.shape[:2]
    size = round(float(rng.uniform(*sizes)) * min(height, width), 2)
    angle = 0 if shape == "circle" else int(rng.integers(360))
    for _ in range(TRIES):
        x, y = (_centre(rng, side, size) for side in (width, height))
        red, green, blue = rng.integers(50, 256, 3).tolist()
        one = PastedShape(frame, shape, x, y, size, angle, (red, green, blue))
        apart = all(math.hypot(x - other.x, y - other.y) >= size for other in placed)
        if apart and contrast(canvas, one) >= CONTRAST:
            return one
    return None


def _centre(rng: np.random.Generator, side: int, size: float) -> float:
    low = max(0.15 * side, 0.75 * size)
    return round(float(rng.uniform(low, side - low)), 2)


def contrast(canvas: np.ndarray, shape: PastedShape) -> float:
    """Mean absolute difference between a shape's colour and the pixels under it."""
    rows, columns, inside = covered(shape, *canvas.shape[:2])
    under = canvas[rows, columns][inside].astype(np.int16)
    return float(np.abs(under - np.array(shape.colour, np.int16)).mean())


def counts(shapes: Sequence[PastedShape]) -> dict[str, int]:
    """How many of each were drawn."""
    return {name: sum(one.shape == name for one in shapes) for name in SHAPES}


def frames_of(shapes: Sequence[PastedShape]) -> dict[str, list[int]]:
    """The frames that show each, by their place among the sampled ones."""
    return {name: sorted({one.frame for one in shapes if one.shape == name}) for name in SHAPES}


def answer(numbers: Mapping[str, int]) -> str:
    return ",".join(str(numbers[name]) for name in SHAPES)


@lru_cache(maxsize=8)
def totals(kind: Kind) -> tuple[float, ...]:
    """Chance of each total 0, 1, ... of one shape: the sum over 1 to `frames` frames of 1 to `instances` each, if all find a place."""
    one = np.array([0.0] + [1 / kind.instances] * kind.instances)
    powers = [np.ones(1)]
    for _ in range(kind.frames):
        powers.append(np.convolve(powers[-1], one))
    mixed = np.zeros(kind.frames * kind.instances + 1)
    for power in powers[1:]:
        mixed[: len(power)] += power / kind.frames
    return tuple(mixed.tolist())


@lru_cache(maxsize=8)
def baseline(kind: str) -> Baseline:
    """Mean credit per shape, max(0, 1 - |guess - true| / true), of guesses that do not look (success is a correct triple)."""
    chances = np.array(totals(KINDS[kind]))
    true = np.arange(len(chances))
    credit = np.maximum(0.0, 1 - np.abs(true[:, None] - true[None, :]) / np.maximum(true, 1))  # [guess, true]
    by_guess = credit @ chances
    best = int(by_guess.argmax())
    return Baseline(
        chance=float(chances @ by_guess),
        constant=float(by_guess[best]),
        answer=",".join([str(best)] * len(SHAPES)),
        success_chance=float((chances**2).sum()) ** len(SHAPES),
        success_constant=float(chances.max()) ** len(SHAPES),
    )
