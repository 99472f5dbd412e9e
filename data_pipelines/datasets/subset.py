"""Some tasks of another source, by a list of their keys."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmrl.errors import TaskError
from mmrl.protocols import TaskSource
from mmrl.types import Task, TaskKey


@dataclass(frozen=True)
class SubsetTasks:
    """The tasks of `source` that a file lists, in one bucket "", in the file's order.

    A line is a JSON object with "bucket" and "index", the task's key, and "id", its name: a source that makes another task of the key is a
    TaskError, because whatever the list was made by is no longer true of it. `mmrl tasks difficulty` writes such files.
    """

    source: TaskSource
    """Where the tasks come from."""
    path: str
    """The list, JSON lines."""

    def __post_init__(self) -> None:
        self._rows  # noqa: B018  reads and checks the list now, not at the first task

    @cached_property
    def _rows(self) -> tuple[tuple[TaskKey, str], ...]:
        path = Path(self.path)
        if not path.is_file():
            raise TaskError(f"{path}: no such file; give a list that `mmrl tasks difficulty` has written")
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        rows = tuple(self._row(line, f"{path}:{number}") for number, line in lines if line.strip())
        if not rows:
            raise TaskError(f"{path}: lists no task")
        return rows

    def _row(self, line: str, where: str) -> tuple[TaskKey, str]:
        try:
            row: Mapping[str, Any] = json.loads(line)
            key, name = TaskKey(row["bucket"], row["index"]), row["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise TaskError(f"{where}: got {line[:120]!r}; a line is an object with bucket, index and id") from error
        if key.bucket not in self.source.buckets:
            raise TaskError(f"{where}: bucket: got {key.bucket!r}; the source has {', '.join(map(repr, self.source.buckets))}")
        size = self.source.size(key.bucket)
        if not isinstance(key.index, int) or key.index < 0 or (size is not None and key.index >= size):
            raise TaskError(f"{where}: index: got {key.index!r}; bucket {key.bucket!r} has {'endless' if size is None else size} tasks")
        return key, name

    @property
    def buckets(self) -> tuple[str, ...]:
        return ("",)

    def size(self, bucket: str) -> int:
        if bucket:
            raise TaskError(f"{self.path}: no bucket {bucket!r}; there is only ''")
        return len(self._rows)

    def task(self, key: TaskKey) -> Task:
        """Raises ValueError for an index outside the list, TaskError where the source's task is not the listed one."""
        if not 0 <= key.index < self.size(key.bucket):
            raise ValueError(f"index must be 0 to {self.size(key.bucket) - 1}; got {key.index}")
        there, name = self._rows[key.index]
        task = self.source.task(there)
        if task.id != name:
            raise TaskError(
                f"{self.path}: task {key.index + 1}: listed as {name!r}, but the source makes {task.id!r} of bucket {there.bucket!r}, "
                f"index {there.index}; make the list again, or give the source the settings it had"
            )
        return task
