"""Real short videos, and annotation files about them."""

import json
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.datasets.grounding import GroundingTasks
from mmrl.errors import MediaError, TaskError
from mmrl.types import TaskKey
from rewards.spans import TemporalIoU

SMALL = {"total_tokens": 64, "min_tokens": 4}


def write_video(path, frames: int, ticks_per_second: int = 10, ticks=None) -> None:
    """64 x 48 pixels; frame i is grey 8 · i + 8, shown at ticks[i] (default i) ticks."""
    import av

    tick = Fraction(1, ticks_per_second)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=ticks_per_second, options={"crf": "10", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = tick
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * (number % 30) + 8, np.uint8))
            frame.pts, frame.time_base = number if ticks is None else ticks[number], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """ "six.mp4": 6 s, 24 frames at 4 a second; "two.mp4": 2 s; "uneven.mkv": 8 s, frames at 0, 0.5, 1, 4, 4.5, 5, 7, 7.5 s."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "six.mp4", 24, 4)
    write_video(folder / "two.mp4", 8, 4)
    (folder / "sub").mkdir()
    write_video(folder / "sub" / "uneven.mkv", 8, 2, ticks=[0, 1, 2, 8, 9, 10, 14, 15])
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path, videos):
    def build(content, **fields):
        path = tmp_path / "events"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return GroundingTasks(str(path), str(videos), **{**SMALL, **fields})

    return build


def test_a_task_of_a_charades_line(source):
    """6 s at 2 frames a second are 12 frames, evenly from the first to the last of 24: 64 tokens · 784 · 2 / 12 = 8363 pixels a frame, no
    more than 56 x 84 by whole tokens."""
    tasks = source("six 1.2 3.4##a grey wall grows light.\n")
    task = tasks.task(TaskKey("", 0))
    assert task.meta == {
        "kind": "grounding", "query": "a grey wall grows light", "video": "six", "duration_s": 6.0, "span_s": [1.2, 3.4],
        "spans_s": [[1.2, 3.4]],
    }  # fmt: skip
    assert task.solution == "The event happens in 1.2 - 3.4 seconds."
    (message,) = task.messages
    assert [part["type"] for part in message["content"]] == ["video", "text"]
    text = message["content"][1]["text"]
    assert '"a grey wall grows light"' in text
    assert "<start> - <end> seconds" in text
    (media,) = task.media
    assert media.frames.shape[0] == 12
    assert media.frames.shape[1] % 28 == media.frames.shape[2] % 28 == 0
    assert media.frames.shape[1] * media.frames.shape[2] <= 64 * 784 * 2 / 12
    indices = np.rint(media.timestamps_s * 4).astype(int)  # 4 frames a second
    np.testing.assert_array_equal(indices, np.rint(np.linspace(0, 23, 12)))
    shown = media.frames.reshape(12, -1).mean(1)
    np.testing.assert_allclose(shown, 8 * indices + 8, atol=4)
    assert tasks.task(TaskKey("", 0)).id == task.id


def test_the_budget_is_timelens(source):
    """14336 tokens of 28 x 28 hold at most 448 frames of 64 tokens a pair; 110 s at 2 a second are 220 frames of
    14336 · 784 · 2 / 220 pixels each."""
    frames, pixels = source("six 1 3##on", total_tokens=14336, min_tokens=64)._sampling
    assert (frames.max_frames, frames.fps) == (448, 2.0)
    assert len(frames(1100, 10.0)) == 220
    assert pixels.frame_pixels(220)[1] == pytest.approx(102176.58, abs=0.01)


def test_times_of_an_uneven_video_are_the_decoders(source):
    """8 s at 8 frames: 2 a second would be 16, and there are only 8. Their times are not a multiple of anything."""
    task = source("sub/uneven 0 4.2##on").task(TaskKey("", 0))
    np.testing.assert_allclose(task.media[0].timestamps_s, [0, 0.5, 1, 4, 4.5, 5, 7, 7.5], atol=1e-6)


def test_all_formats_find_their_videos(source):
    activitynet = {"six": {"duration": 6.0, "timestamps": [[1, 2], [2, 3]], "sentences": ["on", "off"]}}
    qv = {"qid": 7, "query": "on", "duration": 6, "vid": "six", "relevant_windows": [[0, 2], [4, 6]]}
    timelens = {"video_path": "sub/uneven.mkv", "duration": 8.0, "events": [{"query": "on", "span": [[1, 4]]}]}
    ids = set()
    for content, count, span in ((activitynet, 2, [1, 2]), (qv, 1, [0, 2]), (timelens, 1, [1, 4])):
        tasks = source(content)
        assert (tasks.buckets, tasks.size("")) == (("",), count)
        task = tasks.task(TaskKey("", 0))
        assert task.meta["span_s"] == span
        ids |= {tasks.task(TaskKey("", n)).id for n in range(count)}
    assert len(ids) == 4
    assert source(qv).task(TaskKey("", 0)).meta["spans_s"] == [[0, 2], [4, 6]]


def test_filters_drop_and_say_why(source):
    lines = [
        "six 1 3##a wall grows light", "two 0 1##too short", "six 1 3##one hears a bell", "six 4 6.5##past the end",
        "six 1 3##" + "very " * 200 + "long",
    ]  # fmt: skip
    tasks = source("\n".join(lines))
    assert tasks.size("") == 1
    reasons = [reason.partition(": ")[2] for reason in tasks.dropped]
    assert [reason.partition(":")[0].rpartition(":")[2] for reason in reasons]
    assert [line.split(": ")[0][-2:] for line in tasks.dropped] == [":2", ":3", ":4", ":5"]
    for reason, word in zip(reasons, ("2 s", "sound", "6.5", "201 words"), strict=True):
        assert word in reason
    every = source("\n".join(lines), filters=False)
    assert (every.size(""), every.dropped) == (5, ())
    assert every.task(TaskKey("", 1)).meta["duration_s"] == 2.0
    with pytest.raises(TaskError, match=r"none of its 1 events can be used; the first: .*events:1: the video lasts 2 s"):
        source(lines[1])


def test_missing_videos(source):
    lines = "six 1 3##on\nseven 1 3##off\n"
    with pytest.raises(MediaError, match=r"events:2: no video 'seven' in .*missing_videos: skip"):
        source(lines)
    tasks = source(lines, missing_videos="skip")
    assert tasks.size("") == 1
    assert "events:2: no video 'seven'" in tasks.dropped[0]


def test_a_broken_video_names_the_line(source, videos, tmp_path):
    whole = (videos / "six.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 4])
    tasks = GroundingTasks(str(_events(tmp_path, {"half": {"duration": 6, "timestamps": [[1, 2]], "sentences": ["on"]}})), str(tmp_path))
    with pytest.raises(MediaError, match=r"e\.json: 'half'\[0\]: .*half\.mp4"):
        tasks.task(TaskKey("", 0))


def _events(folder, content):
    path = folder / "e.json"
    path.write_text(json.dumps(content))
    return path


def test_settings_that_change_a_task_change_its_id(source):
    line = "six 1 3##on"
    one = source(line)
    others = [source(line, fps=1.0), source(line, total_tokens=32), source(line, question="When: {query}?")]
    assert len({tasks.task(TaskKey("", 0)).id for tasks in (one, *others)}) == 4
    assert others[2].task(TaskKey("", 0)).messages[0]["content"][1]["text"] == "When: on?"
    assert len(others[0].task(TaskKey("", 0)).media[0].frames) == 6  # one a second
    assert source(line, cache=False).task(TaskKey("", 0)).id == one.task(TaskKey("", 0)).id


def test_frames_come_from_the_cache_the_second_time(source, monkeypatch):
    tasks = source("six 1 3##on")
    first = tasks.task(TaskKey("", 0))
    monkeypatch.setattr("data_pipelines.video.cache.read_with", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(tasks.task(TaskKey("", 0)).media[0].frames, first.media[0].frames)


def test_it_pickles(source):
    tasks = source("six 1 3##on")
    again = pickle.loads(pickle.dumps(tasks))
    assert again == tasks
    assert again.task(TaskKey("", 0)).id == tasks.task(TaskKey("", 0)).id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "When?"}, "question: got 'When\\?'; write {query} once"),
        ({"min_tokens": 0}, "min_tokens must be 1 or more"),
        ({"total_tokens": 7}, "total_tokens at least twice that; got 4 and 7"),
        ({"path": "nowhere"}, "path: 'nowhere': no such file"),
        ({"videos": "nowhere"}, "videos: 'nowhere': no such folder"),
    ],
)
def test_fields_that_cannot_be(source, fields, message):
    good = source("six 1 3##on")
    with pytest.raises(TaskError, match=message):
        replace(good, **fields)


def test_keys_outside(source):
    tasks = source("six 1 3##on")
    with pytest.raises(ValueError, match="index must be 0 to 0; got 1"):
        tasks.task(TaskKey("", 1))
    with pytest.raises(TaskError, match="no bucket 'x'"):
        tasks.size("x")


def earned(tasks, answers, **fields):
    """What each task's answer earns."""
    reward = TemporalIoU(**fields)
    return [reward.value(tasks.task(TaskKey("", n)), answer) for n, answer in enumerate(answers)]


