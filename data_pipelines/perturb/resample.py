"""Lanczos resampling of bytes with Pillow's arithmetic, across and then down.

Bit for bit Pillow's where Pillow goes across first, as it does for most sizes. Where it goes down first the two differ by rounding, up to 2
levels, and by more beside black and white, because values are clipped to bytes between the passes.
"""

from functools import lru_cache

import numpy as np

from data_pipelines.compiled import compiled
from data_pipelines.perturb.pixels import still

LOBES = 3
BITS = 22
"""Weights are whole numbers of 2**-22: with bytes their sums fit 32 bits."""
ROWS = 32
"""Rows that go across at once, one in each lane of a vector."""
Place = tuple[int, int, int, int]
"""Top, left, height and width."""


def resampled(frames: np.ndarray, places: list[Place], target: np.ndarray, into: list[Place]) -> None:
    """Of each frame of uint8 [F, H, W, 3] the part at its place, brought to the size of the place that it takes in `target`."""
    stride = target.strides[1]
    for frame, picture, place, (top, left, high, wide) in zip(still(frames), target, places, into, strict=True):
        across, down = lanczos(place[3], wide), lanczos(place[2], high)
        _resample(frame, np.array(place), *across, *down, picture.reshape(-1), top * stride + 3 * left, stride)


@lru_cache(maxsize=512)
def lanczos(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a line of `before` pixels is read for each of `after`: the first pixel, int64 [after], and the weights of it and those that
    follow, int32 [after, taps]. A shorter line is read more widely, so that it has no aliases."""
    scale = before / after
    spread = max(scale, 1.0)
    middles = (np.arange(after) + 0.5) * scale
    first = np.maximum((middles - LOBES * spread + 0.5).astype(np.int64), 0)
    end = np.minimum((middles + LOBES * spread + 0.5).astype(np.int64), before)
    at = np.arange(int((end - first).max()))
    distance = (at + first[:, None] - middles[:, None] + 0.5) * (1 / spread)
    inside = (at < (end - first)[:, None]) & (abs(distance) < LOBES)
    weights = np.where(inside, np.sinc(distance) * np.sinc(distance / LOBES), 0.0)
    weights /= weights.sum(1, keepdims=True)
    return first, np.trunc(weights * 2**BITS + np.copysign(0.5, weights)).astype(np.int32)


@compiled
def _resample(
    frame: np.ndarray,
    place: np.ndarray,
    first_x: np.ndarray,
    weights_x: np.ndarray,
    first_y: np.ndarray,
    weights_y: np.ndarray,
    target: np.ndarray,
    start: int,
    stride: int,
) -> None:
    """Across, then down, each rounded to bytes; into the bytes of `target` from `start` on, a row every `stride` bytes."""
    top, left, height, width = place
    wide, taps_x, taps_y = len(first_x), weights_x.shape[1], weights_y.shape[1]
    half = np.int32(1 << (BITS - 1))
    across = np.zeros((height + taps_y, 3 * wide), np.uint8)  # beyond the end all weights are 0
    lanes = np.zeros((width + taps_x) * 3 * ROWS, np.uint8)  # value by value, the rows side by side
    sums, values = np.empty(3 * ROWS, np.int32), np.empty(3 * ROWS, np.uint8)
    for above in range(0, height, ROWS):
        rows = min(ROWS, height - above)
        for r in range(rows):
            row = frame[top + above + r]
            for x in range(width):
                for c in range(3):
                    lanes[np.uint64((3 * x + c) * ROWS + r)] = row[left + x, c]
        for x in range(wide):
            sums[:] = half
            for k in range(taps_x):
                weight, pixel = weights_x[x, k], lanes[(first_x[x] + k) * 3 * ROWS :]
                for i in range(3 * ROWS):
                    sums[i] += weight * np.int32(pixel[i])
            for i in range(3 * ROWS):
                values[i] = min(max(sums[i] >> BITS, 0), 255)
            for r in range(rows):
                for c in range(3):
                    across[np.uint64(above + r), np.uint64(3 * x + c)] = values[np.uint64(c * ROWS + r)]
    sums = np.empty(3 * wide, np.int32)
    for y in range(len(first_y)):
        sums[:] = half
        for k in range(taps_y):
            row, weight = across[first_y[y] + k], weights_y[y, k]
            for i in range(3 * wide):
                sums[i] += weight * np.int32(row[i])
        line = target[start + y * stride : start + y * stride + 3 * wide]
        for i in range(3 * wide):
            line[i] = min(max(sums[i] >> BITS, 0), 255)
