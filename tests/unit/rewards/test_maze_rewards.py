"""R = right, U = up, D = down, L = left; RRU has L = 3 moves and 1 turn, so the right answer earns 3·2·2 = 12."""

import numpy as np
import pytest

from mmrl.types import Task
from rewards.format import ActionFormat, ThinkFormat
from rewards.maze import MazePrefix, MazeReaches, MazeWalker, best_constant, success, walk

TOKENS = {"U": "<|up|>", "D": "<|down|>", "L": "<|left|>", "R": "<|right|>", " ": " "}


def say(moves: str) -> str:
    return "".join(TOKENS[move] for move in moves)


def maze(solution: str, **meta) -> Task:
    return Task("maze/0", (), (), say(solution), meta)


# S . G     row 0: start (0, 0), goal (0, 2); the wall between (0, 1) and (0, 2) closes the straight way.
# . . .     row 1: open throughout; every column is open downwards: two shortest routes, RDRU and DRRU, and no shorter one.
LOOPS = {
    "rows": 2,
    "cols": 3,
    "openings": [[[0, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 2], [1, 2]], [[1, 0], [1, 1]], [[1, 1], [1, 2]]],
    "start": [0, 0],
    "goal": [0, 2],
    "moves": 4,
    "turns": 3,
}


@pytest.mark.parametrize(
    ("solution", "moves", "expected"),
    [
        ("RRU", "RRU", 12),  # exact: 3·2·(1+1)
        ("RRU", "RRR", 2),  # RR agrees, without a turn: 2·1
        ("RRU", "RRUU", 6),  # RRU agrees: 3·2, the factor 2 is lost
        ("RRU", "RR", 2),  # a beginning
        ("RRU", "URR", 0),
        ("RRU", "", 0),
        ("RUURR", "RUURR", 30),  # 5·2·3
        ("RUURR", "RUURL", 12),  # RUUR agrees, 2 turns: 4·3
        ("U", "U", 2),  # 1·2·1
        ("U", "UU", 1),
        ("RRUURRDDRR", "RRUURRDDRR", 100),  # 10 moves, 4 turns: 10·2·5
    ],
)
def test_prefix(solution, moves, expected):
    assert MazePrefix().value(maze(solution), f"<think>t</think>{say(moves)}") == expected


@pytest.mark.parametrize(("strict", "spaced", "trailing"), [(False, 12, 6), (True, 6, 6)])
def test_strict_is_the_released_string_compare(strict, spaced, trailing):
    """White space between the tokens loses the factor 2 only when strings are compared; moves after the goal lose it always."""
    reward = MazePrefix(strict=strict)
    assert reward.value(maze("RRU"), say("R R U")) == spaced
    assert reward.value(maze("RRU"), say("RRUU")) == trailing
    assert reward.value(maze("RRU"), f"\n{say('RRU')}\n") == 12  # outer white space is stripped by both


def test_prefix_reads_the_answer_only():
    """Tokens in the thought do not count, words after the moves cost the factor 2, and an unclosed thought has no answer."""
    reward, task = MazePrefix(), maze("RRU")
    assert reward.value(task, f"<think>{say('RRU')}</think>{say('RRD')}") == 2
    assert reward.value(task, f"{say('RRU')} is the way") == 6
    assert reward.value(task, f"the way is {say('RRU')}") == 0
    assert reward.value(task, f"<think>{say('RRU')}") == 0
    assert reward.value(task, f"{say('RRU')}<think>no, wait") == 0


def test_prefix_normalised():
    """r / (2·L·(turns+1)): the right answer is 1 in every maze, a wrong one is 1/2 at most."""
    reward = MazePrefix(normalise=True)
    assert reward.value(maze("RRU"), say("RRU")) == 1
    assert reward.value(maze("U"), say("U")) == 1
    assert reward.value(maze("RRU"), say("RRUU")) == 0.5  # 6/12
    assert reward.value(maze("RRU"), say("RRR")) == pytest.approx(2 / 12)
    assert reward.value(maze("RRU"), "") == 0


def test_total_with_format_parts_is_ariadnes():
    """12 + 0.1·1 + 0.1·1 = 12.2 for the right answer; 2 + 0.2 for RRR; 0.1 for a think block and no action tokens."""

    def total(text: str) -> float:
        return MazePrefix().value(maze("RRU"), text) + 0.1 * ActionFormat().value(text) + 0.1 * ThinkFormat().value(text)

    assert total(f"<think>t</think>{say('RRU')}") == pytest.approx(12.2)
    assert total(f"<think>t</think>{say('RRR')}") == pytest.approx(2.2)
    assert total("<think>t</think>right right up") == pytest.approx(0.1)


def test_prefix_never_looks_at_walls():
    """The paper's rule, kept: R then into the wall earns the prefix R (1·1). The walker gives nothing for it."""
    task = maze("RDRU", **LOOPS)
    assert MazePrefix().value(task, say("RR")) == 1
    assert MazeWalker().value(task, say("RRRRU")) == 0


