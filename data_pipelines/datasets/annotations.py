"""Files that say when something happens in a video, as they are published: one `Event` a sentence, whatever the format.

charades_sta   text, a line: `VIDEO START END##SENTENCE` (Charades-STA, arXiv:1705.02101)
activitynet    JSON, {VIDEO: {"duration": s, "timestamps": [[s, e], ...], "sentences": [...]}} (ActivityNet Captions, arXiv:1705.00754);
               TimeLens-Bench (arXiv:2512.14698) has the names "spans" and "queries" instead
qvhighlights   JSON lines: "qid", "query", "duration", "vid", "relevant_windows": [[s, e], ...] (QVHighlights, arXiv:2107.09609)
timelens       JSON lines: "video_path", "duration", "events": [{"query": ..., "span": [[s, e], ...] or [s, e]}] (TimeLens-100K)

What a format has besides is not looked at. Anything missing or of the wrong kind is a TaskError that names file and line (in a JSON file,
the video) and the value that came.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from mmrl.errors import TaskError

Format = Literal["charades_sta", "activitynet", "qvhighlights", "timelens"]
_NAMES = (("timestamps", "sentences"), ("spans", "queries"))


@dataclass(frozen=True)
class Event:
    """A sentence and when it is true."""

    where: str
    """ "file:line", for messages; in a JSON file "file: 'video'[index]"."""
    video: str
    """The video's name or path, as the file has it."""
    number: int
    """Tells it from other events of the video: its line, or its place in the video's list, from 1."""
    query: str
    """The sentence on one line, without a full stop at its end."""
    spans_s: tuple[tuple[float, float], ...]
    """(start, end) in seconds, one or more; finite numbers, nothing else is checked."""
    duration_s: float | None
    """Of the video; None where the format does not say."""


def read_events(path: Path, format: Format | None = None) -> list[Event]:
    """All events of a file, in its order. `format` None tells it by the first line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read as text: {error}") from error
    readers = {"charades_sta": _charades_sta, "activitynet": _activitynet, "qvhighlights": _qvhighlights, "timelens": _timelens}
    events = list(readers[format or format_of(path, text)](path, text))
    if not events:
        raise TaskError(f"{path}: no events in it")
    return events


def format_of(path: Path, text: str) -> Format:
    """By the first line that is not blank; TaskError if it is of no known format."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if not first:
        raise TaskError(f"{path}: is empty")
    if not first.lstrip().startswith("{"):
        if "##" in first:
            return "charades_sta"
        raise TaskError(
            f"{path}:1: {_shown(first)} is the start of no known format; name it: format is one of {', '.join(get_args(Format))}"
        )
    try:
        row = json.loads(first)
    except ValueError:  # an object over several lines
        return "activitynet"
    if "events" in row:
        return "timelens"
    if "qid" in row or "relevant_windows" in row:
        return "qvhighlights"
    if row and all(isinstance(value, dict) for value in row.values()):
        return "activitynet"
    raise TaskError(
        f"{path}:1: an object with the keys {_shown(sorted(row))} is of no known format; name it: format is one of "
        f"{', '.join(get_args(Format))}"
    )


def _charades_sta(path: Path, text: str) -> Iterator[Event]:
    for number, line in _lines(text):
        where = f"{path}:{number}"
        times, mark, sentence = line.partition("##")
        parts = times.split()
        if not mark or len(parts) != 3:
            raise TaskError(f"{where}: got {_shown(line)}; a line is VIDEO START END##SENTENCE")
        try:
            span = [float(part) for part in parts[1:]]
        except ValueError as error:
            raise TaskError(f"{where}: start and end: got {_shown(parts[1:])}; give seconds") from error
        yield Event(where, parts[0], number, _query(sentence, where), _spans([span], where), None)


def _activitynet(path: Path, text: str) -> Iterator[Event]:
    try:
        videos = json.loads(text)
    except ValueError as error:
        raise TaskError(f"{path}: not JSON: {error}") from error
    if not isinstance(videos, dict):
        raise TaskError(f"{path}: got {_shown(videos)}; give an object from videos to their events")
    for video, row in videos.items():
        where = f"{path}: {video!r}"
        _object(row, where)
        spans_key, queries_key = next((names for names in _NAMES if names[0] in row), _NAMES[0])
        spans, queries = _need(row, spans_key, list, where), _need(row, queries_key, list, where)
        if len(spans) != len(queries):
            raise TaskError(f"{where}: {len(spans)} {spans_key} but {len(queries)} {queries_key}; give one for each")
        duration = _duration(row, where)
        for index, (span, query) in enumerate(zip(spans, queries, strict=True)):
            here = f"{where}[{index}]"
            yield Event(here, video, index + 1, _query(query, here), _spans([span], here), duration)


def _qvhighlights(path: Path, text: str) -> Iterator[Event]:
    for number, row, where in _rows(path, text):
        if "relevant_windows" not in row:
            raise TaskError(f"{where}: relevant_windows is missing (the test split has none); take the train or val split")
        spans = _spans(_need(row, "relevant_windows", list, where), where)
        yield Event(where, _need(row, "vid", str, where), number, _query(row.get("query"), where), spans, _duration(row, where))


def _timelens(path: Path, text: str) -> Iterator[Event]:
    for number, row, where in _rows(path, text):
        video, duration = _need(row, "video_path", str, where), _duration(row, where)
        for index, event in enumerate(_need(row, "events", list, where)):
            here = f"{where}: events[{index}]"
            _object(event, here)
            span = _need(event, "span", list, here)
            spans = span if span and isinstance(span[0], list) else [span]
            # the same video may stand on several lines
            yield Event(here, video, 1000 * number + index, _query(event.get("query"), here), _spans(spans, here), duration)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())  # JSON may hold other ends of lines


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    for number, line in _lines(text):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where}: not JSON: {error}") from error
        _object(row, where)
        yield number, row, where


def _object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: got {_shown(value)}; give a JSON object")


def _need(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in row:
        raise TaskError(f"{where}: {key} is missing; there are {', '.join(sorted(row)) or 'no keys'}")
    if not isinstance(row[key], kind) or not row[key]:
        raise TaskError(f"{where}: {key}: got {_shown(row[key])}; give a {kind.__name__} that is not empty")
    return row[key]


def _duration(row: Mapping[str, Any], where: str) -> float:
    value = row.get("duration")
    if not _is_number(value) or value <= 0:
        raise TaskError(f"{where}: duration: got {_shown(value)}; give the video's seconds")
    return float(value)


def _query(value: Any, where: str) -> str:
    sentence = " ".join(value.split()).rstrip(". ") if isinstance(value, str) else ""
    if not sentence:
        raise TaskError(f"{where}: the sentence: got {_shown(value)}; give what happens, in words")
    return sentence


def _spans(values: list[Any], where: str) -> tuple[tuple[float, float], ...]:
    for value in values:
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)):
            raise TaskError(f"{where}: the span: got {_shown(value)}; give [start, end] in seconds")
    return tuple((float(start), float(end)) for start, end in values)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
