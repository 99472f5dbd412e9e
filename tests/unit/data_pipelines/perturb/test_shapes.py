import math

import numpy as np
import pytest

from data_pipelines.perturb.shapes import PastedShape, covered, pasted


def mask(one, height, width):
    whole = np.zeros((height, width), bool)
    rows, columns, inside = covered(one, height, width)
    whole[rows, columns] = inside
    return whole


def shape(name, size=40.0, angle=0, x=50.0, y=50.0, frame=0):
    return PastedShape(frame, name, x, y, size, angle, (200, 100, 50))


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("circle", math.pi * 20**2),  # diameter 40
        ("square", 40**2),
        ("triangle", math.sqrt(3) / 4 * 40**2),
    ],
)
@pytest.mark.parametrize("angle", [0, 17, 90, 359])
def test_areas(name, area, angle):
    inside = mask(shape(name, angle=angle), 100, 100)
    assert inside.sum() == pytest.approx(area, rel=0.04)
    rows, columns = np.nonzero(inside)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == pytest.approx((50, 50), abs=0.5)  # the centre of mass


def test_a_square_by_hand():
    """Side 4 about (5, 5), turned by 45 degrees so that its sides are upright: columns and rows 3 to 6."""
    inside = mask(shape("square", size=4.0, angle=45, x=5.0, y=5.0), 10, 10)
    wanted = np.zeros((10, 10), bool)
    wanted[3:7, 3:7] = True
    np.testing.assert_array_equal(inside, wanted)


@pytest.mark.parametrize("name", ["circle", "square", "triangle"])
def test_a_shape_at_the_edge_is_cut_off_there(name):
    """Seen from a frame that begins 30 pixels further right and down."""
    whole, cut = mask(shape(name, angle=20), 100, 100), mask(shape(name, angle=20, x=20.0, y=20.0), 40, 40)
    np.testing.assert_array_equal(cut, whole[30:70, 30:70])


def test_only_its_frame_is_painted_and_later_shapes_lie_above():
    frames = np.zeros((3, 100, 100, 3), np.uint8)
    above = PastedShape(1, "circle", 50.0, 50.0, 10.0, 0, (1, 2, 3))
    done = pasted(frames, [shape("square", frame=1), above])
    assert not frames.any()
    assert not done[[0, 2]].any()
    assert done[1, 50, 50].tolist() == [1, 2, 3]
    assert done[1, 50, 62].tolist() == [200, 100, 50]


def test_what_cannot_be_pasted_is_refused():
    with pytest.raises(ValueError, match="shape must be one of circle, square, triangle; got 'rectangle'"):
        shape("rectangle")
    with pytest.raises(ValueError, match="frame >= 0 and size > 0; got -1 and 40"):
        shape("circle", frame=-1)
    with pytest.raises(ValueError, match="pasted into frame 3, but there are 3 frames"):
        pasted(np.zeros((3, 9, 9, 3), np.uint8), [shape("circle", frame=3)])
