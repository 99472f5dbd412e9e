"""Pixels of uint8 [F, H, W, 3] at other places of their frame, as they are."""

import math

import numpy as np

from data_pipelines.compiled import compiled
from data_pipelines.perturb.pixels import BLOCK, still


def mirrored(frames: np.ndarray, upside_down: bool = False) -> np.ndarray:
    """Each row in reverse order, pixel by pixel, and if `upside_down` the rows too, which is a turn by 180 degrees."""
    target = np.empty(frames.shape, np.uint8)
    count, height = frames.shape[:2]
    _mirror(still(frames).reshape(count, height, -1), upside_down, target.reshape(count, height, -1))
    return target


@compiled
def _mirror(frames: np.ndarray, upside_down: bool, target: np.ndarray) -> None:
    count, height, size = frames.shape
    width = size // 3
    red, green, blue = np.empty(width, np.uint8), np.empty(width, np.uint8), np.empty(width, np.uint8)
    for n in range(count):
        for y in range(height):
            before, after = frames[n, y], target[n, y]
            for x in range(width):
                red[x], green[x], blue[x] = before[3 * x], before[3 * x + 1], before[3 * x + 2]
            for x in range(width):
                mirror = np.uint64(width - 1) - np.uint64(x)
                after[3 * x], after[3 * x + 1], after[3 * x + 2] = red[mirror], green[mirror], blue[mirror]
        if upside_down:  # afterwards, within the cache: memory is slow to read or write from its end
            for y in range(height // 2):
                above, below = target[n, y], target[n, height - 1 - y]
                for i in range(size):
                    above[i], below[i] = below[i], above[i]


def quarter_turned(frames: np.ndarray, anticlockwise: bool) -> np.ndarray:
    """Each square frame by 90 degrees."""
    side, target = frames.shape[1], np.empty(frames.shape, np.uint8)
    pitch = (-(-side // 16) | 1) * 16  # never a high power of two, so that a column's pixels do not fight for one place of the cache
    pixels = np.zeros((side, pitch), np.uint32)
    for frame, turned in zip(still(frames), target, strict=True):
        _widen(frame.reshape(side, -1), pixels)
        _turn(pixels, anticlockwise, turned)
    return target


@compiled
def _turn(pixels: np.ndarray, anticlockwise: bool, target: np.ndarray) -> None:
    side = len(target)
    line = np.empty(side, np.uint32)
    four = line.view(np.uint8)
    for y in range(side):
        row = target[y].reshape(-1)
        if anticlockwise:
            for x in range(side):
                line[x] = pixels[x, np.uint64(side - 1 - y)]
        else:
            for x in range(side):
                line[x] = pixels[np.uint64(side - 1) - np.uint64(x), y]
        for x in range(side):
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = four[4 * x], four[4 * x + 1], four[4 * x + 2]


def tilted(frames: np.ndarray, degrees: float) -> np.ndarray:
    """Each frame turned anticlockwise about its middle; what comes into view is black. A pixel becomes the one nearest to where it came
    from, which is found in 65536ths as Pillow's `rotate` finds it: the same bytes."""
    height, width = frames.shape[1:3]
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    left = width / 2 - cos * (width / 2) - sin * (height / 2)
    top = height / 2 + sin * (width / 2) - cos * (height / 2)
    steps = [math.floor(value * 65536 + 0.5) for value in (cos, sin, left + cos * 0.5 + sin * 0.5, top - sin * 0.5 + cos * 0.5)]
    places, target = _origins(height, width, *steps), np.empty(frames.shape, np.uint8)
    pixels = np.zeros((1, height * width + 1), np.uint32)
    for frame, tilt in zip(still(frames), target, strict=True):
        _widen(frame.reshape(1, -1), pixels)
        _take(pixels[0], places, tilt.reshape(-1))
    return target


@compiled
def _origins(height: int, width: int, cos: int, sin: int, left: int, top: int) -> np.ndarray:
    """Which of the pixels comes where, uint32 [H * W]; H * W, one behind the last, for black."""
    places = np.empty((height, width), np.uint32)
    for y in range(height):
        for x in range(width):
            from_x, from_y = (left + x * cos + y * sin) >> 16, (top - x * sin + y * cos) >> 16
            inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
            places[y, x] = from_y * width + from_x if inside else height * width
    return places.reshape(-1)


@compiled
def _take(pixels: np.ndarray, places: np.ndarray, target: np.ndarray) -> None:
    line = np.empty(BLOCK, np.uint32)
    four = line.view(np.uint8)
    for start in range(0, places.size, BLOCK):
        wanted, row = places[start : start + BLOCK], target[3 * start : 3 * (start + BLOCK)]
        for i in range(wanted.size):
            line[i] = pixels[wanted[i]]
        for i in range(wanted.size):
            row[3 * i], row[3 * i + 1], row[3 * i + 2] = four[4 * i], four[4 * i + 1], four[4 * i + 2]


@compiled
def _widen(rows: np.ndarray, pixels: np.ndarray) -> None:
    """Rows of RGB bytes as rows of four bytes a pixel, which are moved at once."""
    for y in range(len(rows)):
        row, quad = rows[y], pixels[y].view(np.uint8)
        for x in range(row.size // 3):  # all four are written, as that is what vector instructions can do
            quad[4 * x], quad[4 * x + 1], quad[4 * x + 2], quad[4 * x + 3] = row[3 * x], row[3 * x + 1], row[3 * x + 2], 0
