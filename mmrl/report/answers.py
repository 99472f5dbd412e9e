"""What a completion answers to a video task, next to the truth: spans of seconds, counts, and orders of clips.

Read with the rewards' own functions, in their widest form: a stricter reward may earn nothing for what is drawn here. An answer that
cannot be read is kept as such, with the reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.errors import MmrlError
from mmrl.report.run_folder import finite
from rewards.answer import after_think
from rewards.spans import parse_range, parse_sentence, temporal_iou
from rewards.videossr import read_counts

ROUNDING_S = 0.05
"""Spans are often written with one decimal, so a frame this close to an edge counts as on it."""


def truth_of(meta: Mapping[str, Any], solution: str, end: float, place: str) -> dict[str, Any] | None:
    """What the page draws of a task's true answer; None for a task whose answer is no span, count or order.

    {"kind": "grounding", "spans": [[start, end], ...], "end": seconds of the axis}: the rewards compare with the first span;
    {"kind": "counting", "counts": [4, 3], "names": ["circle", "square"]};
    {"kind": "jigsaw", "order": "312"}: clip numbers as shown, first in time first.
    `end`: how long the clip is, in seconds. Raises MmrlError, naming `place`, for spans that are no pairs of seconds.
    """
    match meta.get("kind"):
        case "grounding" if "span_s" in meta or "spans_s" in meta:
            spans = _spans(meta, place)
            return {"kind": "grounding", "spans": spans, "end": max(end, *(span[1] for span in spans))}
        case "counting" if counts := read_counts(solution):
            return {"kind": "counting", "counts": list(counts), "names": _names(meta, len(counts))}
        case "jigsaw" if solution:
            return {"kind": "jigsaw", "order": solution}
    return None


def read_answer(truth: Mapping[str, Any] | None, text: str) -> dict[str, Any]:
    """{} without a truth; else {"answer": {"span", "tiou"} | {"counts"} | {"order", "right"} | {"invalid": why}}."""
    if truth is None:
        return {}
    answer = after_think(text)
    if answer is None:
        return {"answer": {"invalid": "cut off in its thought"}}
    return {"answer": {"grounding": _span, "counting": _counts, "jigsaw": _order}[truth["kind"]](truth, answer)}


def mark_inside(film: dict[str, Any], spans: Sequence[Sequence[float]]) -> None:
    """Adds "inside": for each shown frame whether it is in a span, the start included and the end not."""
    film["inside"] = [any(start - ROUNDING_S <= at < end - ROUNDING_S for start, end in spans) for at in film["at"]]


def _span(truth: Mapping[str, Any], answer: str) -> dict[str, Any]:
    span = parse_range(answer) or parse_sentence(answer)
    if span is None:
        return {"invalid": "no span"}
    start, end = truth["spans"][0]
    return {"span": list(span), "tiou": round(temporal_iou(span, (start, end)), 4)}


def _counts(truth: Mapping[str, Any], answer: str) -> dict[str, Any]:
    counts, wanted = read_counts(answer), len(truth["counts"])
    return {"counts": list(counts)} if len(counts) == wanted else {"invalid": f"{len(counts) or 'no'} numbers, not {wanted}"}


def _order(truth: Mapping[str, Any], answer: str) -> dict[str, Any]:
    if sorted(answer) != sorted(truth["order"]):
        return {"invalid": f"no order of {len(truth['order'])} clips"}
    return {"order": answer, "right": sum(a == b for a, b in zip(answer, truth["order"], strict=True))}


def _spans(meta: Mapping[str, Any], place: str) -> list[list[float]]:
    """`span_s`, then those of `spans_s` that are not it."""
    first = [meta["span_s"]] if "span_s" in meta else []
    given = meta.get("spans_s", [])
    read: list[list[float]] = []
    for span in first + [span for span in given if span not in first] if isinstance(given, list) else [given]:
        pair = [finite(second, f"{place}: meta: span") for second in span] if isinstance(span, list) else []
        if len(pair) != 2 or pair[0] is None or pair[1] is None or pair[0] > pair[1]:
            raise MmrlError(
                f"{place}: meta: span_s must be [start, end] in seconds, start <= end, and spans_s a list of such; got {span!r}"
            )
        read.append([pair[0], pair[1]])
    if not read:
        raise MmrlError(f"{place}: meta: spans_s is empty; a grounding task needs at least one [start, end]")
    return read


def _names(meta: Mapping[str, Any], count: int) -> list[str]:
    """What is counted: the keys of `counts`, or for another number of numbers what was `asked`."""
    for names in (meta.get("counts"), meta.get("asked")):
        if isinstance(names, dict | list) and len(names) == count:
            return [str(name) for name in names]
    return [""] * count
