"""Arithmetic on interleaved RGB bytes, in blocks that stay in the processor's cache.

numpy runs an operation on contiguous bytes many times faster than one that picks every third byte. So colours are not taken apart: a
neighbour channel is the same stream shifted by a byte or two, and a pattern of period 3 says where the result counts.
Integers only: the same bytes on every machine.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

BLOCK = 3 << 15
"""Bytes worked on at a time: whole pixels, and a few 16-bit copies of it fit a second-level cache."""

LUMA = (77, 150, 29)
"""ITU-R 601 luminance in 256ths, as Pillow's "L" has it in 65536ths; a grey pixel keeps its value."""


def by_block(frames: np.ndarray, work: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    """New array like `frames` (uint8, last axis 3), filled by `work(source, target)` on flat blocks of whole pixels."""
    source = np.ascontiguousarray(frames).reshape(-1)
    target = np.empty_like(source)
    for start in range(0, source.size, BLOCK):
        work(source[start : start + BLOCK], target[start : start + BLOCK])
    return target.reshape(frames.shape)


@lru_cache(maxsize=64)
def pattern(values: tuple[int, int, int], dtype: str = "u1") -> np.ndarray:
    """`values` over and over, one BLOCK long; read-only."""
    tiled = np.tile(np.array(values, dtype), BLOCK // 3)
    tiled.flags.writeable = False
    return tiled


def _shifts(order: tuple[int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """(how far to the right the wanted byte lies, mask of the places where it is wanted) for each distance."""
    red, green, blue = (order[channel] - channel for channel in range(3))
    for distance in sorted({red, green, blue}):
        yield distance, pattern((255 * (red == distance), 255 * (green == distance), 255 * (blue == distance)))


def permuted(frames: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    """Channel c of the result is channel `order[c]` of `frames`."""
    shifts = list(_shifts(order))
    scratch = np.empty(min(BLOCK, frames.size), np.uint8)

    def work(source: np.ndarray, target: np.ndarray) -> None:
        size = source.size
        for turn, (distance, mask) in enumerate(shifts):
            ahead, behind = max(distance, 0), max(-distance, 0)
            into = slice(behind, size - ahead)
            shifted = np.bitwise_and(source[ahead : size - behind], mask[into], out=(scratch if turn else target)[into])
            if turn:
                np.bitwise_or(target[into], shifted, out=target[into])
            else:  # a byte without a neighbour at that distance is not one where it is wanted
                target[:behind] = target[size - ahead :] = 0

    return by_block(frames, work)


def grey(frames: np.ndarray) -> np.ndarray:
    """Each pixel's luminance in all three channels. Within 1 of Pillow's "L"."""
    return by_block(frames, _luminance(min(BLOCK, frames.size)))


def _luminance(size: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Work for `by_block` on blocks of at most `size` bytes, with scratch of its own."""
    weights, first_bytes = pattern(LUMA, "u2"), pattern((255, 0, 0))
    products, sums, narrow = np.empty(size, np.uint16), np.empty(size, np.uint16), np.empty(size, np.uint8)

    def work(source: np.ndarray, target: np.ndarray) -> None:
        size = source.size
        product, total, first = products[:size], sums[:size], narrow[:size]
        product[...] = source
        product *= weights[:size]
        np.add(product, np.uint16(128), out=total)
        total[:-1] += product[1:]
        total[:-2] += product[2:]  # now right at each pixel's first byte, and at most 255 * 256 + 128
        total >>= 8
        np.copyto(first, total, casting="unsafe")
        first &= first_bytes[:size]
        target[0] = first[0]
        np.bitwise_or(first[1:], first[:-1], out=target[1:])
        target[2:] |= first[:-2]

    return work


def saturated(frames: np.ndarray, factor: float) -> np.ndarray:
    """luminance + factor * (value - luminance), rounded and clipped; `factor` in [0, 4], to 1/64, above 2 to 1/32."""
    bits = 6 if factor <= 2 else 5  # 255 * factor * 2**bits must fit 16 bits with a sign
    gain, half = np.int16(round(factor * 2**bits)), np.int16(1 << bits - 1)
    size = min(BLOCK, frames.size)
    luminance, greys, results = _luminance(size), np.empty(size, np.int16), np.empty(size, np.int16)

    def work(source: np.ndarray, target: np.ndarray) -> None:
        luminance(source, target)
        level, moved = greys[: source.size], results[: source.size]
        level[...] = target
        moved[...] = source
        moved -= level
        moved *= gain
        moved += half
        moved >>= bits
        moved += level
        np.clip(moved, 0, 255, out=moved)
        np.copyto(target, moved, casting="unsafe")

    return by_block(frames, work)


def looked_up(frames: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[value] for every byte; `table` uint8 [256]."""
    codes = table.tobytes()

    def work(source: np.ndarray, target: np.ndarray) -> None:
        target[...] = np.frombuffer(source.tobytes().translate(codes), np.uint8)

    return by_block(frames, work)


def channel_means(frames: np.ndarray) -> np.ndarray:
    """float64 [3]: mean of each channel over all frames."""
    columns = frames.reshape(-1, frames.shape[2] * 3)
    total = np.zeros(columns.shape[1], np.uint64)
    for start in range(0, len(columns), 256):  # 256 rows of bytes sum to less than 2**16
        total += np.add.reduce(columns[start : start + 256], axis=0, dtype=np.uint16)
    return total.reshape(-1, 3).sum(axis=0) / (frames.size // 3)


def mean_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference, in levels of 0 to 255, of two uint8 arrays of one shape."""
    if before.shape != after.shape:
        raise ValueError(f"frames of different shapes: {before.shape} and {after.shape}")
    one, other = np.ascontiguousarray(before).reshape(-1), np.ascontiguousarray(after).reshape(-1)
    high, low = np.empty(min(BLOCK, one.size), np.uint8), np.empty(min(BLOCK, one.size), np.uint8)
    total = 0
    for start in range(0, one.size, BLOCK):
        a, b = one[start : start + BLOCK], other[start : start + BLOCK]
        changed = np.maximum(a, b, out=high[: a.size])
        changed -= np.minimum(a, b, out=low[: a.size])
        total += int(np.add.reduce(changed, dtype=np.uint32))
    return total / one.size
