import json
import pickle
import subprocess
import sys
from collections import Counter
from hashlib import sha256

import pytest

from data_pipelines.tasks.maze import ARIADNE_TRAIN_TASKS, ARIADNE_TRAIN_WEIGHTS, MazeTasks
from data_pipelines.tasks.maze_check import check_maze
from mmrl.errors import TaskError
from mmrl.types import Task, TaskKey


def first(source: MazeTasks, count: int) -> list[Task]:
    return [source.task(source.key(i)) for i in range(count)]


def item(task: Task) -> str:
    """What a model could remember: walls, start and goal."""
    return json.dumps([task.meta[name] for name in ("rows", "cols", "openings", "start", "goal")])


def walls(task: Task) -> str:
    return json.dumps([task.meta[name] for name in ("rows", "cols", "openings")])


def fingerprint(tasks: list[Task]) -> str:
    """Hash of everything in the tasks, pixels included."""
    total = sha256()
    for task in tasks:
        total.update(json.dumps([task.id, task.messages, task.solution, task.meta]).encode())
        for media in task.media:
            total.update(repr(media.frames.shape).encode() + media.frames.tobytes())
    return total.hexdigest()[:16]


GOLDEN = {
    "train": (MazeTasks("train"), 200, "1a01c774b6b32a68"),
    "test, longer": (MazeTasks("test", seed=3, moves="1-10", turns="0-4"), 200, "b84dce5c449afd9c"),
    "loops": (MazeTasks("train", seed=1, rows=8, cols=8, moves="4-12", turns="0-6", loops=0.25), 50, "cc4d565ef996e984"),
    "not square": (MazeTasks("test", rows=4, cols=7, moves="3-9", turns="1-5"), 50, "6ca9567adbaa2592"),
    "ariadne": (MazeTasks("train", style="ariadne"), 50, "df109e2713d4426e"),
    "text": (MazeTasks("train", render=False, system=""), 50, "93dc63644c2626b0"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_tasks_and_pixels_are_the_same_for_ever(name):
    """If this fails, an index has changed its meaning: raise MazeTasks.version and write the new hashes here."""
    source, count, expected = GOLDEN[name]
    assert fingerprint(first(source, count)) == expected


def test_a_task_does_not_depend_on_what_was_drawn_before():
    source = MazeTasks("train", moves="1-10", turns="0-4")
    keys = [source.key(i) for i in range(30)]
    there = [source.task(key) for key in keys]
    fresh = pickle.loads(pickle.dumps(MazeTasks("train", moves="1-10", turns="0-4")))
    back = [fresh.task(key) for key in reversed(keys)][::-1]
    assert fingerprint(there) == fingerprint(back)


def test_a_bucket_holds_the_same_tasks_whatever_range_of_moves_it_is_part_of():
    key = TaskKey("moves=3", 17)
    assert MazeTasks("train", moves="3").task(key).id == MazeTasks("train", moves="1-5").task(key).id
    assert item(MazeTasks("train", moves="3").task(key)) == item(MazeTasks("train", moves="1-5").task(key))


@pytest.mark.parametrize("split", ["train", "test"])
def test_moves_and_turns_are_exact_in_every_bucket(split):
    """Ariadne's test range on 5 x 5 cells: 1 to 10 moves, up to 4 turns; every task as its bucket says, all possible turns occur."""
    source = MazeTasks(split, moves="1-10", turns="0-4", render=False)
    possible = {1: {0}, 2: {0, 1}, 3: {0, 1, 2}, 4: {0, 1, 2, 3}, 9: {2, 3, 4}, 10: {2, 3, 4}}
    for moves in range(1, 11):
        tasks = [source.task(TaskKey(f"moves={moves}", i)) for i in range(40)]
        assert {task.solution.count("<|") for task in tasks} == {moves}
        assert {task.meta["moves"] for task in tasks} == {moves}
        # From 5 moves on a straight line does not fit any more; 9 moves need 2 turns, for one turn spans 4 + 4 moves at most.
        assert {task.meta["turns"] for task in tasks} == possible.get(moves, {1, 2, 3, 4})


@pytest.mark.parametrize(("moves", "turns"), [("22", "7"), ("20", "5"), ("18", "4"), ("12", "2"), ("8", "1")])
def test_rare_requests_are_met_at_the_edge_of_the_possible(moves, turns):
    """On 5 x 5 cells 7 turns allow 23 moves at most, 5 turns 20, 4 turns 18, 2 turns 12 and one turn 8."""
    source = MazeTasks("test", moves=moves, turns=turns, render=False)
    task = source.task(TaskKey(f"moves={moves}", 0))
    assert (task.meta["moves"], task.meta["turns"]) == (int(moves), int(turns))


def test_a_tree_maze_has_24_openings_and_a_loop_maze_the_asked_share_more():
    """5 x 5: 40 inner sides, 24 open in a tree, 16 walls; a quarter of these is 4."""
    assert {len(task.meta["openings"]) for task in first(MazeTasks("train", render=False), 50)} == {24}
    assert {len(task.meta["openings"]) for task in first(MazeTasks("train", loops=0.25, render=False), 50)} == {28}


def test_splits_share_no_layout_whatever_the_other_settings():
    train = {
        walls(task)
        for source in (MazeTasks("train", render=False), MazeTasks("train", seed=9, moves="3", render=False))
        for task in first(source, 700)
    }
    test = {
        walls(task)
        for source in (MazeTasks("test", render=False), MazeTasks("test", seed=9, moves="2-8", render=False))
        for task in first(source, 700)
    }
    assert len(train) > 1000
    assert len(test) > 1000
    assert not train & test


def test_small_grids_keep_their_splits_apart():
    """2 x 2 cells have 4 tree mazes, so the sets are full."""
    train = {walls(task) for task in first(MazeTasks("train", rows=2, cols=2, moves="1-3", turns="0-2", render=False), 200)}
    test = {walls(task) for task in first(MazeTasks("test", rows=2, cols=2, moves="1-3", turns="0-2", render=False), 200)}
    assert not train & test
    assert len(train | test) == 4


def test_seeds_that_differ_modulo_64_share_no_item():
    """4 x 4 cells and one move: few items, so that seeds would collide by chance; seed 64 is of the class of seed 0 and does."""
    items = {
        seed: {item(task) for task in first(MazeTasks("train", seed=seed, rows=4, cols=4, moves="1", turns="0", render=False), 600)}
        for seed in (0, 1, 2, 64)
    }
    assert not items[0] & items[1]
    assert not items[0] & items[2]
    assert not items[1] & items[64]
    assert items[0] & items[64]


def test_ariadnes_weights_give_4700_tasks():
    source = MazeTasks("train", weights=ARIADNE_TRAIN_WEIGHTS)
    keys = [source.key(i) for i in range(ARIADNE_TRAIN_TASKS)]
    assert Counter(key.bucket for key in keys) == {"moves=1": 1050, "moves=2": 900, "moves=3": 800, "moves=4": 900, "moves=5": 1050}
    for bucket in source.buckets:
        assert sorted(key.index for key in keys if key.bucket == bucket) == list(range(sum(key.bucket == bucket for key in keys)))


def test_key_keeps_the_shares_in_every_block_and_mixes_inside_it():
    """.5/.3/.2 is 5 : 3 : 2, so each ten tasks in a row from 0, 10, 20, ... hold 5, 3 and 2."""
    source = MazeTasks("train", moves="1-3", weights=(0.5, 0.3, 0.2))
    blocks = [[source.key(i).bucket for i in range(start, start + 10)] for start in range(0, 200, 10)]
    assert all(Counter(block) == {"moves=1": 5, "moves=2": 3, "moves=3": 2} for block in blocks)
    assert len(set(map(tuple, blocks))) > 10


def test_shares_without_a_short_block_are_rounded_to_thousandths_by_largest_remainder():
    """As written they share no block of 10,000. Of 1,000 they get 333.60001, 333.60001 and 332.79998: 333 + 333 + 332 = 998, and the
    two left over go to the remainders .8 and the first .6 (rounding each would give 1,001)."""
    source = MazeTasks("train", moves="1-3", weights=(0.33360001, 0.33360001, 0.33279998))
    assert Counter(source.key(i).bucket for i in range(1000)) == {"moves=1": 334, "moves=2": 333, "moves=3": 333}


def test_a_weight_of_zero_leaves_a_bucket_out():
    source = MazeTasks("train", moves="1-2", weights=(0.0, 1.0))
    assert {source.key(i).bucket for i in range(20)} == {"moves=2"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"split": "val"}, r"split='val'.*train, test"),
        ({"rows": 1}, r"rows=1: give 2 to 20"),
        ({"cols": 21}, r"cols=21: give 2 to 20"),
        ({"seed": -1}, r"seed=-1"),
        ({"style": "neon"}, r"style='neon'.*cells, ariadne"),
        ({"question": " "}, r"question is empty"),
        ({"moves": "a-b"}, r"moves='a-b': give a number or a range"),
        ({"moves": "5-1"}, r"moves='5-1'.*the smaller number first"),
        ({"moves": "0-3"}, r"moves='0-3': give a range from 1 up"),
        ({"rows": 3, "cols": 3, "moves": "30"}, r"moves='30': a solution in a maze of 3x3 cells has 1 to 8 moves"),
        ({"moves": "2", "turns": "2"}, r"moves='2', turns='2'.*2 moves take 0 to 1 turns"),
        ({"moves": "5", "turns": "0"}, r"moves='5', turns='0'.*5 moves take 1 to 4 turns"),
        ({"rows": 2, "cols": 2, "moves": "3", "turns": "1"}, r"3 moves take 2 to 2 turns"),
        ({"loops": 1.0}, r"loops=1.0: this opens 16 of the 16 inner walls.*give 0, or 0.031 to 0.969"),
        ({"loops": 0.01}, r"loops=0.01: this opens 0 of the 16"),
        ({"loops": -0.5}, r"loops=-0.5"),
        ({"weights": (1.0, 2.0)}, r"weights=\(1.0, 2.0\): give 5 finite numbers"),
        ({"weights": (0.0,) * 5}, r"weights"),
        ({"weights": (1.0, 1.0, 1.0, 1.0, float("nan"))}, r"weights"),
    ],
)
def test_impossible_requests_name_key_value_and_range(fields, named):
    with pytest.raises(TaskError, match=named):
        MazeTasks(**{"split": "train", **fields})


