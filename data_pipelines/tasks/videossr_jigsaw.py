"""VideoSSR's Temporal Jigsaw: a video is cut into clips of equal length, which are shown in another order.

Source: arXiv:2511.06281, section 3.3; released pretext_tasks/jigsaw.py. Kinds "jigsaw-2" to "jigsaw-9": one character for each clip.
The paper trains on 6 clips of 8 frames, its hard variant has 8 of 6.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from data_pipelines.perturb.pixels import mean_change
from data_pipelines.tasks.videossr_baseline import Baseline

MOST_CLIPS = 9


def question(clips: int) -> str:
    return (
        f"One video was cut into {clips} clips of equal length, shown above in shuffled order. In which order did they happen? Answer with "
        f"the {clips} clip numbers from the first clip in time to the last, with nothing between them."
    )


def draw_order(rng: np.random.Generator, clips: int) -> list[int]:
    """The shown order: place k shows the clip of true place order[k], counted from 0. Every order is equally likely, the true one too."""
    return rng.permutation(clips).tolist()


def answer(order: Sequence[int]) -> str:
    """The k-th character is the shown number of the k-th clip in time: [2, 5, 0, 1, 3, 4] -> "341562"."""
    return "".join(str(order.index(k) + 1) for k in range(len(order)))


def frames_of(order: Sequence[int], num_frames: int) -> list[list[int]]:
    """The frames of each shown clip."""
    length = num_frames // len(order)
    return [list(range(place * length, (place + 1) * length)) for place in order]


def least_change(frames: np.ndarray, clips: int) -> float:
    """Mean absolute difference, in levels of 0 to 255, of those two neighbouring clips that differ least: 0 if two could be swapped."""
    parts = np.split(frames, clips)
    return min(mean_change(one, other) for one, other in pairwise(parts))


def baseline(clips: int) -> Baseline:
    """The mean over all orders of 1 - (sum of displacements) / (clips² // 2). Constants earn as much: no order is likelier."""
    mean = 1 - (clips**2 - 1) / 3 / (clips**2 // 2)
    right = 1 / math.factorial(clips)
    return Baseline(mean, mean, "".join(str(k + 1) for k in range(clips)), right, right)
