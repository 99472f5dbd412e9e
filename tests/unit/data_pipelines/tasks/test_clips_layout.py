import pytest

from data_pipelines.tasks.clips_layout import (
    FINE,
    Shape,
    Space,
    between,
    bounce,
    bouncing,
    clear_frames,
    layout_hash,
    near,
    place,
    still,
    travel,
)
from data_pipelines.tasks.keyed import words

SPACE = Space(8, 56, 84)


def shape(xs=(0,) * 8, ys=(0,) * 8, size=10, first=0, end=8, kind=0) -> Shape:
    return Shape(kind, size, tuple(xs), tuple(ys), first, end)


def test_shares_are_of_the_shorter_side():
    assert (SPACE.side, SPACE.gap, SPACE.clear, Space(12, 112, 140).gap, Space(48, 56, 56).clear) == (56, 2, 2, 4, 8)


@pytest.mark.parametrize(
    ("start", "way", "begin", "end", "expected"),
    [
        (5, 6, 2, 5, (5, 5, 5, 7, 9, 11, 11, 11)),
        (5, -6, 2, 5, (5, 5, 5, 3, 1, -1, -1, -1)),
        (0, 7, 0, 7, (0, 1, 2, 3, 4, 5, 6, 7)),
        (9, -5, 1, 4, (9, 9, 8, 6, 4, 4, 4, 4)),  # a third of 5 is rounded towards the start: 1, 3, 5
    ],
)
def test_travel(start, way, begin, end, expected):
    assert travel(SPACE, start, way, begin, end) == expected


def test_bounce_is_thrown_back_at_both_ends():
    assert bounce(SPACE, 3, 2 * FINE, 6) == (3, 5, 5, 3, 1, 1, 3, 5)
    assert bounce(SPACE, 3, -2 * FINE, 6) == (3, 1, 1, 3, 5, 5, 3, 1)
    assert bounce(SPACE, 0, FINE // 2, 6) == (0, 0, 1, 1, 2, 2, 3, 3)


def test_near_counts_the_gap():
    assert near((0, 0, 10), (9, 0, 10))
    assert not near((0, 0, 10), (10, 0, 10))
    assert near((0, 0, 10), (11, 0, 10), gap=2)
    assert not near((0, 0, 10), (12, 0, 10), gap=2)


def test_placed_boxes_are_apart_and_inside_and_too_many_find_no_place():
    for key in range(50):
        boxes = place(SPACE, words(bytes([key])).__next__, [13, 11, 9])
        assert boxes is not None
        assert all(0 <= x <= 84 - size and 0 <= y <= 56 - size for x, y, size in boxes)
        assert not any(near(a, b, SPACE.gap) for i, a in enumerate(boxes) for b in boxes[:i])
    assert place(SPACE, words(b"").__next__, [13] * 40) is None


def test_a_shape_is_clear_where_nothing_above_it_is_shown_on_it():
    """The upper one slides over the lower one in the frames 3 and 4, and is not shown in frame 3."""
    lower, upper = shape(), shape(xs=(40, 30, 20, 9, 9, 10, 20, 30), first=4)
    assert clear_frames((lower, upper), 0) == [0, 1, 2, 3, 5, 6, 7]
    assert clear_frames((lower, upper), 1) == [4, 5, 6, 7]


def test_bouncing_shapes_stay_in_the_frame():
    for key in range(100):
        one = bouncing(SPACE, words(bytes([key])).__next__, 1, 0, 8)
        assert all(0 <= x <= 84 - one.size and 0 <= y <= 56 - one.size for x, y in zip(one.xs, one.ys, strict=True))
        assert len(set(one.xs)) > 2 or len(set(one.ys)) > 2


def test_the_hash_sees_what_is_shown_and_nothing_else():
    a, b = shape(xs=still(SPACE, 3), first=2, end=6), shape(xs=still(SPACE, 30), kind=1)
    hidden = a._replace(xs=(99, 99, 3, 3, 3, 3, 99, 99))
    assert layout_hash(SPACE, (a, b)) == layout_hash(SPACE, (b, a)) == layout_hash(SPACE, (hidden, b))
    assert layout_hash(SPACE, (a, b), (1, 2)) == layout_hash(SPACE, (b, a), (2, 1))
    others = [(a,), (a._replace(end=7), b), (a, b._replace(kind=2)), (a, b._replace(xs=still(SPACE, 31)))]
    assert len({layout_hash(SPACE, some) for some in [(a, b), *others]} | {layout_hash(Space(8, 84, 56), (a, b))}) == 6
    assert layout_hash(SPACE, (a, b), (1, 2)) != layout_hash(SPACE, (a, b), (2, 1))


def test_between_holds_both_ends():
    draw = words(b"ends").__next__
    assert {between(draw, 2, 4) for _ in range(60)} == {2, 3, 4}
