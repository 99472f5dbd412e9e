"""Checks of arguments that several perturbations share."""

import math

from mmrl.types import Media


def within(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must lie in [{low}, {high}]; got {value}")


def share(name: str, value: float) -> None:
    """ValueError unless 0 <= value <= 1."""
    within(name, value, 0, 1)


def need_frames(media: Media, least: int, what: str) -> int:
    """The number of frames; ValueError if there are fewer than `least`."""
    count = len(media.frames)
    if count < least:
        raise ValueError(f"{what} needs {least} or more frames; got {count}" + ("" if media.is_video else " (a picture)"))
    return count
