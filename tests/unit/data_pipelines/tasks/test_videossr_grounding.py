import numpy as np
import pytest

from data_pipelines.tasks.videossr_grounding import CHANGES, OPERATIONS, answer, baseline, draw_segment, fewest_frames, lengths, span_of
from data_pipelines.video.sampling import VideoSSRFrames
from mmrl.seeding import stream
from rewards.baselines import grounding_baseline
from rewards.spans import temporal_iou


def test_answers_are_on_the_clock_of_the_full_duration():
    """Acceptance check 6: 1000 frames at 25 a second last 40 s; 48 / 40 = 1.2; 20 / 1.2 = 16.67, 30 / 1.2 = 25."""
    sample_fps = VideoSSRFrames(48).sample_fps(1000, 25.0)
    assert sample_fps == pytest.approx(1.2)
    assert answer((20, 30), sample_fps) == "16.7-25.0"
    assert span_of("16.7-25.0") == [16.7, 25.0]


def test_lengths_are_the_papers_and_scale():
    assert list(lengths(48)) == list(range(8, 17))
    assert list(lengths(12)) == [2, 3, 4]


def test_lengths_and_starts_are_uniform():
    """9 lengths; a segment of 16 of 48 frames starts at 0 to 32."""
    drawn = [draw_segment(stream(i), 48) for i in range(9000)]
    sizes = np.bincount([end - start for start, end in drawn])
    assert sizes[:8].sum() == 0
    assert len(sizes) == 17
    assert sizes[8:].min() > 850  # 1000 expected, standard deviation 30
    assert {start for start, end in drawn if end - start == 16} == set(range(33))
    assert max(end for _, end in drawn) == 48


def test_baselines():
    """Acceptance check 8, from the rewards' own count and over draws; the whole clip earns 12 / 48."""
    found = baseline(48)
    assert found.constant == pytest.approx(0.3060, abs=5e-5)
    assert found.answer == "frames 10-38 of 48"
    assert found.constant == pytest.approx(grounding_baseline()[1])
    assert baseline(12).constant == pytest.approx(grounding_baseline(12, 2, 4)[1])
    drawn = [draw_segment(stream("baseline", i), 48) for i in range(4000)]
    assert np.mean([temporal_iou((10, 38), one) for one in drawn]) == pytest.approx(found.constant, abs=0.006)
    assert np.mean([temporal_iou((0, 48), one) for one in drawn]) == pytest.approx(0.25, abs=0.002)
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    assert np.mean([temporal_iou(*pair) for pair in pairs]) == pytest.approx(found.chance, abs=0.015)
    # 12 frames: lengths 2, 3, 4 with 11, 10, 9 starts; the likeliest segment is one of the 9
    assert baseline(12).success_constant == pytest.approx(1 / 27)
    assert baseline(12).success_chance == pytest.approx((1 / 11 + 1 / 10 + 1 / 9) / 9)


def test_every_change_has_words_and_a_least_length():
    assert CHANGES.keys() == OPERATIONS.keys()
    assert fewest_frames("stutter_hold") == 30  # a sixth of them is 5, and it may hold 5 key frames
    assert (fewest_frames("shuffle"), fewest_frames("mirror")) == (12, 6)
