"""Pixels of uint8 [F, H, W, 3] at other places of their frame, as they are."""

import math

import numpy as np

from data_pipelines.compiled import compiled
from data_pipelines.perturb.pixels import BLOCK, still

STRIP = 16
"""Rows of a quarter turn that are made before they are put in place; even."""


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
    count, side = frames.shape[:2]
    target = np.empty(frames.shape, np.uint8)
    words = side + 2  # the last begins three bytes behind the one before and has eight
    lines_of_cache = -(-(3 * words + 5) // 64)
    pitch = 64 * (lines_of_cache | 1)  # odd, so that a column's pixels do not fight for one place of the cache
    room, lines = np.zeros((words, pitch), np.uint8), np.zeros((STRIP, pitch), np.uint8)
    pairs = [np.ndarray((len(rows), words), np.uint64, rows, strides=(pitch, 3)) for rows in (room, lines)]
    _turn(still(frames).reshape(count, side, -1), anticlockwise, room, pairs[0], lines, pairs[1], target.reshape(count, side, -1))
    return target


@compiled
def _turn(
    frames: np.ndarray, anticlockwise: bool, room: np.ndarray, pairs: np.ndarray, lines: np.ndarray, line_pairs: np.ndarray,
    target: np.ndarray,
) -> None:  # fmt: skip
    """Squares of two by two pixels, a pair of neighbours read and written as one word at every third byte: what a word holds beyond its
    pair, the next one writes over. `pairs` and `line_pairs` are such words of `room`, a frame within a blank border, and of `lines`."""
    count, side, size = frames.shape
    pixel, bits, end = np.uint64(0xFFFFFF), np.uint64(24), np.uint64(side)
    one, two = np.uint64(1), np.uint64(2)
    for n in range(count):
        for y in range(side):
            row, copy = frames[n, y], room[y + 1, 3:]
            for i in range(size):
                copy[i] = row[i]
        for top in range(0, side, STRIP):
            height = min(STRIP, side - top)
            for k in range(0, height, 2):
                first, second = line_pairs[k], line_pairs[k + 1]
                x, start = np.uint64(0), np.uint64(top + k)
                if anticlockwise:
                    column = end - one - start
                    while x < end:
                        above, below = pairs[x + one, column], pairs[x + two, column]
                        first[x] = (above >> bits) & pixel | ((below >> bits) & pixel) << bits
                        second[x] = above & pixel | (below & pixel) << bits
                        x += two
                else:
                    column = start + one
                    while x < end:
                        below, above = pairs[end - x, column], pairs[end - one - x, column]
                        first[x] = below & pixel | (above & pixel) << bits
                        second[x] = (below >> bits) & pixel | ((above >> bits) & pixel) << bits
                        x += two
            for k in range(height):  # not each line at once: what was just written is slow to read in other words
                row, copy = target[n, top + k], lines[k]
                for i in range(size):
                    row[i] = copy[i]


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
