import numpy as np
import pytest
from PIL import Image

from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.tasks.maze_render import FLOOR, GOAL, LINE, ROUTE, START, draw_path, geometry, moves_of, render, walk
from mmrl.types import TaskKey

INK = geometry("cells", 2, 2).ink
META = {
    "rows": 2,
    "cols": 3,
    "openings": [[[0, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 2], [1, 2]], [[1, 1], [1, 2]]],
    "start": [0, 0],
    "goal": [0, 2],
}


def test_one_cell_is_one_block_of_28_pixels_with_its_own_walls():
    """Looks at the middle of each of the four sides of each block: ink where there is a wall, a light line where not."""
    picture = render(META)
    assert picture.shape == (56, 84, 3)
    assert picture.dtype == np.uint8
    opened = {(tuple(a), tuple(b)) for a, b in META["openings"]}
    for row in range(2):
        for col in range(3):
            block = picture[row * 28 : row * 28 + 28, col * 28 : col * 28 + 28]
            for pixel, pair in (
                (block[0, 14], ((row - 1, col), (row, col))),
                (block[27, 14], ((row, col), (row + 1, col))),
                (block[14, 0], ((row, col - 1), (row, col))),
                (block[14, 27], ((row, col), (row, col + 1))),
            ):
                assert tuple(pixel) == (LINE if pair in opened else INK)


def test_start_is_green_and_goal_coral_and_both_carry_their_letter():
    picture = render(META)
    assert tuple(picture[5, 5]) == START
    assert tuple(picture[5, 61]) == GOAL
    assert tuple(picture[42, 42]) == FLOOR
    assert tuple(picture[14, 14]) == START  # the hole of the O
    assert picture[14, 14 - 6].sum() < 200  # its ring
    assert picture[10 - 2, 56 + 9].sum() < 200  # the bar of the T
    assert picture[20, 56 + 13].sum() < 200  # its stem
    assert tuple(picture[20, 56 + 9]) == GOAL


def test_corners_are_filled_where_walls_meet_and_only_there():
    """All inner sides of 2 x 2 cells open: no post in the middle. One wall: its end is a post in all four blocks."""
    every = [[[0, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[1, 0], [1, 1]]]
    meta = {"rows": 2, "cols": 2, "openings": every, "start": [0, 0], "goal": [1, 1]}
    assert not (render(meta)[26:30, 26:30] == INK).all(axis=-1).any()
    assert (render({**meta, "openings": every[:3]})[25:31, 25:31] == INK).all()


def test_ariadnes_picture_is_300_pixels_and_81_visual_tokens():
    """5 x 5 cells: 300 x 300 pixels with a margin. At most 65,536 pixels and multiples of 28 make it 252 x 252, so 9 x 9 tokens."""
    media = MazeTasks("train", style="ariadne").task(TaskKey("moves=3", 0)).media[0]
    assert media.frames.shape == (1, 300, 300, 3)
    g = geometry("ariadne", 5, 5)
    assert (g.left, g.top, g.cell) == (45, 45, 42)
    assert (media.frames[0, :45] == 255).all()
    assert tuple(media.frames[0, 45, 150]) == (0, 0, 0)
    side = int(65536**0.5) // 28 * 28
    assert (side, (side // 28) ** 2) == (252, 81)


def test_walk_stops_at_the_wall():
    assert walk(META, ["right", "down", "right", "up"]) == ([(0, 0), (0, 1), (1, 1), (1, 2), (0, 2)], None)
    assert walk(META, ["right", "right", "down"]) == ([(0, 0), (0, 1)], "right")
    assert moves_of("<|right|><|down|>") == ["right", "down"]


def test_draw_path_colours_the_way_and_leaves_the_picture_alone():
    picture = Image.fromarray(render(META))
    drawn = np.array(draw_path(picture, META, ["right", "down", "right", "up"]))

    def blue(row, col):
        return abs(drawn[row, col].astype(int) - ROUTE).max() < 40

    assert np.array_equal(np.array(picture), render(META))
    assert blue(14, 30)
    assert blue(28, 42)
    assert blue(42, 56)
    assert blue(28, 70)
    assert tuple(drawn[42, 14]) == FLOOR
    assert draw_path(picture, META, ["right"], scale=3).size == (252, 168)


def test_draw_path_marks_the_wall_and_draws_nothing_beyond_it():
    red = (200, 0, 0)
    drawn = np.array(draw_path(Image.fromarray(render(META)), META, ["right", "right", "down"], colour=red))
    reddish = (drawn[..., 0] > 150) & (drawn[..., 1] < 90)
    assert reddish[14, 28:50].all()
    assert reddish[11, 47]  # an arm of the cross
    assert not reddish[:, 58:].any()


def test_draw_path_refuses_what_it_cannot_place():
    with pytest.raises(ValueError, match=r"\(50, 50\) pixels is no rendered maze of 2 x 3"):
        draw_path(Image.new("RGB", (50, 50)), META, ["right"])
    with pytest.raises(ValueError, match="got 'north'"):
        draw_path(Image.fromarray(render(META)), META, ["north"])
