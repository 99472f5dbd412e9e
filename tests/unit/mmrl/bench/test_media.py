from fractions import Fraction

import av
import decord
import numpy as np
import pytest
from qwen_vl_utils import vision_process

from mmrl.bench import media
from mmrl.bench.media import Budget, command, run
from mmrl.errors import RecipeError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds, 25 frames each, 96 x 64 pixels of slowly moving colours."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    rows, columns = np.mgrid[:64, :96]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"threads": "1", "g": "25", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for n in range(75):
            frame = av.VideoFrame.from_ndarray(np.stack([rows * 2 + n, columns + n, rows + columns], -1).astype(np.uint8))
            frame.pts, frame.time_base = n, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_both_sides_read_the_same_frames_in_the_same_size(clip, monkeypatch):
    """6 frames at 2 a second. 64 x 96 is below 128 tokens of 28 x 28, so it is scaled by sqrt(128 * 28² / (64 * 96)) = 4.04 up to
    280 x 392."""
    monkeypatch.setattr(media, "READERS", ("decord",))
    reader, backend = decord.VideoReader, vision_process.get_video_reader_backend
    point = run(clip, Budget("qwen2_5_vl", 2.0, 16, None), rounds=1)
    assert (point["frames"], point["size"], point["source_size"]) == (6, [280, 392], [64, 96])
    assert point["not_compared"] == {}
    assert point["fastest_reader"] == "decord"
    assert 0 < point["mean_abs_pixel_diff"]["decord"] < 2 / 255
    seconds = point["seconds"]
    assert set(seconds) == {"decord", "mmrl", "mmrl_cached"}
    assert point["speedup"] == pytest.approx(seconds["decord"] / seconds["mmrl"], rel=0.05)
    assert decord.VideoReader is reader
    assert vision_process.get_video_reader_backend is backend


def test_a_reader_that_chooses_other_frames_is_not_compared_with(clip, monkeypatch):
    monkeypatch.setattr(media, "READERS", ("decord",))
    monkeypatch.setattr(Budget, "indices", lambda self, num_frames, fps: np.arange(4))
    with pytest.raises(RecipeError, match=r"clip\.mp4: nothing to compare with: .*chooses other frames: 6 of 75, not 4 of 75"):
        run(clip, Budget("qwen2_5_vl", 2.0, 16, None), rounds=1)


def test_wrong_words_are_told(clip, tmp_path):
    with pytest.raises(RecipeError, match="--family: got 'llava'; known: qwen2_5_vl, qwen3_vl"):
        command([clip], ["llava"], [2.0], [16], [0], 1, None)
    with pytest.raises(RecipeError, match=r"nothing\.mp4: no such file"):
        command([clip, tmp_path / "nothing.mp4"], ["qwen3_vl"], [2.0], [16], [0], 1, None)
