"""Numbers as text: cells, and tables in Markdown."""

from collections.abc import Sequence

from mmrl.lab.statistics import Interval

NONE = "–"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is flush left, the others right. Ends without a newline."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def number(value: float | None) -> str:
    """Four significant digits."""
    return NONE if value is None else f"{value:.4g}".replace("-", "−")


def signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.4g}".replace("-", "−")


def share(value: float | None) -> str:
    """0.125 -> "12.5 %"."""
    return NONE if value is None else f"{100 * value:.1f} %"


def interval(value: Interval | None) -> str:
    """ " [low, high]", or nothing where there is none."""
    return "" if value is None else f" [{number(value[0])}, {number(value[1])}]"
