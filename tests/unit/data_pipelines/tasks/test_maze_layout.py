from itertools import pairwise

import pytest

from data_pipelines.tasks.maze_layout import (
    Request,
    carve,
    draw_free,
    draw_planted,
    feasible,
    grid,
    layout_hash,
    links,
    most_moves,
    move_dead_end,
    openings_of,
    pair_class,
    search_route,
    shortest_routes,
    split_of,
    tree_route,
    turns_of,
    words,
)


def self_avoiding(rows, cols):
    """Every (moves, turns) of the routes that cross no cell twice, by plain enumeration."""
    found = set()

    def extend(path, turns, before):
        if len(path) > 1:
            found.add((len(path) - 1, turns))
        row, col = path[-1]
        for step in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            cell = (row + step[0], col + step[1])
            if 0 <= cell[0] < rows and 0 <= cell[1] < cols and cell not in path:
                extend([*path, cell], turns + (before not in (None, step)), step)

    for row in range(rows):
        for col in range(cols):
            extend([(row, col)], 0, None)
    return found


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (2, 3), (3, 3), (2, 5), (3, 4)])
def test_feasible_is_what_enumeration_finds(rows, cols):
    possible = self_avoiding(rows, cols)
    asked = {(moves, turns) for moves in range(rows * cols + 2) for turns in range(rows * cols + 2)}
    assert {pair for pair in asked if feasible(rows, cols, *pair, 0)} == possible
    for turns in range(rows * cols):
        longest = max((moves for moves, t in possible if t == turns), default=0)
        assert longest <= most_moves(rows, cols, turns)


def test_most_moves_by_hand():
    """5 x 5: one straight piece covers 5 cells; a row and a column 9; two rows and a column 13; the spiral with 8 turns all 25."""
    assert [most_moves(5, 5, turns) for turns in (0, 1, 2, 8, 20)] == [4, 8, 12, 24, 24]
    assert [most_moves(2, 20, turns) for turns in (0, 1, 2)] == [19, 20, 39]


def test_words_are_shake256_and_never_end():
    """The first word of SHAKE-256 over the key and block 0, little-endian."""
    from hashlib import shake_256

    drawn = words(b"key")
    assert next(drawn) == int.from_bytes(shake_256(b"key" + bytes(4)).digest(4), "little")
    more = [next(drawn) for _ in range(100)]
    assert len(set(more)) == 100
    assert max(more) < 2**32


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (5, 5), (3, 7), (20, 20)])
def test_a_carved_layout_joins_all_cells_by_one_route_each(rows, cols):
    g = grid(rows, cols)
    tree = carve(g, words(b"tree").__next__, [0])
    assert len(set(tree.sides)) == len(tree.sides) == g.cells - 1
    routes = shortest_routes(links(g, openings_of(tree.sides)), 0, g.cells)
    assert len(routes) == g.cells - 1
    for goal, route in routes.items():
        assert tree_route(tree, 0, goal, g.cells) == route


def test_a_5x5_grid_has_40_sides_and_48_neighbour_entries_in_a_tree():
    g = grid(5, 5)
    assert len(g.sides) == 40
    assert sum(len(near) for near in links(g, openings_of(carve(g, words(b"x").__next__, [12]).sides))) == 48


def test_a_planted_route_is_in_the_layout():
    g = grid(5, 5)
    draw = words(b"planted").__next__
    route = search_route(g, draw, 12, 3)
    assert len(route) == len(set(route)) == 13
    assert turns_of(route) == 3
    tree = carve(g, draw, route)
    assert tree_route(tree, route[0], route[-1], 12) == route


def test_moving_dead_ends_keeps_the_tree_and_the_route():
    g = grid(5, 5)
    draw = words(b"moving").__next__
    route = search_route(g, draw, 6, 2)
    openings = openings_of(carve(g, draw, route).sides)
    layouts = set()
    for _ in range(50):
        openings = move_dead_end(g, draw, openings, route)
        layouts.add(openings)
        routes = shortest_routes(links(g, openings), route[0], g.cells)
        assert openings.bit_count() == 24
        assert len(routes) == 24
        assert routes[route[-1]] == route
    assert len(layouts) > 20


def test_symmetries_keep_neighbours_and_are_all_different():
    for rows, cols, count in ((5, 5, 8), (3, 4, 4)):
        g = grid(rows, cols)
        assert len({symmetry.cells for symmetry in g.symmetries}) == count
        tree = carve(g, words(b"s").__next__, [0])
        for symmetry in g.symmetries:
            linked = links(g, sum(symmetry.bits[side] for side in tree.sides))
            for here, near in enumerate(links(g, openings_of(tree.sides))):
                assert sorted(symmetry.cells[there] for there in near) == sorted(linked[symmetry.cells[here]])
                assert symmetry.origins[symmetry.cells[here]] == here


def test_shortest_routes_prefer_fewer_turns():
    """2 x 3 cells, all open: of the three ways from corner to corner, right-right-down (cells 0 1 2 5) and down-right-right turn once."""
    g = grid(2, 3)
    routes = shortest_routes(links(g, openings_of(g.sides)), 0, 5)
    assert routes[5] == [0, 1, 2, 5]
    assert shortest_routes(links(g, openings_of(g.sides)), 0, 2).keys() == {1, 2, 3, 4}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("draw_item", "seeds"), [(draw_free, (0, 5, 69)), (draw_planted, (0, 5, 69))])
@pytest.mark.parametrize("extra", [0, 4])
def test_an_item_is_of_its_split_and_its_seeds_class(split, draw_item, seeds, extra):
    g = grid(5, 5)
    for seed in seeds:
        openings, route = draw_item(Request(5, 5, split, seed, 4, 2, extra), b"key")
        layout = layout_hash(g, openings)
        assert split_of(layout) == split
        assert (layout + pair_class(route[0], route[-1])) % 64 == seed % 64
        assert openings.bit_count() == 24 + extra
        assert all(there in links(g, openings)[here] for here, there in pairwise(route))


def test_a_quarter_of_the_layouts_are_for_the_test_split():
    g = grid(5, 5)
    hashes = [layout_hash(g, openings_of(carve(g, words(b"%d" % i).__next__, [0]).sides)) for i in range(2000)]
    share = sum(split_of(layout) == "test" for layout in hashes) / 2000
    assert 0.21 < share < 0.29  # 0.25 give or take 4 standard deviations
