"""Time spans in answers: parsing, temporal IoU, and the metrics of temporal grounding. A span is (start, end) in seconds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import numpy as np

from mmrl.errors import RewardError
from mmrl.types import Group, Task
from rewards.answer import after_think

Span = tuple[float, float]

FRAMES_PER_STAMP = 2
"""The vision tower merges two frames into one block, and the prompt stamps a block with the time of its first."""

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*")
_TO = re.compile(r"(?<=[0-9.])\s*to\s*(?=[0-9.])")
_CLOCK = re.compile(r"(?<![0-9.:])(?:([0-9]{1,2}):)?([0-9]{1,2}):([0-9]{2}(?:\.[0-9]+)?)(?![0-9:])")
_PAIR = re.compile(r"(?<![0-9.:-])([0-9]+(?:\.[0-9]+)?)\s*-\s*([0-9]+(?:\.[0-9]+)?)(?![0-9:])")
_LOOSE_PAIR = re.compile(r"([0-9]+\.?[0-9]*)\s*-\s*([0-9]+\.?[0-9]*)")
_ANY = re.compile(r"\b(?:[0-9]+\.[0-9]+|[0-9]+)\b")


def parse_range(text: str) -> Span | None:
    """VideoSSR's strict form (arXiv:2511.06281): the whole text is "<number>-<number>", spaces allowed, start <= end; else None.

    >>> parse_range("16.7 - 25.0")
    (16.7, 25.0)
    """
    match = _RANGE.fullmatch(text)
    span = (float(match[1]), float(match[2])) if match else None
    return span if span and span[0] <= span[1] < float("inf") else None


def parse_sentence(text: str) -> Span | None:
    """The first span in a sentence (TimeLens, arXiv:2512.14698): two clock times (HH:MM:SS or MM:SS), else "a - b" or "a to b".

    None where there is neither, where start >= end, and for a negative number. Narrower than the released parser, which replaces "to"
    inside words too and takes any two numbers for a span ("5 people and 7 dogs"): see `parse_released`.

    >>> parse_sentence("The event happens in 3.5 - 7.25 seconds.")
    (3.5, 7.25)
    """
    text = _TO.sub("-", text.lower())
    if len(times := _clock_times(text)) >= 2:
        return _ordered(times[0], times[1])
    pair = _PAIR.search(text)
    return _ordered(float(pair[1]), float(pair[2])) if pair else None


def parse_released(text: str) -> Span | None:
    """The first span as TimeLens' released parser.py finds it: "to" counts as a hyphen wherever it stands, then two clock times, else
    "a - b", else the first two numbers of the text."""
    text = text.lower().replace("to", "-")
    if len(times := _clock_times(text)) >= 2:
        return _ordered(times[0], times[1])
    pair = _LOOSE_PAIR.search(text)
    numbers = [pair[1], pair[2]] if pair else _ANY.findall(text)
    return _ordered(float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else None


def _clock_times(text: str) -> list[float]:
    return [int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds) for hours, minutes, seconds in _CLOCK.findall(text)]


def _ordered(start: float, end: float) -> Span | None:
    return (start, end) if start < end < float("inf") else None


def temporal_iou(predicted: Span, truth: Span) -> float:
    """|P ∩ G| / |P ∪ G|, in [0, 1]; 0 where they do not overlap, so for a span of length 0 too.

    VideoSSR divides by the union, TimeLens by the hull, max(end) - min(start). They are the same where the spans overlap, and where they do
    not the numerator is 0.
    """
    overlap = min(predicted[1], truth[1]) - max(predicted[0], truth[0])
    if overlap <= 0:
        return 0.0
    return overlap / (max(predicted[1], truth[1]) - min(predicted[0], truth[0]))


def snap_outward(span: Span, stamps: Sequence[float] | np.ndarray) -> Span:
    """The largest stamp <= start and the smallest >= end (TimeLens-7B's data); outside the stamps, the first or last of them.

    `stamps`: seconds, rising, at least one.
    """
    stamps = np.asarray(stamps, np.float64)
    if stamps.ndim != 1 or not len(stamps) or (np.diff(stamps) <= 0).any():
        raise ValueError(f"stamps must be rising seconds, at least one; got {stamps!r}")
    start = max(int(np.searchsorted(stamps, span[0], "right")) - 1, 0)
    end = min(int(np.searchsorted(stamps, span[1], "left")), len(stamps) - 1)
    return float(stamps[start]), float(stamps[end])


_PARSERS: Mapping[str, Callable[[str], Span | None]] = {"strict": parse_range, "sentence": parse_sentence, "released": parse_released}


@dataclass(frozen=True)
class TemporalIoU:
    """Overlap of the answered with the true span over their union: r of TimeLens (arXiv:2512.14698). Range [0, 1]; no span earns 0.

    Reads `meta["span_s"]`, or the first of `meta["spans_s"]`: [start, end] in seconds. The answer is what follows the thought.
    """

    answer: Literal["sentence", "strict", "released"] = "sentence"
    """How the span is read: the first "a - b", "a to b" or pair of clock times; "strict": nothing but "a-b"; "released": the first two
    numbers where there is no such form, as TimeLens' code does."""
    snap: bool = False
    """Widen the true span to the stamps of the first video, one per two frames, as TimeLens-7B's data does."""
    whole_seconds: bool = False
    """Round the answer to 1 s first, as TimeLens' evaluation does."""
    at_least: float | None = None
    """1 when the overlap reaches it, else 0: R1@0.5 and the like. None = the overlap itself."""

    per_completion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.answer not in _PARSERS:
            raise ValueError(f"answer must be one of {', '.join(_PARSERS)}; got {self.answer!r}")
        if self.at_least is not None and not 0 < self.at_least <= 1:
            raise ValueError(f"at_least must be in (0, 1]; got {self.at_least}")

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([self.value(group.task, rollout.completion.text) for rollout in group.rollouts], np.float32)

    def value(self, task: Task, text: str) -> float:
        """The reward of one completion's text."""
        truth = true_span(task)
        if self.snap:
            truth = snap_outward(truth, _stamps(task))
        answer = after_think(text)
        span = _PARSERS[self.answer](answer) if answer is not None else None
        if span is None:
            return 0.0
        if self.whole_seconds:
            span = (float(round(span[0])), float(round(span[1])))
        overlap = temporal_iou(span, truth)
        return overlap if self.at_least is None else float(overlap >= self.at_least)


def true_span(task: Task) -> Span:
    """`meta["span_s"]`, or the first of `meta["spans_s"]`. RewardError where there is none, or it is no span."""
    spans = task.meta.get("spans_s") or [None]
    span = task.meta.get("span_s", spans[0])
    sound = isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(x, int | float) and isfinite(x) for x in span)
    if not sound or span[0] > span[1]:
        raise RewardError(
            f"task {task.id}: meta span_s must be [start, end] in seconds, start <= end (or spans_s a list of such); got {span!r}, "
            f"meta has {sorted(task.meta)}"
        )
    return float(span[0]), float(span[1])


def _stamps(task: Task) -> np.ndarray:
    for media in task.media:
        if media.timestamps_s is not None:
            return media.timestamps_s[::FRAMES_PER_STAMP]
    raise RewardError(f"task {task.id}: snap needs a video with timestamps; the task has {len(task.media)} media and no video")


def grounding_metrics(overlaps: Sequence[float] | np.ndarray) -> dict[str, float]:
    """ "mIoU" and "R1@0.3", "R1@0.5", "R1@0.7" (share of overlaps >= it), each over ALL queries: an answer without a span is a 0 in
    `overlaps`, not left out. ValueError for an empty list or a value outside [0, 1], NaN included."""
    values = np.asarray(overlaps, np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"overlaps must be numbers in [0, 1], one per query, 0 where the answer has no span; got {values!r}")
    return {"mIoU": float(values.mean())} | {f"R1@{limit}": float((values >= limit).mean()) for limit in (0.3, 0.5, 0.7)}
