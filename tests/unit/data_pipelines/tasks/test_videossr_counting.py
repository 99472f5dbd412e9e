import math
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest

from data_pipelines.perturb.shapes import pasted
from data_pipelines.tasks.videossr_counting import (
    CONTRAST,
    KINDS,
    SHAPES,
    answer,
    baseline,
    contrast,
    counts,
    draw_frames,
    draw_shapes,
    gap,
    totals,
)
from mmrl.seeding import stream
from rewards.baselines import counting_baseline
from rewards.videossr import count_credit

EDGE = np.ones((72, 200), bool)
EDGE[1:-1, 1:-1] = False
WIDE = np.zeros((48, 72, 200, 3), np.uint8)


@pytest.fixture(scope="module")
def drawn():
    return {
        kind.frames: [draw_shapes(stream("drawn", i), WIDE, kind) for i in range(200)]
        for kind in (KINDS["counting-easy"], KINDS["counting-hard"])
    }


@pytest.mark.parametrize(
    ("kind", "most", "mean", "constant", "credit"), [("counting-easy", 3, 4.0, 3, 0.5831), ("counting-hard", 4, 6.25, 5, 0.5480)]
)
def test_totals_and_baselines(drawn, kind, most, mean, constant, credit):
    """Acceptance check 7: exactly, and over what is drawn where there is room."""
    chances = np.array(totals(KINDS[kind]))
    assert (chances.sum(), chances @ np.arange(len(chances))) == pytest.approx((1, mean))
    assert np.flatnonzero(chances).tolist() == list(range(1, most * most + 1))
    found = baseline(kind)
    assert found.constant == pytest.approx(credit, abs=5e-5)
    assert found.answer == answer(dict.fromkeys(SHAPES, constant))
    assert counting_baseline(most) == (constant, pytest.approx(found.constant))
    assert found.success_constant == pytest.approx(chances.max() ** 3)
    seen = np.array([list(counts(shapes).values()) for shapes in drawn[most]])
    assert seen.mean() == pytest.approx(mean, abs=0.2)
    assert (seen.min(), seen.max() <= most * most) == (1, True)
    assert np.mean([count_credit(constant, true) for true in seen.flat]) == pytest.approx(credit, abs=0.02)


@pytest.mark.parametrize(("num_frames", "most"), [(48, 3), (48, 4), (12, 3), (16, 4)])
def test_frames_keep_their_distance_and_are_not_shared(num_frames, most):
    """9 of 48 frames between two with the same shape, in proportion 2 of 12. A choice made again does not make fewer frames likelier."""
    numbers = []
    for i in range(400):
        chosen = draw_frames(stream("frames", i), num_frames, most)
        together = list(chain(*chosen.values()))
        assert len(set(together)) == len(together)
        assert 0 <= min(together) <= max(together) < num_frames
        assert all(b - a >= gap(num_frames) for own in chosen.values() for a, b in pairwise(own))
        numbers += [len(own) for own in chosen.values()]
    assert gap(48) == 9
    assert gap(12) == 2
    assert np.bincount(numbers)[1:] / len(numbers) == pytest.approx(np.full(most, 1 / most), abs=0.05)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="up to 3 frames of each shape need 12 frames; got 11"):
        draw_frames(stream(0), 11, 3)


def test_places_sizes_and_colours_are_the_papers(drawn):
    for shapes in drawn[4][:100]:
        for i, one in enumerate(shapes):
            assert 0.2 * 72 - 0.01 <= one.size <= 0.4 * 72 + 0.01
            for place, side in ((one.x, 200), (one.y, 72)):
                assert max(0.15 * side, 0.75 * one.size) - 0.01 <= place <= side - max(0.15 * side, 0.75 * one.size) + 0.01
            assert all(50 <= channel <= 255 for channel in one.colour)
            assert all(math.dist((one.x, one.y), (x.x, x.y)) >= one.size for x in shapes[:i] if x.frame == one.frame)
            assert not pasted(np.zeros((1, 72, 200, 3), np.uint8), [replace(one, frame=0)])[0][EDGE].any()  # no shape is cut off
    assert {one.angle for shapes in drawn[4] for one in shapes if one.shape == "circle"} == {0}


def test_the_answer_counts_what_is_in_the_pixels():
    """On small square frames some shapes find no place. Each has a colour of its own, so the colours in the pixels count them."""
    frames = np.zeros((48, 40, 40, 3), np.uint8)
    left_out = 0
    for i in range(60):
        shapes = draw_shapes(stream("crowded", i), frames, KINDS["counting-hard"])
        seen = pasted(frames, shapes)
        by_frame = [len(np.unique(frame @ np.array([1, 256, 65536]))) - 1 for frame in seen]  # less the background
        assert sum(by_frame) == sum(counts(shapes).values())
        left_out += sum(counts(shapes).values()) < 18
    assert left_out > 10


def test_a_shape_stands_out_from_what_it_covers(drawn):
    """Colours go from 50 to 255, so on a ground of 150 a channel is off by 52 on average, and one draw in five by less than CONTRAST."""
    grey = np.full((48, 72, 200, 3), 150, np.uint8)
    for i in range(60):
        assert all(contrast(grey[0], one) >= CONTRAST for one in draw_shapes(stream("grey", i), grey, KINDS["counting-easy"]))


def test_one_large_shape_in_a_frame():
    """counting-single: totals 1, 2, 3 are alike, so 1,1,1 earns (1 + 1/2 + 1/3) / 3 and 2,2,2 only (0 + 1 + 2/3) / 3."""
    found = baseline("counting-single")
    assert totals(KINDS["counting-single"]) == pytest.approx((0, 1 / 3, 1 / 3, 1 / 3))
    assert max(np.mean([count_credit(guess, true) for true in (1, 2, 3)]) for guess in range(5)) == pytest.approx(found.constant)
    assert found.constant == pytest.approx(11 / 18)
    frames = np.zeros((12, 56, 56, 3), np.uint8)
    for i in range(100):
        shapes = draw_shapes(stream("single", i), frames, KINDS["counting-single"])
        assert len({one.frame for one in shapes}) == len(shapes)
        assert all(0.55 * 56 - 0.01 <= one.size <= 0.65 * 56 + 0.01 for one in shapes)
        assert set(counts(shapes).values()) <= {1, 2, 3}
