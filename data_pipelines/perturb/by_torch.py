"""Resampling and reversing of pixels by torch's kernels for bytes, many times faster than Pillow's and numpy's.

The only module of the data pipelines that needs torch. It takes seconds to load, so operations import this module when they are called.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import torch

STRIP = 1 << 20
"""Bytes that are reversed at a time: they stay in the cache for the second pass."""
Place = tuple[int, int, int, int]
"""Top, left, height and width."""


def resampled(frames: np.ndarray, target: np.ndarray, places: Iterable[tuple[Place, Place]]) -> None:
    """For each frame of uint8 [F, H, W, 3] the part at the first place, brought to the size of the second and put there in `target`: by
    Lanczos's filter with 3 lobes, antialiased, its weights whole numbers; at most 2 levels away from Pillow's."""
    pixels = channels_last(frames)
    for n, ((top, left, high, wide), (into_top, into_left, into_high, into_wide)) in enumerate(places):
        part = pixels[n : n + 1, :, top : top + high, left : left + wide]
        made = torch.nn.functional.interpolate(part, (into_high, into_wide), mode="lanczos", antialias=True)
        target[n, into_top : into_top + into_high, into_left : into_left + into_wide] = made[0].permute(1, 2, 0).numpy()


def turned(frames: np.ndarray) -> np.ndarray:
    """Each frame of uint8 [F, H, W, 3] turned by 180 degrees: its pixels in reverse order."""
    target, pixels = np.empty(frames.shape, np.uint8), channels_last(frames)
    step = max(1, STRIP // frames[0].size)
    for first in range(0, len(frames), step):
        target[first : first + step] = _reversed(pixels[first : first + step])
    return target


def mirrored(frames: np.ndarray) -> np.ndarray:
    """Each row in reverse order: strips of rows turned by 180 degrees, their rows put back in their order."""
    rows = channels_last(frames.reshape(1, -1, *frames.shape[2:]))
    target = np.empty(rows.permute(0, 2, 3, 1).shape, np.uint8)
    step = max(1, STRIP // target[0, 0].size)
    for top in range(0, target.shape[1], step):
        target[:, top : top + step] = _reversed(rows[:, :, top : top + step])[:, ::-1]
    return target.reshape(frames.shape)


def _reversed(pixels: torch.Tensor) -> np.ndarray:
    """[F, 3, H, W] -> [F, H, W, 3]."""
    return pixels.flip(2, 3).permute(0, 2, 3, 1).numpy()


def channels_last(frames: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] as [F, 3, H, W] over the same memory, the form that the kernels are fast for. Not to be written to: a read-only
    array (from the frame cache) gives no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