def test_prefix_rejects_another_shortest_route_and_walker_takes_it():
    task = maze("RDRU", **LOOPS)
    assert MazePrefix().value(task, say("DRRU")) == 0
    assert MazeWalker().value(task, say("DRRU")) == 1


@pytest.mark.parametrize(
    ("moves", "any_route", "shortest_only"),
    [
        ("RDRU", 1, 1),
        ("DRRU", 1, 1),
        ("D R R U", 1, 1),
        ("RLRDRU", 1, 0),  # there and back first
        ("RDRUDU", 1, 0),  # over the goal and back on it
        ("RDRUD", 0, 0),  # past the goal
        ("RDRUU", 0, 0),  # from the goal into the wall
        ("RDR", 0, 0),  # one short
        ("RR", 0, 0),  # into the wall
        ("RRDRU", 0, 0),  # into the wall, and on from there as if it were not
        ("U", 0, 0),  # out of the maze
        ("", 0, 0),
    ],
)
def test_walker(moves, any_route, shortest_only):
    task = maze("RDRU", **LOOPS)
    assert MazeWalker().value(task, say(moves)) == any_route
    assert MazeWalker(shortest_only=True).value(task, say(moves)) == shortest_only
    assert success(task, say(moves)) is bool(any_route)


def test_reaching_the_goal_counts_whether_the_walk_stops_there_or_not():
    """RDRU leads to T. A wall, or an end, before T does not; a wall after T does."""
    task = maze("RDRU", **LOOPS)
    for moves, reaches, ends in (("RDRU", 1, 1), ("RDRUD", 1, 0), ("RDR", 0, 0), ("UUUU", 0, 0)):
        assert (MazeReaches().value(task, say(moves)), MazeWalker().value(task, say(moves))) == (reaches, ends)
    assert MazeReaches().value(task, "<think>") == 0


def test_walker_wants_moves_only():
    task = maze("RDRU", **LOOPS)
    assert MazeWalker().value(task, f"<think>left?</think>{say('RDRU')}") == 1
    assert MazeWalker().value(task, f"<think>{say('RDRU')}") == 0
    assert MazeWalker().value(task, f"go {say('RDRU')}") == 0
    assert MazeWalker().value(task, f"{say('RDRU')}!") == 0


def test_walk_stops_at_the_wall():
    """R goes to (0, 1); the wall to (0, 2) stops the second R; the D after it is not walked."""
    task = maze("RDRU", **LOOPS)
    assert walk(task, ["right", "right", "down"]) == ([(0, 0), (0, 1)], True)
    assert walk(task, ["right", "down"]) == ([(0, 0), (0, 1), (1, 1)], False)


def test_openings_are_undirected():
    task = maze("L", openings=[[[0, 0], [0, 1]]], start=[0, 1], goal=[0, 0], moves=1)
    assert success(task, say("L"))


def test_wrong_tasks_raise():
    with pytest.raises(ValueError, match=r"task maze/0: solution must be action tokens .* got ''"):
        MazePrefix().value(maze(""), say("R"))
    with pytest.raises(ValueError, match=r"task maze/0: meta has no 'openings'"):
        MazeWalker().value(maze("R", start=[0, 0]), say("R"))
    with pytest.raises(ValueError, match=r"meta\['moves'\] is 5, but 4 legal moves reach the goal"):
        MazeWalker(shortest_only=True).value(maze("RDRU", **{**LOOPS, "moves": 5}), say("RDRU"))


def test_best_constant_is_the_majority_baseline():
    """One move: 4 answers. Of U U L R D, "up" is right twice: success 2/5. Prefix reward: 2·2/5."""
    tasks = [
        Task(f"maze/{number}", (), (), say(move), {"openings": [[[1, 1], goal]], "start": [1, 1], "goal": goal, "moves": 1})
        for number, (move, goal) in enumerate(zip("UULRD", ([0, 1], [0, 1], [1, 0], [1, 2], [2, 1]), strict=True))
    ]
    assert best_constant(tasks, success) == (say("U"), 0.4)
    assert best_constant(tasks, MazePrefix().value) == (say("U"), 0.8)
    with pytest.raises(ValueError, match="at least one task"):
        best_constant([], success)


def test_best_constant_earns_prefix_credit():
    """RRU, RRD, RRD, RL: the string RRD earns RR = 2, then 12 twice, then R = 1, so a policy that sees nothing has a mean of 27/4."""
    assert best_constant([maze("RRU"), maze("RRD"), maze("RRD"), maze("RL")], MazePrefix().value) == (say("RRD"), 6.75)


@pytest.mark.parametrize("reward", [MazePrefix(), MazeWalker()])
def test_group_of_float32(reward, make_group):
    values = reward(make_group([say("RDRU"), say("U")], say("RDRU"), LOOPS))
    assert values.dtype == np.float32
    assert values.tolist() == [{"MazePrefix": 32.0, "MazeWalker": 1.0}[type(reward).__name__], 0.0]  # 4·2·(3+1)
