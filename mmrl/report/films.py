"""The clips of a task as plain data for the page's script: which of their frames it shows, and when they were seen."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from mmrl.errors import MmrlError
from mmrl.report.run_folder import finite

FRAMES_OF_ONE = 16
"""Most frames shown of a clip that is alone."""
FRAMES_OF_ALL = 24
"""Most frames shown of several clips together; at least two of each."""


def films_of(videos: Sequence[Mapping[str, Any]] | None, place: str) -> list[dict[str, Any]]:
    """One object a clip: "frames" (paths) and "at" (their seconds), thinned evenly, and "of", how many frames there are.

    `videos` is the column of a rollouts file. Raises MmrlError, naming `place`, for frames without a time.
    """
    videos = videos or ()
    limit = FRAMES_OF_ONE if len(videos) == 1 else max(2, FRAMES_OF_ALL // max(1, len(videos)))
    films = []
    for number, video in enumerate(videos):
        paths, stamps = list(video.get("frames") or ()), list(video.get("timestamps_s") or ())
        if not paths or len(paths) != len(stamps):
            raise MmrlError(f"{place}: videos.{number} has {len(paths)} frames and {len(stamps)} timestamps; the report needs one a frame")
        times = [finite(stamp, f"{place}: videos.{number}.timestamps_s") for stamp in stamps]
        if None in times:
            raise MmrlError(f"{place}: videos.{number}: its timestamps must be finite seconds; got {stamps[times.index(None)]!r}")
        kept = thinned(len(paths), limit)
        films.append({"frames": [paths[n] for n in kept], "at": [times[n] for n in kept], "of": len(paths)})
    return films


def thinned(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 .. count - 1, the first among them, in even steps."""
    shown = min(count, limit)
    return [n * count // shown for n in range(shown)]


def end_s(films: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> float:
    """Where a time axis over the first clip ends, in seconds: the task's `duration_s`, or the time at which one more frame would come."""
    stamps = films[0]["at"] if films else [0.0]
    last = max(stamps)
    duration = meta.get("duration_s")
    if isinstance(duration, int | float) and not isinstance(duration, bool) and last < duration < inf:
        return float(duration)
    return last + ((last - min(stamps)) / (len(stamps) - 1) if len(stamps) > 1 else 1.0)
