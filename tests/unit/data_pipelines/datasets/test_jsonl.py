import json
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets.jsonl import JsonlTasks, write_tasks
from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.video import pictures
from data_pipelines.video.decode import read_frames
from mmrl.errors import MediaError, TaskError
from mmrl.types import Media, Task, TaskKey
from tests.unit.data_pipelines.video.conftest import write_clip

ROW = {
    "id": "a",
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
    "images": ["p.png"],
    "solution": "s",
    "meta": {},
}


def assert_equal(one: Task, other: Task) -> None:
    assert (one.id, one.messages, one.solution, one.meta) == (other.id, other.messages, other.solution, other.meta)
    assert len(one.media) == len(other.media)
    for mine, theirs in zip(one.media, other.media, strict=True):
        np.testing.assert_array_equal(mine.frames, theirs.frames)
        assert mine.is_video == theirs.is_video
        if mine.is_video:
            np.testing.assert_array_equal(mine.timestamps_s, theirs.timestamps_s)


def some_video(seed: int = 0) -> Media:
    return Media(np.random.default_rng(seed).integers(0, 256, (3, 8, 10, 3), np.uint8), np.array([0.0, 1 / 3, 0.7]))


def write_rows(folder, *rows) -> str:
    Image.new("RGB", (4, 3), (1, 2, 3)).save(folder / "p.png")
    (folder / "own.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(folder / "own.jsonl")


def test_tasks_come_back_as_they_were(tmp_path):
    source = MazeTasks("train")
    tasks = [source.task(source.key(i)) for i in range(6)]
    tasks.append(MazeTasks("train", render=False).task(TaskKey("moves=2", 0)))
    still = Media(np.random.default_rng(1).integers(0, 256, (1, 5, 7, 3), np.uint8))
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "Größer?"}, {"type": "image"}]
    mixed = Task("mixed/1", ({"role": "user", "content": content},), (some_video(), still, still), "ja", {"moves": 1, "π": [1.5, None]})
    tasks.append(mixed)
    assert write_tasks(iter(tasks), tmp_path / "set") == 8
    back = JsonlTasks(str(tmp_path / "set"))
    assert back.buckets == ("",)
    assert back.size("") == 8
    for i, task in enumerate(tasks):
        assert_equal(task, back.task(TaskKey("", i)))
    assert_equal(mixed, pickle.loads(pickle.dumps(back)).task(TaskKey("", 7)))
    assert back == JsonlTasks(str(tmp_path / "set"))
    assert repr(back) == f"JsonlTasks(path={str(tmp_path / 'set')!r}, bucket_by=None)"


def test_bucket_by_groups_and_sorts_by_value(tmp_path):
    rows = [{**ROW, "id": f"{i}", "meta": {"moves": moves, "kind": f"k{moves}"}} for i, moves in enumerate([10, 2, 10, 1])]
    path = write_rows(tmp_path, *rows)
    by_moves = JsonlTasks(path, bucket_by="moves")
    assert by_moves.buckets == ("moves=1", "moves=2", "moves=10")
    assert [by_moves.size(bucket) for bucket in by_moves.buckets] == [1, 1, 2]
    assert by_moves.task(TaskKey("moves=10", 1)).id == "2"
    assert JsonlTasks(path, bucket_by="kind").buckets == ("kind=k1", "kind=k10", "kind=k2")
    with pytest.raises(TaskError, match="no bucket 'moves=3'"):
        by_moves.size("moves=3")
    with pytest.raises(ValueError, match="0 to 1 in bucket 'moves=10'; got 2"):
        by_moves.task(TaskKey("moves=10", 2))


def without(key):
    return {name: value for name, value in ROW.items() if name != key}


VIDEO = {**ROW, "prompt": [{"role": "user", "content": [{"type": "video"}]}], "images": []}


