"""Pixels of uint8 [F, H, W, 3] at other places of their frame, as they are."""

import math

import numpy as np

from data_pipelines.compiled import compiled
from data_pipelines.perturb.pixels import still


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
    pixels, target = _quads(frames), np.empty(frames.shape, np.uint8)
    for frame, turned in zip(still(frames), target, strict=True):
        _widen(frame, pixels)
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
    pixels, target = _quads(frames), np.empty(frames.shape, np.uint8)
    places = _origins(height, width, pixels.shape[1], *steps)
    for frame, tilt in zip(still(frames), target, strict=True):
        _widen(frame, pixels)
        _take(pixels.reshape(-1), places, tilt)
    return target


@compiled
def _origins(height: int, width: int, pitch: int, cos: int, sin: int, left: int, top: int) -> np.ndarray:
    """Which of `_quads` comes where, uint32 [H, W]; one below the frame for black."""
    places = np.empty((height, width), np.uint32)
    for y in range(height):
        for x in range(width):
            from_x, from_y = (left + x * cos + y * sin) >> 16, (top - x * sin + y * cos) >> 16
            inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
            places[y, x] = from_y * pitch + from_x if inside else height * pitch
    return places


@compiled
def _take(pixels: np.ndarray, places: np.ndarray, target: np.ndarray) -> None:
    height, width = places.shape
    line = np.empty(width, np.uint32)
    four = line.view(np.uint8)
    for y in range(height):
        wanted, row = places[y], target[y].reshape(-1)
        for x in range(width):
            line[x] = pixels[wanted[x]]
        for x in range(width):
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = four[4 * x], four[4 * x + 1], four[4 * x + 2]


def _quads(frames: np.ndarray) -> np.ndarray:
    """Room for a frame of four bytes a pixel, which are moved at once, and a black row below: uint32 [H + 1, pitch]. The pitch is never a
    high power of two, so that the pixels of a column do not fight for one place of the cache."""
    height, width = frames.shape[1:3]
    return np.zeros((height + 1, (-(-width // 16) | 1) * 16), np.uint32)


@compiled
def _widen(frame: np.ndarray, pixels: np.ndarray) -> None:
    height, width = frame.shape[:2]
    for y in range(height):
        row, quad = frame[y].reshape(-1), pixels[y].view(np.uint8)
        for x in range(width):  # all four are written, as that is what vector instructions can do
            quad[4 * x], quad[4 * x + 1], quad[4 * x + 2], quad[4 * x + 3] = row[3 * x], row[3 * x + 1], row[3 * x + 2], 0
