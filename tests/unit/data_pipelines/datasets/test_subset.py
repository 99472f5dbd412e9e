import json

import pytest

from data_pipelines.datasets.subset import SubsetTasks
from data_pipelines.tasks.maze import MazeTasks
from mmrl.errors import TaskError
from mmrl.types import TaskKey


@pytest.fixture
def maze():
    return MazeTasks("train", seed=0, rows=3, cols=3, moves="1-2")


@pytest.fixture
def listed(tmp_path, maze):
    """Writes a list of keys, each with the id that `maze` gives it, and makes the source."""

    def build(*rows):
        path = tmp_path / "selected.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return SubsetTasks(maze, str(path))

    return build


def row(maze, bucket, index, **more):
    return {"bucket": bucket, "index": index, "id": maze.task(TaskKey(bucket, index)).id, **more}


def test_it_gives_the_listed_tasks_in_order(listed, maze):
    keys = [("moves=2", 7), ("moves=1", 0), ("moves=2", 3)]
    tasks = listed(*(row(maze, *key, iou=0.5) for key in keys), "")
    assert (tasks.buckets, tasks.size("")) == (("",), 3)
    assert [tasks.task(TaskKey("", n)).id for n in range(3)] == [maze.task(TaskKey(*key)).id for key in keys]
    with pytest.raises(ValueError, match="index must be 0 to 2; got 3"):
        tasks.task(TaskKey("", 3))
    with pytest.raises(TaskError, match="no bucket 'moves=1'"):
        tasks.task(TaskKey("moves=1", 0))


def test_another_task_under_the_same_key(listed, maze):
    tasks = listed(row(maze, "moves=1", 0) | {"id": "maze-v0/other"})
    with pytest.raises(TaskError, match=r"selected\.jsonl: task 1: listed as 'maze-v0/other', but the source makes 'maze-v"):
        tasks.task(TaskKey("", 0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r":1: got '\{'; a line is an object with bucket, index and id"),
        ("[]", ":1: got"),
        ('{"bucket": "moves=1", "index": 0}', ":1: got .* a line is an object with bucket, index and id"),
        ('{"bucket": "moves=9", "index": 0, "id": "a"}', ":1: bucket: got 'moves=9'; the source has 'moves=1', 'moves=2'"),
        ('{"bucket": "moves=1", "index": -1, "id": "a"}', ":1: index: got -1; bucket 'moves=1' has endless tasks"),
        ('{"bucket": "moves=1", "index": "0", "id": "a"}', ":1: index: got '0'"),
        ("", "lists no task"),
    ],
)
def test_a_bad_list(listed, line, message):
    with pytest.raises(TaskError, match=message):
        listed(line)


def test_no_list(maze, tmp_path):
    with pytest.raises(TaskError, match="no such file; give a list"):
        SubsetTasks(maze, str(tmp_path / "none"))
