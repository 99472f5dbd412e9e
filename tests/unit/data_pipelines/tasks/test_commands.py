import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets.jsonl import JsonlTasks
from data_pipelines.tasks import commands, look, make_mazes, write_clips, write_footage, write_videossr
from data_pipelines.tasks.clips import ClipTasks
from data_pipelines.tasks.videossr import VideoSSRTasks
from mmrl.errors import MediaError, TaskError
from mmrl.types import TaskKey


def mazes(out, n=10, split="test", moves="1-5"):
    return make_mazes(out, n, 7, split, moves, "0-2", 5, 5, 0.0)


def test_make_mazes_writes_equal_shares_and_look_shows_some(tmp_path):
    assert mazes(tmp_path / "mazes") == 10
    source = JsonlTasks(str(tmp_path / "mazes"), bucket_by="moves")
    assert {bucket: source.size(bucket) for bucket in source.buckets} == {f"moves={n}": 2 for n in range(1, 6)}
    assert look(tmp_path / "mazes", tmp_path / "deep" / "sheet.png", 4) == 4
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.width == 4 * 342 + 14
    assert look(tmp_path / "mazes", tmp_path / "all.png", 99) == 10


def test_the_same_call_writes_the_same_bytes(tmp_path):
    mazes(tmp_path / "a")
    mazes(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 11
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_bad_requests_are_task_errors_and_leave_nothing(tmp_path):
    for call in (lambda: mazes(tmp_path / "x", n=0), lambda: mazes(tmp_path / "x", split="dev"), lambda: mazes(tmp_path / "x", moves="99")):
        with pytest.raises(TaskError):
            call()
    assert list(tmp_path.iterdir()) == []
    mazes(tmp_path / "ok", n=1)
    with pytest.raises(TaskError, match="count=0"):
        look(tmp_path / "ok", tmp_path / "s.png", 0)


def test_write_videossr_writes_one_task_of_each_kind_a_video_by_default(films, tmp_path):
    source = VideoSSRTasks("all", (str(films),), kinds=("grounding-mirror", "jigsaw-3"), frames=12, min_pixels=3136, max_pixels=4704)
    assert write_videossr(source, tmp_path / "a") == 10
    assert write_videossr(source, tmp_path / "b") == 10
    assert (tmp_path / "a" / "tasks.jsonl").read_bytes() == (tmp_path / "b" / "tasks.jsonl").read_bytes()
    assert write_videossr(source, tmp_path / "pictures", 2, materialize=True) == 2
    assert {path.suffix for path in (tmp_path / "pictures" / "media").rglob("*.*")} == {".png"}
    back = JsonlTasks(str(tmp_path / "a"), bucket_by="variant")
    assert [back.size(bucket) for bucket in back.buckets] == [5, 5]
    assert look(tmp_path / "a", tmp_path / "sheet.png", 4) == 4
    with pytest.raises(TaskError, match="n=0"):
        write_videossr(source, tmp_path / "c", 0)
    assert not (tmp_path / "c").exists()


def test_clips_come_back_from_disk_as_they_were_made(tmp_path):
    source = ClipTasks("train", kinds=("order", "grounding"), levels=(1,), fps=4)
    assert write_clips(source, 4, tmp_path / "clips") == 4
    read = JsonlTasks(str(tmp_path / "clips"), bucket_by="kind")
    assert {bucket: read.size(bucket) for bucket in read.buckets} == {"kind=grounding": 2, "kind=order": 2}
    whole = JsonlTasks(str(tmp_path / "clips"))
    for index in range(4):
        made, found = source.task(source.key(index)), whole.task(TaskKey("", index))
        assert (made.id, made.solution, made.meta) == (found.id, found.solution, found.meta)
        assert (made.media[0].frames == found.media[0].frames).all()
        assert made.media[0].timestamps_s.tolist() == found.media[0].timestamps_s.tolist()


def test_videos_lie_beside_the_tasks_of_the_same_number(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is optional")
    source = ClipTasks("train", kinds=("speed",), fps=4)
    assert write_clips(source, 3, tmp_path / "clips", videos=True) == 3
    films = sorted((tmp_path / "clips" / "videos").iterdir())
    assert [path.name for path in films] == ["0000000.mp4", "0000001.mp4", "0000002.mp4"]
    for index, path in enumerate(films):
        with av.open(str(path)) as file:
            decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        wanted = source.task(source.key(index)).media[0].frames
        assert abs(np.stack(decoded).astype(int) - wanted).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_clips_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    source = ClipTasks("train")
    with pytest.raises(TaskError, match="clips: n=0"):
        write_clips(source, 0, tmp_path / "x")
    with pytest.raises(TaskError, match="footage: n=0"):
        write_footage(tmp_path / "x", 0, "train", 0, 8, 56, 56, 2)

    def missing():
        raise MediaError("no PyAV")

    monkeypatch.setattr(commands, "pyav", missing)
    with pytest.raises(MediaError, match="no PyAV"):
        write_clips(source, 2, tmp_path / "x", videos=True)
    monkeypatch.setattr(commands, "pyav", lambda: None)

    def broken(frames, path, fps):
        raise MediaError("disk full")

    monkeypatch.setattr(commands, "write_video", broken)
    with pytest.raises(MediaError, match="disk full"):
        write_clips(source, 2, tmp_path / "x", videos=True)
    with pytest.raises(MediaError, match="disk full"):
        write_footage(tmp_path / "x", 2, "train", 0, 8, 56, 56, 2)
    assert list(tmp_path.iterdir()) == []