def test_an_unknown_bucket_and_a_negative_index_are_refused():
    source = MazeTasks("train")
    with pytest.raises(TaskError, match=r"no bucket 'moves=9'; there are moves=1, "):
        source.task(TaskKey("moves=9", 0))
    with pytest.raises(TaskError, match="no bucket"):
        source.size("easy")
    with pytest.raises(ValueError, match="got -1"):
        source.task(TaskKey("moves=1", -1))
    with pytest.raises(ValueError, match="got -1"):
        source.key(-1)


def test_ids_tell_sources_apart():
    sources = [
        MazeTasks("train"),
        MazeTasks("test"),
        MazeTasks("train", seed=1),
        MazeTasks("train", rows=6),
        MazeTasks("train", turns="0-3"),
        MazeTasks("train", loops=0.25),
        MazeTasks("train", style="ariadne"),
        MazeTasks("train", render=False),
        MazeTasks("train", question="Where to?"),
        MazeTasks("train", system=""),
    ]
    ids = [source.task(TaskKey("moves=3", 17)).id for source in sources]
    assert ids[0] == "maze-v1/train/0/5x5/turns=0-2/loops=0.0/cells/moves=3/17"
    assert len(set(ids)) == len(ids)


def test_messages_hold_one_image_part_per_picture_or_the_maze_as_text():
    shown = MazeTasks("train").task(TaskKey("moves=3", 0))
    assert [message["role"] for message in shown.messages] == ["system", "user"]
    assert shown.messages[1]["content"] == [{"type": "image"}, {"type": "text", "text": "Find the shortest path from O to T."}]
    assert [media.frames.shape for media in shown.media] == [(1, 140, 140, 3)]
    written = MazeTasks("train", render=False, system="").task(TaskKey("moves=3", 0))
    assert [message["role"] for message in written.messages] == ["user"]
    assert written.media == ()
    assert "+---+---+---+---+---+" in written.messages[0]["content"][0]["text"]
    assert item(written) == item(shown)


def test_every_task_is_checked_before_it_is_given_out(monkeypatch):
    seen = []
    monkeypatch.setattr("data_pipelines.tasks.maze.check_maze", lambda meta, solution: seen.append((meta, solution)))
    task = MazeTasks("train").task(TaskKey("moves=3", 0))
    assert seen == [(task.meta, task.solution)]
    check_maze(task.meta, task.solution)


def test_meta_is_plain_json():
    task = MazeTasks("train", loops=0.25).task(TaskKey("moves=3", 0))
    assert json.loads(json.dumps(task.meta)) == task.meta
    assert task.meta["openings"] == sorted(task.meta["openings"])


def test_importing_tasks_loads_no_torch():
    code = (
        "import sys, data_pipelines.tasks.maze, data_pipelines.datasets.jsonl\n"
        "print([name for name in ('torch', 'transformers', 'rewards') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
