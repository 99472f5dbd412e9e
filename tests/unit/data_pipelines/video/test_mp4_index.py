"""The tables of a plain mp4 give what reading its packets gives; anything else is left to the packets."""

from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.video import backend_pyav, backends
from data_pipelines.video.backend_pyav import PyAV
from data_pipelines.video.decode import probe, read_frames
from data_pipelines.video.mp4_index import index_times
from data_pipelines.video.records import Deadline, Limits
from mmrl.errors import MediaError
from tests.unit.data_pipelines.video.conftest import numbers, write_clip

B_FRAMES = {"g": "12", "bf": "3", "crf": "18"}


def both(path: Path):
    """Of the tables, and of the packets."""
    limits = Limits()
    deadline = Deadline(path, limits)
    with backend_pyav._opened(path, limits, deadline) as (container, stream):
        return index_times(path, stream.id), backend_pyav._packet_times(path, container, stream, deadline)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"options": {"g": "5", "bf": "0"}},
        {"options": {"x264-params": "open-gop=1:bframes=3:keyint=8"}},
        {"milliseconds": [0, 40, 130, 135, 200, 300, 340, 350, 500, 520], "count": 10},
        {"container": {"movflags": "faststart"}},
        {"container": {"use_editlist": "0"}},
        {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}},
        {"rotation": 90},
    ],
    ids=["b", "no_b", "open", "uneven", "tables_first", "no_edit", "h265", "rotated"],
)
def test_tables_say_what_packets_say(made, tmp_path):
    write_clip(tmp_path / "clip.mp4", **made)
    by_tables, by_packets = both(tmp_path / "clip.mp4")
    assert by_tables is not None
    assert by_packets is not None
    assert same(by_tables, by_packets)


def test_a_track_beside_sound(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        voice = out.add_stream("aac", rate=16000)
        stream = out.add_stream("libx264", rate=25, options=B_FRAMES)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        for number in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 80, 3), 8 * number, np.uint8))))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, 640 * number
            out.mux(voice.encode(sound))
        out.mux(stream.encode())
        out.mux(voice.encode())
    by_tables, by_packets = both(tmp_path / "clip.mp4")
    assert by_tables is not None
    assert by_packets is not None
    assert same(by_tables, by_packets)
    assert index_times(tmp_path / "clip.mp4", 7) is None


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash", "negative_cts_offsets"])
def test_fragments_and_negative_offsets_are_left_to_the_packets(flags, tmp_path):
    write_clip(tmp_path / "clip.mp4", container={"movflags": flags})
    by_tables, by_packets = both(tmp_path / "clip.mp4")
    assert by_tables is None
    assert by_packets is not None


def test_other_containers_and_codecs_are_left_to_the_packets(tmp_path):
    write_clip(tmp_path / "clip.mkv")
    write_clip(tmp_path / "clip.mp4", codec="mpeg4", options={"g": "12"})
    assert index_times(tmp_path / "clip.mkv", 1) is None
    assert index_times(tmp_path / "clip.mp4", 1) is None


def test_the_packets_are_not_read_where_the_tables_suffice(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(backend_pyav, "_packet_times", lambda *_: pytest.fail("read"))
    assert probe(tmp_path / "clip.mp4", backend="pyav").num_frames == 40
    assert numbers(read_frames(tmp_path / "clip.mp4", [3, 29, 11], backend="pyav").frames) == [3, 29, 11]


def boxes(data: bytearray, kind: bytes) -> int:
    """Where the contents of the first box of that kind begin."""
    return data.index(kind) + 4


@pytest.mark.parametrize(
    ("kind", "at", "value"),
    [
        (b"stts", 4, 2),  # another number of runs
        (b"stts", 8, 39),  # samples without a time
        (b"stts", 12, 0),  # all at one time
        (b"ctts", 8, 39),
        (b"stss", 8, 2),  # the first sample is no keyframe
        (b"stss", 12, 200),  # a keyframe beyond the end
        (b"stsz", 4, 9),  # one size for all
        (b"stsz", 12, 0),  # a sample without bytes
        (b"stsz", 12, 2**31),  # a sample beyond the end
        (b"stsc", 8, 2),  # a first chunk without samples
        (b"stsc", 12, 39),
        (b"stco", 8, 2**31),
        (b"elst", 4, 2),
        (b"elst", 8, 100),  # the edit ends early
        (b"elst", 12, 5000),  # and begins late
        (b"elst", 16, 1 << 17),  # at double speed
        (b"stsd", 4, 2),
        (b"tkhd", 12, 9),  # another track
        (b"mvhd", 12, 0),
    ],
)
def test_tables_that_contradict_themselves_are_left_to_the_packets(kind, at, value, tmp_path):
    write_clip(tmp_path / "clip.mp4")
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    start = boxes(data, kind) + at
    data[start : start + 4] = value.to_bytes(4, "big")
    (tmp_path / "clip.mp4").write_bytes(data)
    assert index_times(tmp_path / "clip.mp4", 1) is None


def test_a_cut_file_is_left_to_the_packets(tmp_path):
    write_clip(tmp_path / "clip.mp4", container={"movflags": "faststart"})
    data = (tmp_path / "clip.mp4").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "cut.mp4").write_bytes(data[:size])
        assert index_times(tmp_path / "cut.mp4", 1) is None
    with pytest.raises(MediaError, match=r"cut\.mp4: .*; make the file again"):
        PyAV().scan(tmp_path / "cut.mp4", Limits(), Deadline(tmp_path / "cut.mp4", Limits()))


def test_flipped_bits_give_the_same_frames_as_by_packets(tmp_path, monkeypatch):
    """Or one of the two ways refuses the file, or loses a frame that the damage took from it."""
    write_clip(tmp_path / "clip.mp4", container={"movflags": "faststart"})
    data = (tmp_path / "clip.mp4").read_bytes()
    start, end = data.index(b"moov"), data.index(b"mdat")
    rng, compared = np.random.default_rng(0), 0

    def seen(path: Path) -> list[int] | None:
        try:
            return numbers(read_frames(path, [0, 17, 38], backend="pyav").frames)
        except MediaError:
            return None

    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(start, end)] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        backends._kept.cache_clear()
        if index_times(tmp_path / "damaged.mp4", 1) is None:
            continue
        by_tables = seen(tmp_path / "damaged.mp4")
        with monkeypatch.context() as patch:
            patch.setattr(backend_pyav, "index_times", lambda *_: None)
            backends._kept.cache_clear()
            by_packets = seen(tmp_path / "damaged.mp4")
        if by_tables is not None and by_packets is not None:
            compared += 1
            assert by_tables == by_packets
    assert compared > 20
