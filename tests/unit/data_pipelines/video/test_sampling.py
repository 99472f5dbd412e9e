import pickle

import numpy as np
import pytest

from data_pipelines.video.sampling import (
    KeyFrames,
    QwenFrames,
    SceneFrames,
    SegmentFrames,
    StrideFrames,
    UniformFrames,
    VideoSSRFrames,
    frame_changes,
)

SAMPLERS = [
    UniformFrames(8),
    StrideFrames(3),
    StrideFrames(3, max_frames=5),
    SegmentFrames(8, seed=0),
    VideoSSRFrames(12),
    QwenFrames(),
    QwenFrames(rule="qwen2_5_vl"),
    QwenFrames(rule="qwen3_vl"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("num_frames", [20, 97, 1000])
def test_every_sampler_gives_rising_int64_indices_of_the_video(sampler, num_frames):
    indices = sampler(num_frames, 25.0)
    assert indices.dtype == np.int64
    assert indices.ndim == 1
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < num_frames
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sampler))(num_frames, 25.0), indices)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize(("num_frames", "fps"), [(0, 25.0), (10, 0.0), (10, float("nan")), (10, float("inf"))])
def test_no_frames_or_no_rate(sampler, num_frames, fps):
    with pytest.raises(ValueError, match=f"at least one frame and a finite rate > 0; got {num_frames} frames at {fps}"):
        sampler(num_frames, fps)


@pytest.mark.parametrize(
    ("sampler", "num_frames", "expected"),
    [
        (UniformFrames(4), 100, [12, 37, 62, 87]),  # middles of [0, 25), [25, 50), …: 12.5, 37.5, 62.5, 87.5
        (UniformFrames(4), 4, [0, 1, 2, 3]),
        (UniformFrames(4), 2, [0, 0, 1, 1]),  # 0.25, 0.75, 1.25, 1.75
        (StrideFrames(30), 100, [0, 30, 60, 90]),
        (StrideFrames(30, max_frames=2), 100, [0, 30]),
        (QwenFrames(nframes=4), 100, [0, 33, 66, 99]),  # both ends
        (QwenFrames(nframes=4, rule="qwen3_vl"), 100, [0, 33, 66, 99]),
        (QwenFrames(nframes=4, rule="qwen2_5_vl"), 100, [0, 25, 50, 75]),  # starts of four parts
        (QwenFrames(nframes=5), 100, [0, 33, 66, 99]),  # 5 / 2 = 2.5 rounds to even: 2 patches
        (QwenFrames(nframes=5, rule="qwen3_vl"), 100, [0, 25, 50, 74, 99]),  # 49.5 and 24.75: halves go to the even number
        (QwenFrames(fps=1.0), 100, [0, 33, 66, 99]),  # 4 s at 25 per second
        (QwenFrames(fps=1.0, video_start=1.0, video_end=3.0), 100, [25, 42, 58, 75]),  # 2.04 s, min_frames; 25 + 50/3 = 41.67
    ],
)
def test_which_frames(sampler, num_frames, expected):
    assert sampler(num_frames, 25.0).tolist() == expected


