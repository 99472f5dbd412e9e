import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines.video import backends, isolate
from data_pipelines.video.backends import BACKENDS, choose, trouble
from data_pipelines.video.decode import Limits, open_media, probe, read_frames
from mmrl.errors import MediaError
from tests.unit.data_pipelines.video.conftest import numbers, write_clip

ASKED = [31, 0, 7, 8, 39, 7]


@pytest.fixture(params=list(BACKENDS))
def backend(request) -> str:
    problem = trouble(request.param)
    if problem:
        pytest.skip(f"{request.param} is not usable here: {problem}")
    return request.param


def seconds(milliseconds: list[int], asked: list[int]) -> np.ndarray:
    return (np.array(milliseconds)[asked] - milliseconds[0]) / 1000


# --- the right frames at the right times ---------------------------------------------------------------------------------------------


def test_asked_frames_come_in_the_asked_order_with_their_times(clip, backend):
    found = probe(clip, backend=backend)
    assert (found.num_frames, found.width, found.height) == (40, 80, 48)
    assert found.fps == pytest.approx(25)
    assert found.duration_s == pytest.approx(1.6, abs=1e-3)
    np.testing.assert_allclose(found.timestamps_s, np.arange(40) * 0.04, atol=1e-3)
    media = read_frames(clip, ASKED, backend=backend)
    assert numbers(media.frames) == ASKED
    np.testing.assert_allclose(media.timestamps_s, np.array(ASKED) * 0.04, atol=1e-3)
    assert media.frames.flags.c_contiguous


def test_variable_frame_rate_keeps_its_times(tmp_path, backend):
    times = write_clip(tmp_path / "v.mp4", milliseconds=[0, 10, 50, 51, 300, 301, 302, 900, 1000, 1500])
    media = open_media(tmp_path / "v.mp4", backend=backend)
    assert numbers(media.frames) == list(range(10))
    np.testing.assert_allclose(media.timestamps_s, seconds(times, list(range(10))), atol=1e-3)
    assert probe(tmp_path / "v.mp4", backend=backend).fps == pytest.approx(10 / probe(tmp_path / "v.mp4", backend=backend).duration_s)


