import numpy as np
import pytest

from mmrl.errors import RewardError
from mmrl.seeding import stream
from mmrl.types import Media, Task
from rewards.spans import (
    TemporalIoU,
    grounding_metrics,
    parse_range,
    parse_released,
    parse_sentence,
    snap_outward,
    temporal_iou,
    true_span,
)


def task(meta: dict, stamps: list[float] | None = None) -> Task:
    picture = Media(np.zeros((1, 2, 2, 3), np.uint8))
    video = (Media(np.zeros((len(stamps), 2, 2, 3), np.uint8), np.array(stamps)),) if stamps else ()
    return Task("clip/1", (), (picture, *video), "", meta)


TRUTH = task({"span_s": [10, 20]})


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ((10, 20), (14, 26), 0.375),  # 6 / 16
        ((0, 48), (20, 30), 0.208333),  # 10 / 48
        ((0, 5), (0, 4), 0.8),
        ((1, 2), (1, 2), 1),
        ((0, 10), (10, 20), 0),  # they touch
        ((0, 10), (30, 40), 0),
        ((5, 5), (0, 10), 0),
        ((5, 5), (5, 5), 0),
    ],
)
def test_overlap(predicted, truth, expected):
    """Acceptance checks 1 of VideoSSR and of TimeLens."""
    assert temporal_iou(predicted, truth) == pytest.approx(expected, abs=1e-6)
    assert temporal_iou(truth, predicted) == temporal_iou(predicted, truth)


def test_union_and_hull_are_the_same_overlap():
    """VideoSSR divides by |P| + |G| - |P ∩ G|, TimeLens by the hull with the numerator held at 0."""
    for case in range(200):
        (s, e), (S, E) = np.sort(stream("spans", case).integers(0, 30, (2, 2))) + np.array([0, 1])
        shared = max(min(e, E) - max(s, S), 0)
        assert temporal_iou((s, e), (S, E)) == pytest.approx(shared / (e - s + E - S - shared))
        assert temporal_iou((s, e), (S, E)) == pytest.approx(shared / (max(e, E) - min(s, S)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16.7-25.0", (16.7, 25)),
        (" 10 - 20\n", (10, 20)),
        (".5-5.", (0.5, 5)),
        ("10-10", (10, 10)),
        ("20-10", None),
        ("from 10 to 20", None),
        ("10 to 20", None),
        ("10-20 seconds", None),
        ("-10-20", None),
        ("10--20", None),
        ("1.2.3-4", None),
        (".-5", None),
        ("nan-inf", None),
        ("0-" + "9" * 400, None),  # more than a float holds
        ("١-٢", None),  # digits, but not of this alphabet
        ("", None),
    ],
)
def test_strict_range(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    ("text", "expected", "released"),
    [
        ("from 00:01:10 to 00:01:20", (70, 80), (70, 80)),  # acceptance check 2
        ("The event happens in 3.5 - 7.25 seconds", (3.5, 7.25), (3.5, 7.25)),  # acceptance check 2
        ("between 01:10.5 and 1:01:20", (70.5, 3680), (70.5, 3680)),
        ("It runs from 3 TO 7 s, then 9 - 12", (3, 7), (3, 7)),
        ("10to20", (10, 20), (10, 20)),
        ("The tomato rolls in 4 - 6 seconds", (4, 6), (4, 6)),
        ("12 - 14.", (12, 14), (12, 14)),
        ("20 - 10", None, None),
        ("20 - 10, or 10 - 20", None, None),  # the first pair counts
        ("5 - 5", None, None),
        ("5 people and 7 dogs", None, (5, 7)),
        ("start 3.5 s, end 7.25 s", None, (3.5, 7.25)),
        ("-3 - 5", None, (3, 5)),
        ("3 - -5", None, (3, 5)),
        ("1:10 - 75", None, (10, 75)),
        ("nan - inf", None, None),
        ("0 - " + "9" * 400, None, None),
        ("7", None, None),
        ("", None, None),
    ],
)
def test_sentence_and_the_released_parser(text, expected, released):
    assert parse_sentence(text) == expected
    assert parse_released(text) == released