def test_answers_to_its_tasks_earn_what_the_paper_says(source):
    lines = "six 14 26##a\nsix 0 4##b\nsix 0 1##c\nsix 14 26##d\nsix 70 80##e\nsix 3.5 7.25##f\n"
    answers = ["10 - 20", "0 - 5", "2 - 3", "20 - 10", "from 00:01:10 to 00:01:20", "The event happens in 3.5 - 7.25 seconds"]
    assert earned(source(lines, filters=False), answers) == pytest.approx([6 / 16, 0.8, 0, 0, 1, 1])


def test_spans_snapped_to_the_stamps_that_are_shown(source, videos):
    """14 frames at 2 a second: seven pairs, whose first frames are shown at 0, 1, ..., 6 s."""
    write_video(videos / "seven.mp4", 14, 2)
    tasks = source("seven 1.4 3.2##a\nseven 2 4##b\nseven 5.5 9##c\n", filters=False)
    assert tasks.task(TaskKey("", 0)).media[0].timestamps_s[::2].tolist() == list(range(7))
    answers = ["1 - 4", "2 - 4", "5 - 6"]
    assert earned(tasks, answers, snap=True) == pytest.approx([1, 1, 1])
    assert earned(tasks, answers) == pytest.approx([1.8 / 3, 1, 0.5 / 4])
