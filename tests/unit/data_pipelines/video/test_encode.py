import builtins

import numpy as np
import pytest

from data_pipelines.tasks.clips import synthetic_clip
from data_pipelines.video.encode import write_video
from mmrl.errors import MediaError


def test_a_written_video_holds_the_frames_at_their_seconds(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is optional")
    clip = synthetic_clip("train", 0, 0, num_frames=20, width=84)
    write_video(clip.frames, tmp_path / "clip.mp4", 2)
    with av.open(str(tmp_path / "clip.mp4")) as file:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    assert [time for time, _ in decoded] == clip.timestamps_s.tolist()
    off = np.abs(np.stack([pixels for _, pixels in decoded]).astype(int) - clip.frames)
    assert off.shape == (20, 56, 84, 3)
    assert off.mean() < 4  # colours of 2 x 2 pixels are one


def test_odd_sides_and_a_bad_place_are_media_errors(tmp_path):
    pytest.importorskip("av", reason="PyAV is optional")
    with pytest.raises(MediaError, match="7 x 8 pixels: a video needs even sides"):
        write_video(np.zeros((3, 7, 8, 3), np.uint8), tmp_path / "odd.mp4", 2)
    with pytest.raises(MediaError, match="cannot be written"):
        write_video(np.zeros((3, 8, 8, 3), np.uint8), tmp_path / "nowhere" / "clip.mp4", 2)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MediaError, match="pip install av"):
        write_video(np.zeros((3, 8, 8, 3), np.uint8), tmp_path / "clip.mp4", 2)
