import pytest

from data_pipelines.tasks.maze_check import check_maze

# O . |        (0,0) - (0,1)   (0,2)
# |   |          |        |      |        2 x 3 cells; the way from O to T: right, down, right, up
# .   . - T'   (1,0)   (1,1) - (1,2)
TREE = {
    "rows": 2,
    "cols": 3,
    "openings": [[[0, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 2], [1, 2]], [[1, 1], [1, 2]]],
    "start": [0, 0],
    "goal": [0, 2],
    "moves": 4,
    "turns": 3,
}
SOLUTION = "<|right|><|down|><|right|><|up|>"


def test_a_sound_maze_passes():
    check_maze(TREE, SOLUTION)


@pytest.mark.parametrize(
    ("changes", "solution", "complaint"),
    [
        ({}, "<|right|><|right|>", r"walks into a wall from \(0, 1\) right"),
        ({}, "<|right|><|down|>", r"ends at \(1, 1\)"),
        ({}, "<|right|><|down|><|right|><|up|> ", "not made of action tokens"),
        ({"moves": 5}, SOLUTION, "has 4 moves and 3 turns"),
        ({"turns": 2}, SOLUTION, "has 4 moves and 3 turns"),
        ({"moves": 6, "turns": 4}, "<|down|><|up|>" + SOLUTION, "dead-end filling leaves"),
        ({"openings": TREE["openings"][:-1]}, SOLUTION, "falls into 2 parts"),
        ({"openings": [*TREE["openings"], [[0, 1], [1, 2]]]}, SOLUTION, "does not join two neighbouring cells once"),
        ({"openings": [*TREE["openings"], TREE["openings"][0]]}, SOLUTION, "does not join two neighbouring cells once"),
        ({"openings": [*TREE["openings"], [[0, 2], [0, 3]]]}, SOLUTION, "does not join two neighbouring cells once"),
        ({"openings": [*TREE["openings"], [[0, 1], [0, 2]]]}, SOLUTION, "Dijkstra finds 2 moves with 0 turns"),
    ],
)
def test_a_faulty_maze_or_solution_is_named(changes, solution, complaint):
    if changes.get("moves") == 6:
        changes = {**changes, "turns": 5}  # down up | right down right up: all six directions differ from the one before
    with pytest.raises(AssertionError, match=complaint):
        check_maze({**TREE, **changes}, solution)


def test_with_loops_the_shortest_route_must_have_the_fewest_turns():
    """2 x 3 cells, all open: right right down is as good as down right right; right down right turns once too often."""
    openings = sorted([[r, c], [r, c + 1]] for r in (0, 1) for c in (0, 1)) + [[[0, c], [1, c]] for c in (0, 1, 2)]
    meta = {**TREE, "openings": openings, "goal": [1, 2], "moves": 3, "turns": 1}
    check_maze(meta, "<|right|><|right|><|down|>")
    check_maze(meta, "<|down|><|right|><|right|>")
    with pytest.raises(AssertionError, match="Dijkstra finds 3 moves with 1 turns"):
        check_maze({**meta, "turns": 2}, "<|right|><|down|><|right|>")
