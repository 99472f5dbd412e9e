from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.tasks.contact_sheet import ACCENT, LINES, PAPER, WIDTH, card, contact_sheet, film, maze_picture, question, shown, wrap
from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.tasks.maze_render import ROUTE
from mmrl.types import Media, Task, TaskKey


def plain(frames: int = 1, video: bool = False, text: str = "What is this?") -> Task:
    pixels = np.full((frames, 60, 90, 3), (10, 200, 30), np.uint8)
    media = Media(pixels, np.arange(frames) / 2 if video else None)
    content = [{"type": "video" if video else "image"}, {"type": "text", "text": text}]
    return Task("own/1", ({"role": "user", "content": content},), (media,), "a green field", {})


def pixels(image) -> np.ndarray:
    return np.array(image).astype(int)


def test_a_sheet_holds_all_cards():
    source = MazeTasks("train")
    sheet = contact_sheet([source.task(source.key(i)) for i in range(5)], columns=2)
    assert sheet.width == 2 * (WIDTH + 42) + 14
    below_last = pixels(sheet)[-30, -30]
    assert tuple(below_last) == PAPER  # the sixth place is empty
    assert sheet.tobytes() == contact_sheet([source.task(source.key(i)) for i in range(5)], columns=2).tobytes()


@pytest.mark.parametrize("fields", [{}, {"style": "ariadne"}, {"render": False}, {"rows": 20, "cols": 20}])
def test_the_solution_is_drawn_into_the_maze(fields):
    picture = maze_picture(MazeTasks("train", **fields).task(TaskKey("moves=5", 0)))
    assert picture.width <= WIDTH
    assert (abs(pixels(picture) - ROUTE).max(axis=-1) < 40).sum() > 20


@pytest.mark.parametrize("task", [plain(), plain(9, video=True)])
def test_other_tasks_show_their_picture_or_frames(task):
    green = (pixels(card(task)) == (10, 200, 30)).all(axis=-1)
    assert green.any(axis=0).sum() == 90 if len(task.media[0].frames) == 1 else green.any(axis=0).sum() > 200


def test_seconds_inside_the_true_span_are_coloured():
    """Nine frames at 0, 0.5, … 4 seconds; in tenths of a second a span may begin a little late."""
    task = plain(9, video=True)
    spans = {"none": {}, "two": {"span_s": [1.04, 2.0]}, "all": {"span_s": [0.0, 9.0]}}
    blue = {}
    for name, meta in spans.items():
        picture = shown(replace(task, meta=meta))
        assert picture is not None
        blue[name] = int((abs(pixels(picture) - ACCENT).max(axis=-1) < 60).sum())
    assert blue["none"] == 0
    assert 0 < blue["two"] < blue["all"] / 3


def test_a_task_of_text_alone_has_a_card():
    task = Task("text/1", ({"role": "user", "content": "2 + 2?"},), (), "4", {})
    assert question(task) == "2 + 2?"
    assert contact_sheet([task]).width > WIDTH


def test_long_words_are_broken_and_long_texts_cut():
    assert len(wrap("x" * 100, 13)) > 1
    cut = wrap("word " * 500, 13)
    assert len(cut) == LINES
    assert cut[-1].endswith("…")
    assert wrap("", 13) == [""]


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="got 0 and 4"):
        contact_sheet([])


def test_a_video_is_shown_as_rows_of_frames_the_first_and_last_among_them():
    """30 frames, brighter one by one: 12 of them in 3 rows of 4, then 2 x 4 for each of two videos, from dark to bright."""
    frames = np.repeat(np.arange(30, dtype=np.uint8) * 8, 20 * 20 * 3).reshape(30, 20, 20, 3)
    video = Media(frames, np.arange(30) / 2)
    rows = film(video, 3)
    levels = [[pixels(row)[10, 10 + 24 * i, 0] // 8 for i in range(4)] for row in rows]
    assert levels == [[0, 2, 5, 7], [10, 13, 15, 18], [21, 23, 26, 29]]
    assert all(row.size == (4 * 20 + 3 * 4, 20 + 14) for row in rows)
    assert (pixels(rows[0])[20:] != pixels(rows[1])[20:]).any()  # the seconds
    message = {"role": "user", "content": [{"type": "video"}, {"type": "video"}]}
    assert shown(Task("two/1", (message,), (video, video), "-", {})).height == 2 * 34 + 4


def test_pictures_stand_above_videos():
    still = Media(np.full((1, 30, 40, 3), 7, np.uint8))
    task = plain(3, video=True)
    picture = shown(Task("both/1", task.messages, (*task.media, still), "-", {}))
    assert tuple(pixels(picture)[5, 5]) == (7, 7, 7)
    assert tuple(pixels(picture)[40, 5]) == (10, 200, 30)
