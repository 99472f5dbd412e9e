"""Arithmetic on interleaved RGB bytes, [..., 3]. Integers only: the same bytes on every machine."""

import numpy as np

from data_pipelines.compiled import compiled

LUMA = (77, 150, 29)
"""ITU-R 601 luminance in 256ths, as Pillow's "L" has it in 65536ths; a grey pixel keeps its value."""
BLOCK = 1024
"""Pixels that are taken apart into planes at a time: they stay in the first-level cache."""


def still(frames: np.ndarray) -> np.ndarray:
    """The same bytes, in order and read-only, whether they came so (from the frame cache) or not: a loop is compiled for one kind."""
    frames = np.ascontiguousarray(frames).view()
    frames.flags.writeable = False
    return frames


def permuted(frames: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    """Channel c of the result is channel `order[c]` of `frames`."""
    target = np.empty(frames.shape, np.uint8)
    _permute(still(frames).reshape(-1), np.array(order), target.reshape(-1))
    return target


@compiled
def _permute(source: np.ndarray, order: np.ndarray, target: np.ndarray) -> None:
    planes = np.empty((3, BLOCK), np.uint8)
    red, green, blue = planes[0], planes[1], planes[2]
    first, second, third = planes[order[0]], planes[order[1]], planes[order[2]]
    for start in range(0, source.size, 3 * BLOCK):
        before, after = source[start : start + 3 * BLOCK], target[start : start + 3 * BLOCK]
        for i in range(before.size // 3):
            red[i], green[i], blue[i] = before[3 * i], before[3 * i + 1], before[3 * i + 2]
        for i in range(before.size // 3):
            after[3 * i], after[3 * i + 1], after[3 * i + 2] = first[i], second[i], third[i]


def grey(frames: np.ndarray) -> np.ndarray:
    """Each pixel's luminance in all three channels. Within 1 of Pillow's "L"."""
    target = np.empty(frames.shape, np.uint8)
    _to_grey(still(frames).reshape(-1), target.reshape(-1))
    return target


@compiled
def _to_grey(source: np.ndarray, target: np.ndarray) -> None:
    for i in range(source.size // 3):
        light = np.uint8((LUMA[0] * source[3 * i] + LUMA[1] * source[3 * i + 1] + LUMA[2] * source[3 * i + 2] + 128) >> 8)
        target[3 * i] = target[3 * i + 1] = target[3 * i + 2] = light


def saturated(frames: np.ndarray, factor: float) -> np.ndarray:
    """luminance + factor * (value - luminance), rounded and clipped; `factor` in [0, 4], to 1/64, above 2 to 1/32."""
    bits = 6 if factor <= 2 else 5
    target = np.empty(frames.shape, np.uint8)
    _saturate(still(frames).reshape(-1), np.int32(round(factor * 2**bits)), np.int32(bits), target.reshape(-1))
    return target


@compiled
def _saturate(source: np.ndarray, gain: np.int32, bits: np.int32, target: np.ndarray) -> None:
    half = np.int32(1 << (bits - 1))
    for i in range(source.size // 3):
        light = np.int32((LUMA[0] * source[3 * i] + LUMA[1] * source[3 * i + 1] + LUMA[2] * source[3 * i + 2] + 128) >> 8)
        for c in range(3):
            value = light + (((source[3 * i + c] - light) * gain + half) >> bits)
            target[3 * i + c] = np.uint8(min(max(value, 0), 255))


def looked_up(frames: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table[value] for every byte; `table` uint8 [256]."""
    target = np.empty(frames.shape, np.uint8)
    _look_up(still(frames).reshape(-1), table, target.reshape(-1))
    return target


@compiled
def _look_up(source: np.ndarray, table: np.ndarray, target: np.ndarray) -> None:
    for i in range(source.size):
        target[i] = table[source[i]]


def channel_means(frames: np.ndarray) -> np.ndarray:
    """float64 [3]: mean of each channel over all frames."""
    return _channel_sums(still(frames).reshape(-1)) / (frames.size // 3)


@compiled
def _channel_sums(source: np.ndarray) -> np.ndarray:
    red, green, blue = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(source.size // 3):
        red += source[3 * i]
        green += source[3 * i + 1]
        blue += source[3 * i + 2]
    return np.array([red, green, blue])


def mean_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference, in levels of 0 to 255, of two uint8 arrays of one shape."""
    if before.shape != after.shape:
        raise ValueError(f"frames of different shapes: {before.shape} and {after.shape}")
    return int(_total_change(still(before).reshape(-1), still(after).reshape(-1))) / before.size


@compiled
def _total_change(before: np.ndarray, after: np.ndarray) -> np.int64:
    total = np.int64(0)
    for i in range(before.size):
        total += abs(np.int32(before[i]) - np.int32(after[i]))
    return total