def test_times_count_from_the_first_frame(tmp_path, backend):
    write_clip(tmp_path / "late.mkv", milliseconds=[700 + 40 * i for i in range(10)])
    np.testing.assert_allclose(probe(tmp_path / "late.mkv", backend=backend).timestamps_s, np.arange(10) * 0.04, atol=2e-3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_recordings_stand_upright(tmp_path, backend, rotation):
    write_clip(tmp_path / "r.mp4", 6, rotation=rotation)
    found = probe(tmp_path / "r.mp4", backend=backend)
    assert (found.width, found.height) == (80, 48)
    assert numbers(read_frames(tmp_path / "r.mp4", [5, 2], backend=backend).frames) == [5, 2]
    scaled = read_frames(tmp_path / "r.mp4", [5, 2], (24, 120), backend=backend).frames
    assert scaled.shape == (2, 24, 120, 3)
    assert numbers(scaled) == [5, 2]


def test_odd_sizes(tmp_path, backend):
    write_clip(tmp_path / "o.mp4", 6, size=(37, 83), pixels="yuv444p", options={"crf": "10"})
    media = read_frames(tmp_path / "o.mp4", [3, 1], backend=backend)
    assert media.frames.shape == (2, 37, 83, 3)
    assert numbers(media.frames) == [3, 1]


CODECS = [
    ("b-pyramid.mp4", "libx264", {"g": "12", "bf": "5", "b_strategy": "0", "x264-params": "b-pyramid=normal"}),
    ("open-gop.mkv", "libx264", {"g": "10", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1:keyint=10:scenecut=0"}),
    ("refresh.ts", "libx264", {"g": "20", "bf": "0", "x264-params": "intra-refresh=1"}),
    ("h265.mp4", "libx265", {"x265-params": "keyint=10:bframes=3:log-level=none"}),
    ("mpeg4.avi", "mpeg4", {"g": "10", "bf": "2"}),
    ("mpeg2.ts", "mpeg2video", {"g": "10", "bf": "2"}),
    ("vp9.webm", "libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    ("av1.mkv", "libsvtav1", {"g": "10", "preset": "12"}),
    ("mjpeg.avi", "mjpeg", {"qmin": "2", "qmax": "2"}),
    ("h264.avi", "libx264", {"g": "12", "bf": "3"}),
    ("h264.flv", "libx264", {"g": "12", "bf": "3"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODECS)
def test_random_access_equals_decoding_from_the_start(tmp_path, backend, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write_clip(tmp_path / name, 60, size=(64, 96), codec=codec, options=options, pixels=pixels)
    with av.open(str(tmp_path / name)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert numbers(whole) == list(range(60))
    for asked in ([59], [0], [23, 24, 25], [41, 3, 17], [9, 10, 29, 30, 49, 50], list(range(60))):
        try:
            frames = read_frames(tmp_path / name, asked, backend=backend).frames
        except MediaError:  # the others may refuse a file, but not give wrong frames
            assert backend != "pyav"
        else:
            np.testing.assert_allclose(frames, whole[asked], atol=0 if codec != "mpeg4" else 1)


def test_a_late_frame_costs_a_fraction_of_the_whole(tmp_path):
    write_clip(tmp_path / "long.mp4", 240, size=(240, 320), options={"g": "12", "bf": "0", "preset": "ultrafast"})
    probe(tmp_path / "long.mp4")

    def cost(asked) -> float:
        start = time.process_time()
        assert numbers(read_frames(tmp_path / "long.mp4", asked).frames[-1:]) == [asked[-1] % 256]
        return time.process_time() - start

    one, all_frames = min(cost([230]) for _ in range(3)), min(cost(range(240)) for _ in range(2))
    assert one < all_frames / 6  # 11 frames decoded of 240


def test_frames_are_equal_whatever_decodes_them(clip, backend):
    np.testing.assert_array_equal(read_frames(clip, range(40), backend=backend).frames, read_frames(clip, range(40), backend="pyav").frames)
    mine, other = (read_frames(clip, [4, 30], (30, 56), backend=b).frames.astype(int) for b in (backend, "pyav"))
    assert np.abs(mine - other).mean() <= 2


def test_scaled_frames_are_close_to_pillows(clip):
    from data_pipelines.video.pictures import resized

    native, scaled = read_frames(clip, [4, 30]).frames, read_frames(clip, [4, 30], (30, 56)).frames
    assert np.abs(np.stack([resized(frame, (30, 56)) for frame in native]).astype(int) - scaled).mean() <= 2


def test_metadata_that_is_no_utf8_does_not_matter(tmp_path):
    with av.open(str(tmp_path / "m.mp4"), "w") as out:
        out.metadata["title"] = "marked"
        stream = out.add_stream("libx264", rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        out.mux(stream.encode())
    content = (tmp_path / "m.mp4").read_bytes()
    assert b"marked" in content
    (tmp_path / "m.mp4").write_bytes(content.replace(b"marked", b"m\xffrk\xfe\x80"))
    assert open_media(tmp_path / "m.mp4").frames.shape == (1, 48, 64, 3)


def test_a_stream_without_times_uses_the_rate_of_its_header(tmp_path):
    write_clip(tmp_path / "raw.h264", 20)
    found = probe(tmp_path / "raw.h264")
    assert (found.num_frames, found.fps) == (20, 25)
    np.testing.assert_allclose(found.timestamps_s, np.arange(20) / 25)
    assert numbers(read_frames(tmp_path / "raw.h264", [13, 2]).frames) == [13, 2]


def test_frames_of_changing_size_need_a_size(tmp_path):
    write_clip(tmp_path / "a.h264", 8, size=(48, 80))
    write_clip(tmp_path / "b.h264", 8, size=(64, 96))
    (tmp_path / "both.h264").write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(MediaError, match=r"both.h264: frames change from 80 x 48 to 96 x 64 pixels; give a size"):
        read_frames(tmp_path / "both.h264", range(16))
    assert numbers(read_frames(tmp_path / "both.h264", range(16), (48, 80)).frames) == [*range(8), *range(8)]


def test_a_file_without_a_duration(tmp_path, backend):
    write_clip(tmp_path / "live.mkv", container={"live": "1"})
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert container.duration is None
    if backend == "decord":
        with pytest.raises(MediaError, match=r"live.mkv: cannot be opened as a video by decord: Failed to measure duration"):
            probe(tmp_path / "live.mkv", backend=backend)
        return
    assert probe(tmp_path / "live.mkv", backend=backend).num_frames == 40
    assert numbers(read_frames(tmp_path / "live.mkv", ASKED, backend=backend).frames) == ASKED


def test_a_header_that_declares_too_many_frames_is_not_believed(tmp_path, backend):
    write_clip(tmp_path / "lie.avi", codec="mpeg4", options={"g": "12"})
    content = bytearray((tmp_path / "lie.avi").read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(tag) + offset
        assert struct.unpack_from("<I", content, at) == (40,)
        struct.pack_into("<I", content, at, 4000)
    (tmp_path / "lie.avi").write_bytes(content)
    assert probe(tmp_path / "lie.avi", backend=backend).num_frames == 40
    with pytest.raises(MediaError, match=r"lie.avi: frame 40 asked for, but it has 40 frames, 0 to 39"):
        read_frames(tmp_path / "lie.avi", [40], backend=backend)


# --- what cannot be read is named ----------------------------------------------------------------------------------------------------


def write_sound(path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_sound_alone_is_refused(tmp_path, backend):
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(MediaError, match=r"sound.mp4"):
        probe(tmp_path / "sound.mp4", backend=backend)
    with pytest.raises(MediaError, match=r"sound.mp4: holds no video, only audio"):
        probe(tmp_path / "sound.mp4", backend="pyav")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"no video at all " * 99, "cannot be opened as a video"),
        (b"\x89PNG\r\n\x1a\nxx", "cannot be read as a picture"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, content, cause):
    (tmp_path / "x.mp4").write_bytes(content)
    for read in (probe, open_media):
        with pytest.raises(MediaError, match=f"x.mp4: {cause}"):
            read(tmp_path / "x.mp4")


def test_playlists_that_name_other_files_are_not_opened(clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.mp4")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.txt", "list.m3u8"):
        with pytest.raises(MediaError, match="cannot be opened as a video"):
            probe(tmp_path / name)


def test_content_counts_and_not_the_name(clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.png")
    assert numbers(open_media(tmp_path / "clip.png", [9]).frames) == [9]
    with pytest.raises(MediaError, match=r"gone.mp4: no such file"):
        probe(tmp_path / "gone.mp4")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_cut_mp4_is_refused(tmp_path, backend, cut):
    for name, flags in (("end", ""), ("front", "faststart")):
        write_clip(tmp_path / "whole.mp4", size=(96, 160), container={"movflags": flags} if flags else {})
        whole = (tmp_path / "whole.mp4").read_bytes()
        (tmp_path / f"{name}.mp4").write_bytes(whole[: int(len(whole) * cut)])
        with pytest.raises(MediaError, match=f"{name}.mp4"):
            open_media(tmp_path / f"{name}.mp4", backend=backend)


def test_a_cut_mkv_gives_the_frames_that_are_there(tmp_path):
    write_clip(tmp_path / "whole.mkv", size=(96, 160), container={"cluster_time_limit": "200"})
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    try:
        media = open_media(tmp_path / "cut.mkv")
    except MediaError as error:
        assert "cut.mkv" in str(error)  # noqa: PT017  either is right, by FFmpeg's version
    else:
        assert numbers(media.frames) == list(range(len(media.frames)))
        assert 5 < len(media.frames) < 40


def test_a_recording_that_begins_between_keyframes_starts_at_the_first(tmp_path):
    write_clip(tmp_path / "whole.ts", 40, size=(96, 160))
    with av.open(str(tmp_path / "whole.ts")) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.size][2]
    content = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "late.ts").write_bytes(content[: 2 * 188 + 188] + content[third // 188 * 188 :])
    media = open_media(tmp_path / "late.ts")
    assert numbers(media.frames) == list(range(12, 40))
    np.testing.assert_allclose(media.timestamps_s, np.arange(28) * 0.04, atol=1e-3)
    assert numbers(read_frames(tmp_path / "late.ts", [20, 3]).frames) == [32, 15]


def test_times_that_contradict_the_order_of_frames_are_refused(tmp_path):
    """Two entries of an mp4's table of times are exchanged: each packet then claims the other's time."""
    write_clip(tmp_path / "t.mp4", 12, options={"g": "12", "bf": "3", "b_strategy": "0"})
    content = bytearray((tmp_path / "t.mp4").read_bytes())
    at = content.index(b"ctts") + 12
    entries = [content[at + 8 * i : at + 8 * i + 8] for i in range(12)]
    assert entries[2] != entries[3]
    offsets = [struct.unpack(">II", entry) for entry in entries]
    assert offsets[2][0] == offsets[3][0] == 1
    step = 512
    struct.pack_into(">I", content, at + 8 * 2 + 4, offsets[3][1] + step)  # the third packet is shown when the fourth should be
    struct.pack_into(">I", content, at + 8 * 3 + 4, offsets[2][1] - step)
    (tmp_path / "t.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"t.mp4: the times of its frames contradict their order"):
        open_media(tmp_path / "t.mp4")


def test_a_cut_avi_is_refused(tmp_path):
    write_clip(tmp_path / "whole.avi", codec="mpeg4", options={"g": "12", "bf": "2"})
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[:-2000])
    with pytest.raises(MediaError, match=rf"cut.avi: ends after {len(whole) - 2000} of the {len(whole)} bytes that its header declares"):
        open_media(tmp_path / "cut.avi")


def test_damage_is_an_error_and_not_a_picture(tmp_path):
    """Zeros over a stretch of coded frames: the frames before decode, those that need the stretch do not."""
    write_clip(tmp_path / "d.mp4", 60, size=(96, 160), container={"movflags": "faststart"})
    with av.open(str(tmp_path / "d.mp4")) as container:
        packets = [(p.pos, p.size, p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    keys = [packet for packet in packets if packet[3]]
    content = bytearray((tmp_path / "d.mp4").read_bytes())
    start, length = keys[2][0] + 40, keys[2][1] - 60
    content[start : start + length] = bytes(length)
    (tmp_path / "d.mp4").write_bytes(content)
    assert numbers(read_frames(tmp_path / "d.mp4", [3, 15]).frames) == [3, 15]
    assert numbers(read_frames(tmp_path / "d.mp4", [50]).frames) == [50]
    with pytest.raises(MediaError, match=r"d.mp4: cannot be decoded at 0.9"):
        read_frames(tmp_path / "d.mp4", [30])


# --- limits --------------------------------------------------------------------------------------------------------------------------


def test_limits_are_held(clip, backend):
    with pytest.raises(MediaError, match=r"clip.mp4: frames of 80 x 48 pixels are more than 3839"):
        probe(clip, backend=backend, limits=Limits(frame_pixels=3839))
    with pytest.raises(MediaError, match=r"clip.mp4: 3 frames of 80 x 48 pixels are more than 11519 pixels in all"):
        read_frames(clip, [0, 1, 2], backend=backend, limits=Limits(total_pixels=11519))
    assert len(read_frames(clip, [0, 1, 2], backend=backend, limits=Limits(total_pixels=11520)).frames) == 3
    with pytest.raises(ValueError, match="limits must be above 0"):
        Limits(seconds=0)


def test_time_is_up_while_decoding(clip):
    with pytest.raises(MediaError, match=r"clip.mp4: not read within the limit of 1e-06 s"):
        read_frames(clip, [3], backend="pyav", limits=Limits(seconds=1e-6))


def test_a_decoder_that_hangs_is_killed_and_the_next_call_works(clip):
    calm, apart = Limits(isolated=True), Limits(isolated=True, seconds=0.3)
    assert numbers(read_frames(clip, [3], backend="pyav", limits=calm).frames) == [3]
    hung = isolate._children["pyav"].process
    os.kill(hung.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"clip.mp4: not read within the limit of 0.3 s"):
        read_frames(clip, [3], backend="pyav", limits=apart)
    assert time.monotonic() - start < 5
    assert hung.poll() is not None
    assert numbers(read_frames(clip, [4], backend="pyav", limits=calm).frames) == [4]


def test_a_decoder_that_crashes_is_a_media_error(clip):
    calm = Limits(isolated=True)
    read_frames(clip, [3], backend="pyav", limits=calm)
    child = isolate._children["pyav"].process
    os.kill(child.pid, signal.SIGSTOP)
    later = threading.Timer(0.3, lambda: (os.kill(child.pid, signal.SIGSEGV), os.kill(child.pid, signal.SIGCONT)))
    later.start()
    with pytest.raises(MediaError, match=r"clip.mp4: pyav crashed on it \(SIGSEGV\)"):
        read_frames(clip, [3], backend="pyav", limits=calm)
    later.join()
    assert numbers(read_frames(clip, [5], backend="pyav", limits=calm).frames) == [5]


def test_an_isolated_answer_is_the_same(clip):
    here, there = (read_frames(clip, ASKED, (30, 50), limits=limits) for limits in (Limits(), Limits(isolated=True)))
    np.testing.assert_array_equal(here.frames, there.frames)
    np.testing.assert_array_equal(here.timestamps_s, there.timestamps_s)
    with pytest.raises(MediaError, match=r"clip.mp4: frame 99 asked for"):
        read_frames(clip, [99], limits=Limits(isolated=True))


# --- arguments and backends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [([], None, "at least one frame"), ([1.5], None, "whole numbers"), ([0], (0, 4), "both 1 or more"), ([0], (4, -1), "both 1 or more")],
)
def test_bad_arguments(clip, indices, size, message):
    with pytest.raises(ValueError, match=message):
        read_frames(clip, indices, size)


@pytest.mark.parametrize("index", [-1, 40])
def test_indices_outside_are_refused(clip, index):
    with pytest.raises(MediaError, match=rf"clip.mp4: frame {index} asked for, but it has 40 frames, 0 to 39"):
        read_frames(clip, [0, index])


def test_the_backend_is_chosen_once_and_said_once(clip, monkeypatch, caplog):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends._announce.cache_clear()
    with caplog.at_level(logging.INFO):
        assert choose().name == choose().name == "pyav"
        monkeypatch.setenv(backends.VARIABLE, "pyav")
        probe(clip)
    assert [record.message for record in caplog.records] == [
        "video backend: pyav, the first that decodes the probe clip",
        "video backend: pyav, as asked",
    ]
    monkeypatch.setenv(backends.VARIABLE, "gstreamer")
    with pytest.raises(ValueError, match="video backend 'gstreamer' is unknown; there are pyav, torchcodec, decord"):
        probe(clip)


def test_without_a_usable_backend_the_error_says_what_to_install(clip, monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends, "trouble", lambda name: f"no {name}")
    with pytest.raises(MediaError, match=r"no video backend is usable; install one with `pip install av` \(pyav: no pyav; "):
        probe(clip)
    with pytest.raises(MediaError, match="video backend decord is not usable: no decord"):
        probe(clip, backend="decord")


def test_a_backend_that_gives_wrong_frames_is_not_usable(monkeypatch, clip):
    """Frames one too late, as a decoder gives them that seeks past its keyframe."""
    right = BACKENDS["pyav"].read

    def late(path, scan, wanted, size, limits, deadline):
        return right(path, scan, np.minimum(wanted + 1, scan.info.num_frames - 1), size, limits, deadline)

    trouble.cache_clear()
    monkeypatch.setattr(BACKENDS["pyav"], "read", late, raising=False)
    try:
        assert "got [8, 3, 11, 3]" in (trouble("pyav") or "")
    finally:
        monkeypatch.undo()
        trouble.cache_clear()
    assert trouble("pyav") is None


def test_a_changed_file_is_scanned_anew(tmp_path):
    write_clip(tmp_path / "c.mp4", 10)
    assert probe(tmp_path / "c.mp4").num_frames == 10
    write_clip(tmp_path / "c.mp4", 14)
    assert probe(tmp_path / "c.mp4").num_frames == 14


def test_a_forked_process_starts_its_own_child(clip):
    code = """
import os, sys
from data_pipelines.video.decode import read_frames, Limits
apart = Limits(isolated=True)
read_frames(sys.argv[1], [1], limits=apart)
from data_pipelines.video import isolate
mine = isolate._children["pyav"].process.pid
pid = os.fork()
read_frames(sys.argv[1], [2], limits=apart)
other = isolate._children["pyav"].process.pid
if pid:
    assert other == mine
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os._exit(other == mine)
"""
    root = Path(__file__).parents[4]
    subprocess.run([sys.executable, "-c", code, str(clip)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=60)
