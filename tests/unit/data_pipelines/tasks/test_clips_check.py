"""The second program, on clips drawn here by hand: squares, because they need no more than slices."""

import numpy as np
import pytest

from data_pipelines.tasks.clips import ClipTasks
from data_pipelines.tasks.clips_check import check_clip, fault
from mmrl.types import Media, TaskKey

RED, BLUE, GREEN = (225, 30, 35), (60, 110, 255), (40, 180, 70)


def clip(*shapes: tuple[tuple[int, int, int], list[tuple[int, int] | None]]) -> Media:
    """Squares of 10 pixels: (colour, its upper left corner x, y in each of 8 frames or None), the last one on top; 2 frames a second."""
    frames = np.full((8, 56, 56, 3), 30, np.uint8)
    for colour, path in shapes:
        for frame, corner in enumerate(path):
            if corner:
                x, y = corner
                frames[frame, y : y + 10, x : x + 10] = colour
    return Media(frames, np.arange(8) / 2)


def meta(kind: str, level: int, asked: list[str], names: list[str], **more) -> dict:
    counts = {"circle": 0, "square": len(names), "triangle": 0}
    return {"kind": kind, "level": level, "asked": asked, "shapes": names, "counts": counts, "duration_s": 4.0, **more}


RIGHT = [(5 + 4 * i, 20) for i in range(8)]
SLOW = [(5 + i, 40) for i in range(8)]
TURNING = [(5 + 5 * min(i, 3), 30 - 5 * max(i - 3, 0)) for i in range(8)]
LATE = [None, None, (5, 5), (5, 5), (5, 5), None, None, None]
"""Frames 2, 3, 4: from 1.0 to 2.5 s."""
LATER = [None, None, None, (30, 5), (30, 5), (30, 5), (30, 5), (30, 5)]
MEETING = [(5, 20), (8, 20), (11, 20), (25, 20), (25, 20), (11, 20), (8, 20), (5, 20)]
REST = [(30, 20)] * 8


@pytest.mark.parametrize(
    ("media", "words", "answer", "wrong"),
    [
        (clip((RED, RIGHT)), meta("direction", 1, ["red square"], ["red square"]), "right", "left"),
        (clip((RED, TURNING)), meta("direction", 3, ["red square"], ["red square"]), "up", "right"),
        (clip((RED, RIGHT), (BLUE, SLOW)), meta("counting", 1, ["square"], ["red square", "blue square"]), "2", "1"),
        (
            clip((RED, SLOW), (BLUE, RIGHT)),
            meta("speed", 1, ["red square", "blue square"], ["red square", "blue square"]),
            "B",
            "A",
        ),
        (
            clip((RED, LATER), (BLUE, LATE)),
            meta("order", 2, ["red square", "blue square"], ["red square", "blue square"]),
            "BA",
            "AB",
        ),
        (clip((RED, LATE)), meta("grounding", 1, ["red square"], ["red square"], span_s=[1.0, 2.5]), "1.0-2.5", "1.0-2.0"),
        (
            clip((RED, [(5, 5)] * 3 + [(9, 5)] + [(13, 5)] * 4)),  # leaves its place after frame 2, is there in frame 4
            meta("grounding", 2, ["red square"], ["red square"], span_s=[1.0, 2.0]),
            "1.0-2.0",
            "1.0-2.5",
        ),
        (
            clip((RED, MEETING), (BLUE, REST)),  # 5 of 10 pixels over each other in the frames 3 and 4, else 9 apart
            meta("grounding", 3, ["red square", "blue square"], ["red square", "blue square"], span_s=[1.5, 2.5]),
            "1.5-2.5",
            "1.5-3.0",
        ),
        (
            clip((RED, [(5, 5)] * 4 + [None] * 4), (BLUE, LATER)),
            meta("first_frame", 1, ["blue square", "red square"], ["red square", "blue square"]),
            "B",
            "A",
        ),
        (clip((RED, RIGHT)), meta("first_frame", 2, ["red square"], ["red square"]), "top left", "top right"),
    ],
)
def test_it_reads_the_answer_from_the_pixels(media, words, answer, wrong):
    if words["kind"] == "first_frame" and words["level"] == 2:
        media = clip((RED, [(5 + 4 * i, 4) for i in range(8)]))
    assert fault(media, words, answer) is None
    assert fault(media, words, wrong) == f"the answer is {answer!r}"
    with pytest.raises(AssertionError, match="the answer is"):
        check_clip(media, words, wrong)


