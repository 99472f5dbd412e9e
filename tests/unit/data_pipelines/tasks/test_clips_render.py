from itertools import permutations
from math import pi

import numpy as np
import pytest

from data_pipelines.tasks.clips_check import bins
from data_pipelines.tasks.clips_layout import COLOURS, SHAPES, Shape, Space
from data_pipelines.tasks.clips_render import RGB, Paint, render, sprite

SPACE = Space(3, 56, 84)
GROUND = (16, 40, 79)


def covers(kind: str, size: int) -> np.ndarray:
    """int64 [size, size], of 64."""
    rows, cols, cover = sprite(SHAPES.index(kind), size)
    picture = np.zeros((size, size), np.int64)
    picture[rows, cols] = cover[:, 0]
    return picture


@pytest.mark.parametrize(
    ("kind", "share"), [("circle", pi / 4), ("square", 1), ("triangle", 1 / 2), ("cross", 5 / 9), ("ell", 5 / 9), ("tee", 5 / 9)]
)
def test_shapes_have_their_areas(kind, share):
    for size in (9, 12, 13, 40):
        assert covers(kind, size).sum() / 64 / size**2 == pytest.approx(share, abs=0.03)


def test_a_triangle_points_up_and_an_ell_has_its_foot_to_the_right():
    rows = covers("triangle", 12).sum(axis=1)
    assert (np.diff(rows) > 0).all()
    ell = covers("ell", 12) // 64
    assert ell[:8].sum(axis=1).tolist() == [4] * 8
    assert ell[8:].sum(axis=1).tolist() == [12] * 4
    assert ell[0, :4].all()


def test_later_shapes_lie_over_earlier_ones_and_are_shown_in_their_frames():
    shapes = (Shape(1, 10, (5, 6, 7), (20, 20, 20), 0, 3), Shape(1, 10, (10, 10, 10), (20, 20, 20), 1, 2))
    frames = render(SPACE, shapes, Paint((0, 4), GROUND, b""))
    row = frames[:, 25].tolist()
    red, blue, ground = list(RGB["red"]), list(RGB["blue"]), list(GROUND)
    assert frames.shape == (3, 56, 84, 3)
    assert frames.dtype == np.uint8
    assert row[0] == [ground] * 5 + [red] * 10 + [ground] * 69
    assert row[1] == [ground] * 6 + [red] * 4 + [blue] * 10 + [ground] * 64
    assert row[2] == [ground] * 7 + [red] * 10 + [ground] * 67


def test_texture_is_keyed_and_stays_near_the_base():
    plain, some, other = (render(SPACE, (), Paint((), (79, 16, 40), key)) for key in (b"", b"a", b"b"))
    assert np.unique(plain.reshape(-1, 3), axis=0).tolist() == [[79, 16, 40]]
    assert (some != other).any()
    assert (some == some[:1]).all()
    assert some.min() == 0
    assert 80 < some.max() <= 79 + 15


def test_no_blend_of_two_colours_looks_like_a_third():
    """At an edge a shape covers 0 to 64 of 64 parts of what is below: another shape, or any ground up to (95, 95, 95)."""
    table = bins()
    grounds = [tuple(95 * (corner >> bit & 1) for bit in range(3)) for corner in range(8)]
    named = list(RGB.items())
    pairs = [(i, j, top, below) for (i, (_, top)), (j, (_, below)) in permutations(enumerate(named, 1), 2)]
    pairs += [(i, 0, top, ground) for i, (_, top) in enumerate(named, 1) for ground in grounds]
    cover = np.arange(65)[:, None]
    for i, j, top, below in pairs:
        red, green, blue = ((np.array(below) * (64 - cover) + np.array(top) * cover + 32) // 64 >> 3).T
        seen = table[red << 10 | green << 5 | blue]
        assert set(seen.tolist()) <= {0, i, j}, (top, below)
        assert seen[-1] == i
    assert tuple(RGB) == COLOURS