@pytest.mark.parametrize(
    ("row", "error", "named"),
    [
        ("{oops", TaskError, r"own.jsonl:2: not JSON"),
        ("[1]", TaskError, r":2: line: got \[1\]; give a JSON object"),
        (without("id"), TaskError, r":2: id is missing"),
        (without("solution"), TaskError, r":2: solution is missing"),
        (without("meta"), TaskError, r":2: meta is missing"),
        ({**ROW, "id": 7}, TaskError, r":2: id: got 7; give a str"),
        ({**ROW, "id": ""}, TaskError, r":2: id: got ''"),
        ({**ROW, "id": "first"}, TaskError, r":2: id: got 'first'; line 1 has it already"),
        ({**ROW, "answer": "x"}, TaskError, r":2: unknown key 'answer'; put data of your own into meta"),
        ({**ROW, "prompt": "hi"}, TaskError, r":2: prompt: got 'hi'; give a list"),
        ({**ROW, "prompt": []}, TaskError, r":2: prompt: got \[\]"),
        ({**ROW, "prompt": [{"role": "user"}]}, TaskError, r":2: prompt\[0\]: got"),
        ({**ROW, "prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, TaskError, r":2: prompt\[0\].content\[0\]: got"),
        ({**ROW, "prompt": [{"role": "user", "content": [{"type": "text"}]}]}, TaskError, r":2: prompt\[0\].content\[0\]: got"),
        ({**ROW, "images": []}, TaskError, r":2: images: 0 given, but the prompt has 1 image parts"),
        ({**ROW, "images": ["p.png", "p.png"]}, TaskError, r":2: images: 2 given, but the prompt has 1"),
        ({**ROW, "images": [5]}, TaskError, r":2: images\[0\]: got 5; give a path"),
        ({**ROW, "images": ["gone.png"]}, MediaError, r":2: images\[0\]: no such file 'gone.png'"),
        ({**VIDEO, "videos": ["clip.mp4"]}, TaskError, r":2: videos\[0\]: got 'clip.mp4'; give .* or {\"file\": path, \"indices\""),
        ({**VIDEO, "videos": [{"file": "no.mp4", "indices": [0]}]}, MediaError, r":2: videos\[0\].file: no such file 'no.mp4'"),
        ({**VIDEO, "videos": [{"file": 5, "indices": [0]}]}, TaskError, r":2: videos\[0\].file: got 5; give a path"),
        ({**VIDEO, "videos": [{"file": "p.png"}]}, TaskError, r":2: videos\[0\].indices: got None; give the numbers of its frames"),
        ({**VIDEO, "videos": [{"file": "p.png", "indices": []}]}, TaskError, r":2: videos\[0\].indices: got \[\]"),
        ({**VIDEO, "videos": [{"file": "p.png", "indices": [-1]}]}, TaskError, r":2: videos\[0\].indices: got \[-1\]"),
        ({**VIDEO, "videos": [{"file": "p.png", "indices": [0.5]}]}, TaskError, r":2: videos\[0\].indices: got \[0.5\]"),
        ({**VIDEO, "videos": [{"file": "p.png", "indices": [0], "size": [8]}]}, TaskError, r":2: videos\[0\].size: got \[8\]"),
        ({**VIDEO, "videos": [{"file": "p.png", "indices": [0], "fps": 2}]}, TaskError, r":2: videos\[0\].fps: got 2; a video file has"),
        ({**VIDEO, "videos": [5]}, TaskError, r":2: videos\[0\]: got 5"),
        ({**VIDEO, "videos": [{"frames": ["p.png"], "timestamps_s": [0, 1]}]}, TaskError, r":2: videos\[0\]: got .*as many of the one"),
        ({**VIDEO, "videos": [{"frames": ["p.png"], "timestamps_s": ["0"]}]}, TaskError, r":2: videos\[0\].timestamps_s: got \['0'\]"),
        ({**VIDEO, "videos": [{"frames": ["no.png"], "timestamps_s": [0]}]}, MediaError, r":2: videos\[0\].frames\[0\]: no such file"),
    ],
)
def test_a_bad_line_is_named_when_the_source_is_made(tmp_path, row, error, named):
    path = write_rows(tmp_path, {**ROW, "id": "first"}, row)
    with pytest.raises(error, match=named):
        JsonlTasks(path)


def test_frames_of_a_video_file_are_decoded_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    write_clip(tmp_path / "clip.mp4", 20)
    videos = [{"file": "clip.mp4", "indices": [7, 0, 19]}, {"file": "clip.mp4", "indices": [3], "size": [24, 40]}]
    content = [{"type": "video"}, {"type": "video"}]
    source = JsonlTasks(write_rows(tmp_path, {**VIDEO, "prompt": [{"role": "user", "content": content}], "videos": videos}))
    for _ in range(2):
        first, second = source.task(TaskKey("", 0)).media
        np.testing.assert_array_equal(first.frames, read_frames(tmp_path / "clip.mp4", [7, 0, 19]).frames)
        np.testing.assert_allclose(first.timestamps_s, [0.28, 0, 0.76])
        assert second.frames.shape == (1, 24, 40, 3)
    assert (tmp_path / "cache" / "frames").is_dir()
    back = source.task(TaskKey("", 0))
    write_tasks([back], tmp_path / "set")
    assert_equal(back, JsonlTasks(str(tmp_path / "set")).task(TaskKey("", 0)))


@pytest.mark.parametrize(
    ("content", "indices", "cause"), [(b"no video", [0], "cannot be opened as a video"), (None, [20], "frame 20 asked for")]
)
def test_a_video_that_cannot_be_read_is_named_with_its_row(tmp_path, monkeypatch, content, indices, cause):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    write_clip(tmp_path / "clip.mp4", 20)
    if content:
        (tmp_path / "clip.mp4").write_bytes(content)
    source = JsonlTasks(write_rows(tmp_path, {**VIDEO, "videos": [{"file": "clip.mp4", "indices": indices}]}))
    with pytest.raises(MediaError, match=rf"own.jsonl:1: .*clip.mp4: .*{cause}"):
        source.task(TaskKey("", 0))


def test_empty_and_missing_data_sets_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"own.jsonl: no tasks in it"):
        JsonlTasks(write_rows(tmp_path, "", "  "))
    with pytest.raises(TaskError, match=r"no such file; give a folder with tasks.jsonl"):
        JsonlTasks(str(tmp_path))
    with pytest.raises(TaskError, match=r":1: meta.level: got None; bucket_by needs"):
        JsonlTasks(write_rows(tmp_path, ROW), bucket_by="level")
    mixed = [{**ROW, "id": str(level), "meta": {"level": level}} for level in (1, "hard")]
    with pytest.raises(TaskError, match=r"meta.level is a text in some lines and a number in others"):
        JsonlTasks(write_rows(tmp_path, *mixed), bucket_by="level")


def test_blank_lines_and_windows_line_ends_do_not_shift_offsets(tmp_path):
    path = write_rows(tmp_path)
    (tmp_path / "own.jsonl").write_bytes(
        b"\r\n".join([json.dumps({**ROW, "id": "ä"}).encode(), b"", json.dumps({**ROW, "id": "b"}).encode()])
    )
    source = JsonlTasks(path)
    assert [source.task(TaskKey("", i)).id for i in range(2)] == ["ä", "b"]


def test_pictures_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    source = JsonlTasks(write_rows(tmp_path, ROW))
    (tmp_path / "p.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"own.jsonl:1: .*p.png: cannot be read as a picture"):
        source.task(TaskKey("", 0))
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    whole = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        source.task(TaskKey("", 0))
    (tmp_path / "p.png").write_bytes(whole)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1199)
    with pytest.raises(MediaError, match="40 x 30 pixels are more than 1199"):
        source.task(TaskKey("", 0))
    Image.new("RGB", (4, 3)).save(tmp_path / "p.png", save_all=True, append_images=[Image.new("RGB", (4, 3), "red")])
    with pytest.raises(MediaError, match="has 2 frames"):
        source.task(TaskKey("", 0))


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    source = JsonlTasks(write_rows(tmp_path, ROW))
    Image.new("1", (20000, 20000)).save(tmp_path / "p.png")  # 400 million pixels in a file of some 50 kB
    assert (tmp_path / "p.png").stat().st_size < 100_000
    with pytest.raises(MediaError, match=r"p.png: .*pixels"):
        source.task(TaskKey("", 0))


def test_transparent_parts_lie_on_white_and_grey_becomes_rgb(tmp_path):
    source = JsonlTasks(write_rows(tmp_path, ROW))
    Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255]]], np.uint8)).save(tmp_path / "p.png")
    assert source.task(TaskKey("", 0)).media[0].frames.tolist() == [[[[255, 255, 255], [9, 8, 7]]]]
    Image.new("L", (1, 1), 77).save(tmp_path / "p.png")
    assert source.task(TaskKey("", 0)).media[0].frames.tolist() == [[[[77, 77, 77]]]]