def test_segments_give_one_frame_each_by_key():
    """Ten parts of ten frames: frame i is in [10 i, 10 i + 10), other seeds other frames, the same seed the same."""
    indices = SegmentFrames(10, seed=3)(100, 25.0)
    assert (indices // 10).tolist() == list(range(10))
    np.testing.assert_array_equal(indices, SegmentFrames(10, seed=3)(100, 25.0))
    assert indices.tolist() != SegmentFrames(10, seed=4)(100, 25.0).tolist()
    drawn = np.concatenate([SegmentFrames(10, seed=seed)(100, 25.0) for seed in range(200)])
    assert len(set(drawn.tolist())) == 100  # missing one of 100 by chance: 100 · 0.9^200 = 7e-8, and the draw is keyed
    assert SegmentFrames(4, seed=0)(2, 25.0).tolist() == [0, 0, 1, 1]


def test_videossr_window():
    """Acceptance check 6: N = 1000, fps 25 -> start 50, end 950, step 18, last frame 896, sample_fps 1.2."""
    sampler = VideoSSRFrames()
    indices = sampler(1000, 25.0)
    assert indices.tolist() == list(range(50, 897, 18))
    assert (len(indices), indices[-1]) == (48, 896)
    sample_fps = sampler.sample_fps(1000, 25.0)
    assert sample_fps == pytest.approx(1.2)
    assert f"{20 / sample_fps:.1f}-{(20 + 10) / sample_fps:.1f}" == "16.7-25.0"  # perturbed frames [20, 30)


def test_videossr_says_which_videos_are_too_short():
    """53 frames: int(2.65) = 2 to int(50.35) = 50, which is 48. 52 frames: 2 to 49, one too few."""
    sampler = VideoSSRFrames()
    assert sampler.fits(53)
    assert sampler(53, 25.0).tolist() == list(range(2, 50))
    assert not sampler.fits(52)
    with pytest.raises(ValueError, match="the middle 90 % of 52 frames cannot give 48 different ones"):
        sampler(52, 25.0)


@pytest.mark.parametrize(
    ("fields", "num_frames", "message"),
    [
        ({"rule": "qwen"}, 100, "rule must be one of qwen_vl_utils, qwen2_5_vl, qwen3_vl; got 'qwen'"),
        ({"fps": 0.0}, 100, "fps must be > 0 and finite; got 0.0"),
        ({"min_frames": 8, "max_frames": 6}, 100, "max_frames must be at least min_frames = 8; got 6"),
        ({"nframes": 64}, 50, "asks for 64 frames of 50; it can give 2 to 50"),
        ({}, 1, "asks for 0 frames of 1"),
        ({"video_start": 3.0, "video_end": 2.0}, 100, "leave frames 75 to 50 of a video of 100 frames at 25 per second, 4.00 s"),
        ({"video_start": 9.0}, 100, "leave frames 100 to 99"),
    ],
)
def test_qwen_frames_refuse(fields, num_frames, message):
    with pytest.raises(ValueError, match=message):
        QwenFrames(**fields)(num_frames, 25.0)


@pytest.mark.parametrize("sampler", [UniformFrames, KeyFrames, SceneFrames, VideoSSRFrames, StrideFrames])
def test_counts_are_positive(sampler):
    with pytest.raises(ValueError, match="must be at least 1; got 0"):
        sampler(0)


def test_keyframes():
    keys = np.array([0, 10, 11, 12, 40, 90])
    assert KeyFrames(8)(100, 25.0, keys).tolist() == [0, 10, 11, 12, 40, 90]
    assert KeyFrames(3)(100, 25.0, keys).tolist() == [10, 12, 90]  # places 1, 3, 5 of the list


@pytest.mark.parametrize("keys", [[], [3, 3], [5, 2], [-1, 4], [0, 100], [0.0, 1.0], [[0, 1]]])
def test_keyframes_must_be_rising_indices_of_the_video(keys):
    with pytest.raises(ValueError, match=r"keyframes must be rising integers in \[0, 100\), at least one; got"):
        KeyFrames(3)(100, 25.0, np.array(keys))


def scenes(*lengths_and_levels: tuple[int, int]) -> np.ndarray:
    levels = np.concatenate([np.full(length, level) for length, level in lengths_and_levels])
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 2, 3, 3)).astype(np.uint8)


def test_changes_do_not_wrap_around():
    """255 -> 0 is a change of 255, not of 1."""
    assert frame_changes(scenes((2, 255), (1, 0), (1, 10))).tolist() == [0, 0, 255, 10]


def test_one_frame_per_scene():
    """Scenes [0, 40), [40, 44), [44, 60): middles 20, 42, 52."""
    thumbnails = scenes((40, 10), (4, 200), (16, 90))
    assert SceneFrames(3)(60, 25.0, thumbnails).tolist() == [20, 42, 52]
    assert SceneFrames(2)(60, 25.0, thumbnails).tolist() == [20, 50]  # the larger change, 190 at 40, is the cut
    assert SceneFrames(4)(60, 25.0, thumbnails).tolist() == [10, 30, 42, 52]  # [0, 40) is halved
    assert SceneFrames(2, threshold=200)(60, 25.0, thumbnails).tolist() == [15, 45]  # nothing counts as a cut


def test_a_still_video_gives_frames_evenly_spread():
    assert SceneFrames(4)(80, 25.0, scenes((80, 7))).tolist() == [10, 30, 50, 70]
    assert SceneFrames(8)(3, 25.0, scenes((3, 7))).tolist() == [0, 1, 2]


def test_thumbnails_must_fit():
    with pytest.raises(ValueError, match="one thumbnail per frame is needed: 81 frames, 80 thumbnails"):
        SceneFrames(4)(81, 25.0, scenes((80, 7)))
    with pytest.raises(ValueError, match=r"frames must be uint8 \[N, h, w, 3\] with no empty axis; got float64 \(80, 2, 3, 3\)"):
        SceneFrames(4)(80, 25.0, scenes((80, 7)).astype(float))
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 255\]; got 0"):
        SceneFrames(4, threshold=0)
