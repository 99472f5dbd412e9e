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
BAND = 256
"""Lines that go across at once: they stay in the second-level cache."""
Place = tuple[int, int, int, int]
"""Top, left, height and width."""


def resampled(frames: np.ndarray, places: list[Place], target: np.ndarray, into: list[Place]) -> None:
    """Of each frame of uint8 [F, H, W, 3] the part at its place, brought to the size of the place that it takes in `target`."""
    lines = still(frames).reshape(*frames.shape[:2], -1)
    stride = target.strides[1]
    for frame, picture, (top, left, height, width), (to_top, to_left, high, wide) in zip(lines, target, places, into, strict=True):
        part = frame[top : top + height, 3 * left : 3 * (left + width)]
        down, start = lanczos(height, high), to_top * stride + 3 * to_left
        _weigh(_across(part, *lanczos(width, wide)), *down, 3 * wide, picture.reshape(-1), start, stride)


def _across(part: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each line of uint8 [h, 3 * w] resampled, at least [h, 3 * len(first)]. Lines stand on their side for it, BAND at a time, which lets a
    vector hold the same pixel of many. What fills up their number and length is never read."""
    height, size = part.shape
    columns, wide_columns = -(-size // 8), -(-3 * len(first) // 8)
    rows = -(-min(height, BAND) // 8) | 1  # odd, so that a column's words do not fight for one place of the cache
    lying, standing, after = (np.empty(shape, np.uint64) for shape in ((8 * rows, columns), (8 * columns, rows), (8 * wide_columns, rows)))
    pixels = standing.view(np.uint8)[:size].reshape(-1, 24 * rows)
    across = np.empty((height + 8 * rows, wide_columns), np.uint64)
    for top in range(0, height, BAND):
        band = part[top : top + BAND]
        lying.view(np.uint8)[: len(band), :size] = band
        _exchange(lying, standing)
        _weigh(pixels, first, weights, 24 * rows, after.view(np.uint8).reshape(-1), 0, 24 * rows)
        _exchange(after, across[top : top + 8 * rows])
    return across.view(np.uint8)


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
def _weigh(
    lines: np.ndarray, first: np.ndarray, weights: np.ndarray, size: int, target: np.ndarray, start: int, stride: int
) -> None:  # fmt: skip
    """Sums of lines of `size` bytes, rounded; into the bytes of `target` from `start` on, one every `stride` bytes."""
    sums = np.empty(size, np.int32)
    for y in range(len(first)):
        sums[:] = np.int32(1 << (BITS - 1))
        for k in range(min(weights.shape[1], len(lines) - first[y])):  # beyond the end all weights are 0
            line, weight = lines[first[y] + k], weights[y, k]
            for i in range(size):
                sums[i] += weight * np.int32(line[i])
        after = target[start + y * stride : start + y * stride + size]
        for i in range(size):
            after[i] = min(max(sums[i] >> BITS, 0), 255)


@compiled
def _exchange(source: np.ndarray, target: np.ndarray) -> None:
    """Rows of bytes, eight in a word, as columns: uint64 [8 * r, c] to [8 * c, r]. Eight rows at a time: of each square of eight by eight
    bytes the halves change places first, then the quarters' halves, then single bytes."""
    columns = source.shape[1]
    band = np.empty((8, columns), np.uint64)
    for row in range(len(source) // 8):
        for r in range(8):
            before, copy = source[8 * row + r], band[r]
            for j in range(columns):
                copy[j] = before[j]
        for step in (4, 2, 1):
            bits = np.uint64(8 * step)
            low = np.uint64(0xFFFFFFFFFFFFFFFF) // ((np.uint64(1) << bits) + np.uint64(1))  # of each two fields of `bits` the lower
            for r in range(8):
                if r & step == 0:
                    upper, lower = band[r], band[r + step]
                    for j in range(columns):
                        other = ((upper[j] >> bits) ^ lower[j]) & low
                        upper[j] ^= other << bits
                        lower[j] ^= other
        for j in range(columns):
            for r in range(8):
                target[np.uint64(8 * j + r), np.uint64(row)] = band[np.uint64(r), np.uint64(j)]