def test_frames_of_different_sizes_are_refused(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "q.png")
    source = JsonlTasks(write_rows(tmp_path, {**VIDEO, "videos": [{"frames": ["p.png", "q.png"], "timestamps_s": [0, 1]}]}))
    with pytest.raises(MediaError, match=r":1: videos: frames of different sizes"):
        source.task(TaskKey("", 0))


def test_write_tasks_refuses_a_full_folder_and_leaves_nothing_behind(tmp_path):
    task = MazeTasks("train").task(TaskKey("moves=1", 0))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(TaskError, match="full: exists and is not empty"):
        write_tasks([task], tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(TaskError, match="exists"):
        write_tasks([task], tmp_path / "file")
    with pytest.raises(TaskError, match="no tasks to write"):
        write_tasks([], tmp_path / "none")

    def fails():
        yield task
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_tasks(fails(), tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    assert write_tasks([task], tmp_path / "empty") == 1


def test_write_tasks_streams(tmp_path):
    """When the 50th task is asked for, the one before is already on disk."""

    def tasks():
        source = MazeTasks("train")
        for i in range(50):
            if i:
                (partial,) = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
                assert len(list((partial / "media").rglob("*.png"))) == i
            yield source.task(source.key(i))

    assert write_tasks(tasks(), tmp_path / "set") == 50


def test_pictures_are_turned_upright_by_their_exif_data(tmp_path):
    """Orientation 6 means: turn by 90 degrees clockwise to show. A wide picture with a red left end gets a red top."""
    source = JsonlTasks(write_rows(tmp_path, ROW))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).save(tmp_path / "p.png", exif=exif)
    assert source.task(TaskKey("", 0)).media[0].frames.tolist() == [[[[255, 0, 0]], [[0, 0, 255]]]]
