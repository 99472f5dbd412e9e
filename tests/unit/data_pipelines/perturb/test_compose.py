import numpy as np
import pytest

from data_pipelines.perturb.ops import (
    VIDEOSSR_KINDS,
    Chain,
    ChannelSwap,
    Flip,
    FrameShuffle,
    GaussianNoise,
    Grayscale,
    Invert,
    Segment,
    Swap,
    Tilt,
    VogueView,
    visibility,
)
from mmrl.seeding import stream
from mmrl.types import Media


@pytest.mark.parametrize("kind", VIDEOSSR_KINDS)
def test_a_segment_changes_its_own_frames_only(kind, clip):
    after = Segment(VIDEOSSR_KINDS[kind], 4, 6)(clip, stream(kind))
    outside = np.r_[0:4, 10:12]
    assert (after.frames[outside] == clip.frames[outside]).all()
    assert visibility(clip, after, 4, 6) > 1
    assert after.timestamps_s is clip.timestamps_s


def test_a_shuffle_and_a_swap_stay_inside_the_segment(numbered):
    inside = Segment(FrameShuffle(), 3, 4)(numbered, stream(0)).frames[3:7, 0, 0, 0] // 20
    assert sorted(inside.tolist()) == [3, 4, 5, 6]
    other = Media(np.full_like(numbered.frames, 255))
    assert (Segment(Swap(other), 8, 2)(numbered, stream(0)).frames[:, 0, 0, 0] == [0, 20, 40, 60, 80, 100, 120, 140, 255, 255]).all()


def test_a_segment_of_a_picture(picture, rng):
    assert (Segment(Invert(), 0, 1)(picture, rng).frames == 255 - picture.frames).all()


def test_a_chain_goes_in_order(clip, rng):
    after = Chain((ChannelSwap((2, 1, 0)), Invert(), Flip()))(clip, rng)
    assert (after.frames == 255 - clip.frames[:, :, ::-1, ::-1]).all()
    assert Chain(())(clip, rng) is clip


def test_vogue_draws_one_geometry_and_noise_for_each_frame(picture):
    twice = Media(np.repeat(picture.frames, 2, axis=0), np.arange(2.0))
    still = VogueView(sigma=0.0)(twice, stream(0)).frames
    assert (still[0] == still[1]).all()
    assert (still[0] != picture.frames[0]).any()
    noisy = VogueView(sigma=0.2)(twice, stream(0)).frames
    assert (noisy[0] != noisy[1]).mean() > 0.8  # the others are cut off at 0 or 255 in both
    assert np.corrcoef(noisy[0].ravel().astype(float), still[0].ravel())[0, 1] > 0.3  # the same geometry under the noise


def test_vogue_flips_half_the_time_and_never_without_geometry(rng):
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, :20, :20] = 255
    corners = [VogueView(sigma=0.0)(Media(frames), stream("flip", i)).frames[0, ::39, ::39, 0] for i in range(200)]
    frames[:, :20, :20] = 0
    where = [tuple(np.argwhere(corner > 100)[0]) for corner in corners if (corner > 100).any()]
    share = {place: where.count(place) / len(where) for place in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert sum(share.values()) == pytest.approx(1)
    assert all(value == pytest.approx(0.25, abs=0.12) for value in share.values())


def test_vogue_without_geometry_is_jitter_and_noise(picture):
    after = VogueView(sigma=0.0, geometric=False)(picture, stream(0)).frames
    assert np.abs(after.astype(int) - picture.frames).mean() < 40
    values = {value: len(np.unique(after[picture.frames == value])) for value in np.unique(picture.frames)}
    assert set(values.values()) == {1}  # a table: no pixel moved
    assert VogueView(strength=0.0)(picture, stream(0)) is picture


def test_visibility_is_the_mean_absolute_change(numbered):
    lighter = Media(numbered.frames + np.uint8(5), numbered.timestamps_s)
    assert visibility(numbered, lighter) == visibility(lighter, numbered) == 5.0
    assert visibility(numbered, Segment(Invert(), 0, 1)(numbered, None), 0, 2) == 255 / 2


def test_what_cannot_be_seen_has_visibility_0(numbered, rng):
    assert visibility(numbered, Grayscale()(numbered, rng)) == 0  # grey already
    assert visibility(numbered, Flip()(numbered, rng)) == 0  # symmetric
    still = Media(numbered.frames[[3] * 10], numbered.timestamps_s)
    assert visibility(still, FrameShuffle()(still, rng)) == 0
    assert visibility(still, still, 2, 3) == 0


def test_visibility_of_large_clips_sums_exactly():
    black = Media(np.zeros((3, 300, 200, 3), np.uint8))
    assert visibility(black, Media(np.full_like(black.frames, 255))) == 255.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: Segment(Flip(), -1, 3), "need start >= 0 and length >= 1; got -1 and 3"),
        (lambda clip: Segment(Flip(), 8, 5)(clip, None), r"segment \[8, 13\) does not lie in 12 frames"),
        (lambda clip: visibility(clip, clip, 8, 5), r"segment \[8, 13\) does not lie in 12 frames"),
        (lambda clip: visibility(clip, clip, 3, 0), r"segment \[3, 3\)"),
        (lambda clip: visibility(clip, Media(clip.frames[:, :-1])), "frames of different shapes"),
        (lambda clip: VogueView(sigma=3.0), r"sigma must lie in \[0, 1\]; got 3.0"),
        (lambda clip: GaussianNoise(strength=1.1), r"strength must lie in \[0, 1\]; got 1.1"),
        (lambda clip: Tilt(strength=-0.1), r"strength must lie in \[0, 1\]; got -0.1"),
    ],
)
def test_errors(make, message, clip):
    with pytest.raises(ValueError, match=message):
        make(clip)
