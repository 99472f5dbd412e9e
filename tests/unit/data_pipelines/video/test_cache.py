import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.video import cache as cache_module
from data_pipelines.video.cache import FrameCache, default_folder
from data_pipelines.video.decode import Frames, read_frames
from mmrl.errors import MediaError
from tests.unit.data_pipelines.video.conftest import numbers, write_clip

ASKED = [31, 0, 7, 7]


@pytest.fixture
def cache(tmp_path) -> FrameCache:
    return FrameCache(str(tmp_path / "cache"))


@pytest.fixture
def own(clip, tmp_path) -> Path:
    """A copy of the clip that has been lying there for an hour."""
    path = tmp_path / "own.mp4"
    shutil.copy(clip, path)
    return path


def entries(cache: FrameCache) -> list[Path]:
    return [entry for folder in cache.root.glob("[0-9a-f][0-9a-f]") for entry in folder.iterdir()]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that were decoded."""
    calls = []
    real = cache_module.read_with

    def counted(reader, source, *arguments):
        calls.append(getattr(source, "name", "memory"))
        return real(reader, source, *arguments)

    monkeypatch.setattr(cache_module, "read_with", counted)
    return calls


def test_a_hit_is_the_same_and_decodes_nothing(cache, own, decoded):
    fresh = read_frames(own, ASKED)
    for media in (cache.read(own, ASKED), cache.read(own, ASKED), FrameCache(cache.folder).read(own, ASKED)):
        np.testing.assert_array_equal(media.frames, fresh.frames)
        np.testing.assert_array_equal(media.timestamps_s, fresh.timestamps_s)
        assert not media.frames.flags.writeable
    assert decoded == ["own.mp4"]


def test_indices_size_and_order_are_part_of_the_key(cache, own, decoded):
    assert numbers(cache.read(own, [1, 2]).frames) == [1, 2]
    assert numbers(cache.read(own, [2, 1]).frames) == [2, 1]
    assert cache.read(own, [1, 2], (24, 40)).frames.shape == (2, 24, 40, 3)
    assert cache.read(own, [1, 2], (40, 24)).frames.shape == (2, 40, 24, 3)
    assert len(decoded) == 4


def test_a_copy_is_a_hit_and_a_rename_too(cache, own, decoded, tmp_path):
    cache.read(own, [3])
    shutil.copy(own, tmp_path / "other.mp4")
    own.rename(tmp_path / "moved.mp4")
    assert numbers(cache.read(tmp_path / "other.mp4", [3]).frames) == [3]
    assert numbers(cache.read(tmp_path / "moved.mp4", [3]).frames) == [3]
    assert len(decoded) == 1


def test_a_changed_file_is_never_served_stale(cache, tmp_path, monkeypatch):
    """Same path, same size, same time of change: only the content differs. Also when its identity had been remembered."""
    path, padded = tmp_path / "v.avi", []
    for count in (10, 9):
        write_clip(path, count, codec="mpeg4", options={"g": "12"}, milliseconds=[40 * (i + 10 - count) for i in range(count)])
        padded.append(path.read_bytes())
    long, short = padded
    short += bytes(len(long) - len(short))
    for settled in (cache_module.SETTLED_S, -1.0):  # -1: remembers at once
        monkeypatch.setattr(cache_module, "SETTLED_S", settled)
        for content, frames in ((long, 10), (short, 9), (long, 10)):
            path.write_bytes(content)
            os.utime(path, (1e9, 1e9))
            time.sleep(0.02)
            assert len(cache.read(path, range(frames)).frames) == frames
            if frames == 9:
                with pytest.raises(MediaError, match="frame 9 asked for"):
                    cache.read(path, range(10))


def test_a_file_that_changes_while_it_is_read_is_refused(cache, own, monkeypatch):
    real = cache_module.read_with

    def meddled(reader, source, *arguments):
        media = real(reader, source, *arguments)
        own.write_bytes(own.read_bytes() + b"\0")
        return media

    monkeypatch.setattr(cache_module, "read_with", meddled)
    with pytest.raises(MediaError, match=r"own.mp4: was changed while it was read"):
        cache.read(own, [1])
    assert entries(cache) == []


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:4096],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: flip(content, 3),
        lambda content: flip(content, 30),
        lambda content: flip(content, 5000),
    ],
)
def test_damaged_entries_are_made_again(cache, own, decoded, damage):
    fresh = cache.read(own, ASKED).frames.copy()
    (entry,) = entries(cache)
    entry.write_bytes(damage(entry.read_bytes()))
    np.testing.assert_array_equal(FrameCache(cache.folder).read(own, ASKED).frames, fresh)
    np.testing.assert_array_equal(FrameCache(cache.folder).read(own, ASKED).frames, fresh)
    assert len(decoded) == 2


def test_the_folder_stays_below_its_limit_and_the_oldest_go_first(tmp_path, own, decoded):
    size = 4096 + 48 * 80 * 3  # of an entry with one frame
    cache = FrameCache(str(tmp_path / "small"), max_bytes=8 * size)
    for index in range(6):
        cache.read(own, [index])
        os.utime(next(entry for entry in entries(cache) if entry.stat().st_mtime > 1e6 + 100), (1e6 + index, 1e6 + index))
    cache.read(own, [0])  # now the one used last
    for index in range(6, 12):
        cache.read(own, [index])
        assert sum(entry.stat().st_size for entry in entries(cache)) <= 8 * size
    decoded.clear()
    cache.read(own, [0])
    cache.read(own, [11])
    assert decoded == []
    cache.read(own, [1])
    assert len(decoded) == 1


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, own):
    cache = FrameCache(str(tmp_path / "tiny"), max_bytes=1000)
    assert numbers(cache.read(own, [4]).frames) == [4]
    assert entries(cache) == []
    with pytest.raises(ValueError, match="max_bytes"):
        FrameCache(max_bytes=0)


def test_frames_stay_valid_when_their_entry_is_dropped(cache, own):
    media = cache.read(own, ASKED)
    shutil.rmtree(cache.root)
    assert numbers(media.frames) == ASKED


def test_a_full_disk_does_not_stop_the_run(cache, own, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameCache, "_write", full)
    monkeypatch.setattr(cache_module, "SETTLED_S", 1e9)
    assert numbers(cache.read(own, ASKED).frames) == ASKED
    assert "frames not kept: [Errno 28] No space left" in caplog.text


def test_what_stopped_processes_left_is_removed(cache, own):
    left = cache.root / "part" / "left"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (1e9, 1e9))
    cache.read(own, [1])
    assert not left.exists()


def _reads(folder: str, path: Path, barrier, answers) -> None:
    calls, real = [], cache_module.read_with

    def slow(reader, source, *arguments):
        calls.append(1)
        time.sleep(0.2)
        return real(reader, source, *arguments)

    cache_module.read_with = slow
    barrier.wait()
    answers.put((len(calls), [numbers(FrameCache(folder).read(path, [5, 6]).frames) for _ in range(3)], len(calls)))


def test_processes_that_ask_at_once_decode_once(cache, own):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_reads, args=(cache.folder, own, barrier, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [frames for _, frames, _ in found] == [[[5, 6]] * 3] * 4
    assert sum(after for _, _, after in found) == 1


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    assert default_folder() == FrameCache().root == tmp_path / "frames"
    monkeypatch.delenv("MMRL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "mmrl" / "frames"


def test_other_sources_pass_through(cache, tmp_path, decoded):
    frames = Frames([Image.new("RGB", (8, 6), (9, 9, 9))] * 3, fps=1)
    assert cache.read(frames, [0, 2]).frames.shape == (2, 6, 8, 3)
    assert cache.read(frames, [0, 2]).timestamps_s.tolist() == [0, 2]
    assert decoded == ["memory", "memory"]
    assert entries(cache) == []