@pytest.mark.parametrize(
    ("span", "expected"),
    [((1.4, 3.2), (1, 4)), ((2, 4), (2, 4)), ((5.5, 9), (5, 6)), ((-1, 0.5), (0, 1)), ((8, 9), (6, 6))],
)
def test_snap_outward(span, expected):
    """Acceptance check 5 of TimeLens, stamps 0 to 6."""
    assert snap_outward(span, range(7)) == expected


@pytest.mark.parametrize("stamps", [[], [1, 1], [2, 1], [[0, 1]]])
def test_stamps_must_rise(stamps):
    with pytest.raises(ValueError, match="stamps must be rising seconds, at least one; got"):
        snap_outward((0, 1), stamps)


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [
        (TemporalIoU(), "The event happens in 14 - 26 seconds.", 0.375),
        (TemporalIoU(), "<think>1 - 2</think> 10 - 20", 1),
        (TemporalIoU(), "<think>10 - 20", 0),  # the thought never ended
        (TemporalIoU(), "10 and 20", 0),
        (TemporalIoU(answer="released"), "10 and 20", 1),
        (TemporalIoU(answer="strict"), "10-20", 1),
        (TemporalIoU(answer="strict"), "in 10-20", 0),
        (TemporalIoU(at_least=0.5), "10 - 15", 1),  # reached, not passed
        (TemporalIoU(at_least=0.5), "10 - 14.9", 0),
        (TemporalIoU(whole_seconds=True), "10.4 - 19.6", 1),
    ],
)
def test_reward(reward, text, expected):
    assert reward.value(TRUTH, text) == pytest.approx(expected)


def test_reward_against_the_snapped_truth():
    """Frames at 0, 1, … 9 s make blocks stamped 0, 2, 4, 6, 8: the span 3 to 5 becomes 2 to 6."""
    clip = task({"span_s": [3, 5]}, stamps=list(range(10)))
    assert TemporalIoU(snap=True).value(clip, "2 - 6") == 1
    assert TemporalIoU().value(clip, "2 - 6") == 0.5
    with pytest.raises(RewardError, match="task clip/1: snap needs a video with timestamps; the task has 1 media and no video"):
        TemporalIoU(snap=True).value(TRUTH, "2 - 6")


def test_first_of_several_spans_is_the_truth():
    assert true_span(task({"spans_s": [[1, 2], [5, 9]]})) == (1, 2)
    assert true_span(task({"spans_s": [[1, 2], [5, 9]], "span_s": [5, 9]})) == (5, 9)


@pytest.mark.parametrize(
    "meta", [{}, {"span_s": None}, {"spans_s": []}, {"span_s": [3]}, {"span_s": [3, 2]}, {"span_s": "3-4"}, {"span_s": [0, float("inf")]}]
)
def test_a_task_without_a_span_is_an_error_not_a_zero(meta):
    with pytest.raises(RewardError, match=r"task clip/1: meta span_s must be \[start, end\] in seconds"):
        TemporalIoU().value(task(meta), "1 - 2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "loose"}, "answer must be one of strict, sentence, released; got 'loose'"),
        ({"at_least": 0.0}, r"at_least must be in \(0, 1\]; got 0.0"),
    ],
)
def test_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        TemporalIoU(**fields)


def test_group_of_float32(make_group):
    values = TemporalIoU()(make_group(["14 - 26", "none"], meta={"span_s": [10, 20]}))
    assert values.dtype == np.float32
    assert values.tolist() == [0.375, 0]


def test_metrics_count_failures():
    """Five queries, one of them without an answer: it is a 0, not left out (leaving it out would give an mIoU of 0.5)."""
    assert grounding_metrics([0.3, 0.5, 0.7, 0.5, 0.0]) == pytest.approx({"mIoU": 0.4, "R1@0.3": 0.8, "R1@0.5": 0.6, "R1@0.7": 0.2})


@pytest.mark.parametrize("overlaps", [[], [0.5, float("nan")], [1.2], [-0.1], [[0.5]]])
def test_metrics_refuse_what_is_no_overlap(overlaps):
    with pytest.raises(ValueError, match=r"overlaps must be numbers in \[0, 1\], one per query"):
        grounding_metrics(overlaps)
