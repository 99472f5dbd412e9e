"""What answers that do not look at the video earn."""

from typing import NamedTuple


class Baseline(NamedTuple):
    """Expected rewards, in [0, 1], of blind answers, counted over every draw of a generator."""

    chance: float
    """Graded reward of an answer drawn like the true ones."""
    constant: float
    """Graded reward of always the same answer, the best one."""
    answer: str
    """That answer."""
    success_chance: float
    """Share of exactly right answers among those drawn like the true ones."""
    success_constant: float
    """Share of exactly right answers of the constant that is right most often."""
