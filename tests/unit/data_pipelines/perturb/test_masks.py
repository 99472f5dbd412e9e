import numpy as np
import pytest

from data_pipelines.perturb.ops import PatchMask, PatchScoreMask
from mmrl.types import Media


def white(height: int, width: int, frames: int = 1) -> Media:
    return Media(np.full((frames, height, width, 3), 255, np.uint8), np.arange(frames) / 2 if frames > 1 else None)


def cells(media: Media, patch: int) -> np.ndarray:
    """bool [F, rows, columns]: which cells are filled; fails if one is filled in part."""
    frames = (media.frames != 255).all(axis=-1)
    rows, columns = (range(0, size, patch) for size in frames.shape[1:])
    tiles = [[frames[:, y : y + patch, x : x + patch] for x in columns] for y in rows]
    for tile in (tile for row in tiles for tile in row):
        assert (tile.all(axis=(1, 2)) == tile.any(axis=(1, 2))).all()
    return np.moveaxis(np.array([[tile.all(axis=(1, 2)) for tile in row] for row in tiles]), 2, 0)


def test_papo_check_5_ratio_0_is_identical_and_ratio_1_is_black(clip, rng):
    assert PatchMask(0.0)(clip, rng).frames.tobytes() == clip.frames.tobytes()
    assert not PatchMask(1.0)(clip, rng).frames.any()


@pytest.mark.parametrize(("height", "width", "shape"), [(28, 42, (1, 2, 3)), (30, 30, (1, 3, 3))])
def test_papo_check_5_cells_of_14_pixels_the_last_may_be_partial(height, width, shape, rng):
    assert cells(PatchMask(0.5)(white(height, width), rng), 14).shape == shape


def test_papo_check_5_of_10_000_cells_60_percent_are_masked(rng):
    masked = cells(PatchMask(0.6)(white(1400, 1400), rng), 14)
    assert masked.size == 10_000
    assert masked.mean() == pytest.approx(0.6, abs=0.0147)  # 3 sigma


def test_a_video_has_one_draw_or_one_for_each_frame(rng):
    shared = cells(PatchMask(0.5, patch=3)(white(30, 30, 4), rng), 3)
    assert (shared == shared[0]).all()
    own = cells(PatchMask(0.5, patch=3, per_frame=True)(white(30, 30, 4), rng), 3)
    assert all((own[i] != own[0]).any() for i in range(1, 4))
    assert own.mean() == pytest.approx(0.5, abs=0.1)


def test_what_is_not_hidden_stays_and_what_is_has_the_colour(picture, rng):
    after = PatchMask(0.5, patch=7, fill=(1, 2, 255))(picture, rng).frames
    filled = (after == (1, 2, 255)).all(axis=-1)
    assert 0.3 < filled.mean() < 0.7
    assert (after[~filled] == picture.frames[~filled]).all()


def test_the_cells_of_highest_score_are_hidden_the_earlier_of_equals():
    scores = np.array([[1.0, 5.0, 2.0], [5.0, 0.0, 2.0]])
    after = PatchScoreMask(scores, ratio=0.5)(white(4, 6), None)  # floor(0.5 * 6) = 3 cells of 2 x 2 pixels
    assert cells(after, 2).tolist() == [[[False, True, True], [True, False, False]]]
    assert cells(PatchScoreMask(scores, ratio=0.49)(white(4, 6), None), 2).sum() == 2


def test_scores_of_each_frame_and_a_grid_that_does_not_divide_the_picture():
    after = PatchScoreMask(np.array([[[0.0, 1.0]], [[1.0, 0.0]]]), ratio=0.5)(white(3, 5, 2), None).frames[..., 0]
    assert after[0].tolist() == [[255, 255, 255, 0, 0]] * 3  # column x lies in cell 2 * x // 5
    assert after[1].tolist() == [[0, 0, 0, 255, 255]] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchMask(1.5), r"ratio must lie in \[0, 1\]; got 1.5"),
        (lambda: PatchMask(patch=0), "patch must be 1 or more pixels; got 0"),
        (lambda: PatchMask(fill=(0, 0, 256)), "fill must be three numbers of 0 to 255"),
        (lambda: PatchScoreMask(np.array([[np.nan]])), "scores must be finite"),
        (lambda: PatchScoreMask(np.zeros((3, 2, 2)))(white(4, 4, 2), None), r"scores of shape \(3, 2, 2\) do not fit 2 frames"),
        (lambda: PatchScoreMask(np.zeros((5, 2)))(white(4, 4), None), "do not fit 1 frames of 4 x 4 pixels"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
