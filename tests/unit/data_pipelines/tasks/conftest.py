"""A folder of short videos."""

import pytest

from data_pipelines.tasks.clips import synthetic_clip
from data_pipelines.video.encode import write_video


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Five .mp4 of 30 frames of 56 x 84 pixels at 5 a second: 24 frames of one last 6 seconds."""
    pytest.importorskip("av", reason="PyAV is optional")
    folder = tmp_path_factory.mktemp("films")
    for number in range(5):
        clip = synthetic_clip("train", 0, number, num_frames=30, height=56, width=84)
        write_video(clip.frames, folder / f"{number}.mp4", 5)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Decoded frames are kept for the tests alone."""
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
