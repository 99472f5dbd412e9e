"""Curves as SVG: the mean over seeds, in a band from the lowest to the highest seed, one colour a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import numpy as np

from mmrl.report.charts import thin
from mmrl.report.run_folder import Series

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 64, 16, 40, 44
LINE = 18
"""Pixels of a line of the legend, which stands below the axes."""
COLOURS = ("#3b6ff0", "#e07b2a", "#149680", "#a94fce", "#d23f55", "#8a7b12", "#1e93c9", "#7b8593")
"""Those of the report."""
DASHES = ("", "6 3", "2 3")
"""From the ninth variant on, colours come again with another line."""


def draw_curves(title: str, curves: Mapping[str, Sequence[Series]]) -> str:
    """An SVG picture. `curves`: variant -> a series per seed. A point is the mean over the seeds that have a value at that step; the band
    goes from the least to the greatest of them. Long series are thinned to means of neighbouring steps first, as in the report."""
    bands = {name: band for name, seeds in curves.items() if len((band := _band(seeds))[0])}
    height = HEIGHT + LINE * len(curves)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#171a21">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    if bands:
        steps = np.concatenate([band[0] for band in bands.values()])
        values = np.concatenate([np.concatenate(band[1:]) for band in bands.values()])
        x_low, x_high = _widened(float(steps.min()), float(steps.max()))
        y_low, y_high = _widened(float(values.min()), float(values.max()))
    else:
        x_low, x_high, y_low, y_high = 0.0, 1.0, 0.0, 1.0

    def x(step: float) -> float:
        return round(LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    for tick in ticks(y_low, y_high):
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}" stroke="#e2e5ea"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end" fill="#5d6673">{tick:g}</text>')
    for tick in ticks(x_low, x_high):
        lines.append(f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#5d6673">{tick:g}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#5d6673">step</text>')
    for number, (name, seeds) in enumerate(curves.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        stroke = f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
        if name in bands:
            at, mean, low, high = bands[name]
            edge = [(x(s), y(v)) for s, v in zip([*at, *at[::-1]], [*low, *high[::-1]], strict=True)]
            lines.append(f'<polygon points="{_points(edge)}" fill="{colour}" fill-opacity="0.15"/>')
            middle = [(x(s), y(v)) for s, v in zip(at, mean, strict=True)]
            lines.append(f'<polyline points="{_points(middle)}" fill="none" {stroke}/>')
        row = HEIGHT + LINE * number + 8
        lines.append(f'<line x1="{LEFT}" x2="{LEFT + 24}" y1="{row - 4}" y2="{row - 4}" {stroke}/>')
        lines.append(f'<text x="{LEFT + 32}" y="{row}">{escape(name)} ({len(seeds)} seed{"" if len(seeds) == 1 else "s"})</text>')
    return "\n".join([*lines, "</svg>", ""])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high], at most `most`: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * power) <= most - 1)
    return [float(f"{n * step:.10g}") for n in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _band(seeds: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean, least and greatest value over the seeds, each [S]."""
    found: dict[int, list[float]] = {}
    for series in seeds:
        points = thin(series)
        for step, value in zip(points["steps"], points["values"], strict=True):
            if value is not None:
                found.setdefault(step, []).append(value)
    steps = sorted(found)
    return (
        np.array(steps, np.float64),
        np.array([np.mean(found[step]) for step in steps]),
        np.array([min(found[step]) for step in steps]),
        np.array([max(found[step]) for step in steps]),
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range itself, or one around a single value."""
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0))


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:g},{b:g}" for a, b in pairs)