@pytest.mark.parametrize(
    ("media", "words", "problem"),
    [
        (clip((RED, RIGHT)), meta("direction", 1, ["green square"], ["green square"]), "the frames show ['red square']"),
        (clip((RED, RIGHT)), meta("direction", 1, ["red square"], ["red square"], counts={"circle": 1}), "the frames show {"),
        (clip((RED, RIGHT)), meta("direction", 1, ["red square"], ["red square"], duration_s=3.5), "8 frames of 0.5 s do not last 3.5 s"),
        (
            clip((RED, [(5 + i, 5 + i) for i in range(8)])),
            meta("direction", 1, ["red square"], ["red square"]),
            "the shape moves 7.0 pixels",
        ),
        (
            clip((BLUE, [*REST[:1], *[None] * 7]), (RED, RIGHT)),
            meta("direction", 1, ["red square"], ["blue square", "red square"]),
            "the blue",
        ),
        (
            clip((RED, LATE), (BLUE, [corner and (30, 30) for corner in LATE])),
            meta("order", 1, ["red square", "blue square"], ["blue square", "red square"]),
            "the shapes appear in the frames [2, 2]",
        ),
        (
            clip((RED, RIGHT), (BLUE, [(5 + 4 * i, 40) for i in range(8)])),
            meta("speed", 1, ["red square", "blue square"], ["blue square", "red square"]),
            "the shapes move",
        ),
        (
            clip((RED, [(5, 5), None, (5, 5), None, None, (5, 5), (5, 5), None])),
            meta("grounding", 1, ["red square"], ["red square"]),
            "it happens in the frames [0, 2, 5, 6]",
        ),
        (clip((RED, LATE)), meta("grounding", 1, ["red square"], ["red square"], span_s=[1.0, 3.0]), "the event lasts 1.0-2.5 s"),
        (clip((RED, RIGHT)), meta("first_frame", 2, ["red square"], ["red square"]), "the shape lies across the middle"),
    ],
)
def test_it_refuses_what_the_frames_do_not_decide(media, words, problem):
    found = fault(media, words, "?")
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize("kind", ["direction", "order", "first_frame", "grounding"])
def test_a_clip_played_backwards_has_another_answer(kind):
    source = ClipTasks("train", kinds=(kind,), levels=(1, 2))
    for index in range(10):
        for level in (1, 2):
            task = source.task(TaskKey(f"{kind}-{level}", index))
            (media,) = task.media
            mirrored = task.meta["span_s"] == [6 - second for second in task.meta["span_s"][::-1]] if kind == "grounding" else False
            still = [5.5 - second for second in task.meta["span_s"][::-1]] == task.meta["span_s"] if kind == "grounding" else False
            assert mirrored or still or fault(Media(media.frames[::-1], media.timestamps_s), task.meta, task.solution)


def test_kinds_are_told_by_their_pixels():
    task = ClipTasks("train", kinds=("counting",)).task(TaskKey("counting-1", 0))
    swapped = task.meta | {"shapes": [name.replace("circle", "square") for name in task.meta["shapes"]]}
    if swapped["shapes"] == task.meta["shapes"]:
        swapped = task.meta | {"shapes": [name.replace("triangle", "circle") for name in task.meta["shapes"]]}
    assert fault(task.media[0], swapped, task.solution)
