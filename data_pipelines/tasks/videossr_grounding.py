"""VideoSSR's Anomaly Grounding: some frames in a row are perturbed, and the seconds of their start and end are asked for.

Source: arXiv:2511.06281, section 3.1; released pretext_tasks/grounding.py. Kinds "grounding-mirror" and so on.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.perturb.ops import VIDEOSSR_KINDS, Rotate, StutterHold
from data_pipelines.tasks.clips_questions import iou
from data_pipelines.tasks.videossr_baseline import Baseline

if TYPE_CHECKING:
    from mmrl.protocols import Perturbation

OPERATIONS: "Mapping[str, Perturbation | None]" = {**VIDEOSSR_KINDS, "rotate_90": Rotate(90), "rotate_270": Rotate(270), "swap": None}
"""What is done to the segment, with the paper's parameters; None for swap, which takes another video. Quarter turns need square frames."""
CHANGES = {
    "saturation": "its colours are much stronger",
    "noise": "it is covered with noise",
    "blur": "it is blurred",
    "grayscale": "it has no colours",
    "invert": "its colours are inverted",
    "channel_swap": "its colour channels are swapped",
    "zoom_in": "it is shown enlarged",
    "zoom_out": "it is shown smaller, inside a black border",
    "rotate": "it is turned upside down",
    "rotate_90": "it is turned a quarter to the left",
    "rotate_270": "it is turned a quarter to the right",
    "mirror": "left and right are exchanged",
    "stutter_hold": "it stutters, single frames standing still",
    "shuffle": "its frames are in random order",
    "slow": "it runs too slowly",
    "fast": "it runs too fast",
    "swap": "another video is shown instead",
}
"""What the question says of it."""


def lengths(num_frames: int) -> range:
    """Possible numbers of perturbed frames: 8 to 16 of 48, a sixth to a third of any other number."""
    return range(num_frames // 6, num_frames // 3 + 1)


def fewest_frames(name: str) -> int:
    """Frames of a video below which the shortest segment is too short for the change."""
    op = OPERATIONS[name]
    if isinstance(op, StutterHold):
        return 6 * max(op.holds)
    return 12 if name in ("shuffle", "slow", "fast") else 6


def draw_segment(rng: np.random.Generator, num_frames: int) -> tuple[int, int]:
    """[start, end) in frames: a length, then a start, each uniform."""
    choices = lengths(num_frames)
    length = int(rng.integers(choices.start, choices.stop))
    start = int(rng.integers(0, num_frames - length + 1))
    return start, start + length


def answer(segment: tuple[int, int], sample_fps: float) -> str:
    """Frame i is at i / sample_fps seconds: (20, 30) at 1.2 -> "16.7-25.0"."""
    start, end = segment
    return f"{start / sample_fps:.1f}-{end / sample_fps:.1f}"


def span_of(solution: str) -> list[float]:
    """The seconds as the answer writes them, so that the right answer earns 1 and not 0.99."""
    return [float(part) for part in solution.split("-")]


def question(change: str, duration_s: float) -> str:
    return (
        f"The video lasts {duration_s:.1f} seconds. In one continuous part of it, {change}. When does that part start and end? "
        "Answer in seconds as start-end."
    )


@lru_cache(maxsize=8)
def baseline(num_frames: int) -> Baseline:
    """Expected temporal IoU, counted over every segment, before the seconds are rounded; the answer is a share of the clip, in frames."""
    choices = lengths(num_frames)
    true, weights = [], []
    for length in choices:
        for start in range(num_frames - length + 1):
            true.append((start, start + length))
            weights.append(1 / len(choices) / (num_frames - length + 1))
    spans, chances = np.array(true), np.array(weights)
    every = np.array([(start, end) for start in range(num_frames) for end in range(start + 1, num_frames + 1)])
    by_guess = iou(every, spans) @ chances
    best = int(by_guess.argmax())
    return Baseline(
        chance=float(chances @ iou(spans, spans) @ chances),
        constant=float(by_guess[best]),
        answer="frames {}-{} of {}".format(*every[best], num_frames),
        success_chance=float((chances**2).sum()),
        success_constant=float(chances.max()),
    )
