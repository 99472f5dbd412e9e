"""What `mmrl tasks` does."""

from pathlib import Path

from data_pipelines.datasets.jsonl import JsonlTasks, write_tasks
from data_pipelines.tasks.contact_sheet import contact_sheet
from data_pipelines.tasks.maze import MazeTasks
from mmrl.errors import TaskError
from mmrl.types import TaskKey


def make_mazes(out: str | Path, n: int, seed: int, split: str, moves: str, turns: str, rows: int, cols: int, loops: float) -> int:
    """Write `n` mazes, equal shares of each number of moves, to the new folder `out`; return their number. See MazeTasks for the rest."""
    if n < 1:
        raise TaskError(f"maze: n={n}: give 1 or more")
    if split not in ("train", "test"):
        raise TaskError(f"maze: split={split!r}: give train or test")
    source = MazeTasks(split=split, seed=seed, rows=rows, cols=cols, moves=moves, turns=turns, loops=loops)
    return write_tasks((source.task(source.key(i)) for i in range(n)), out)


def look(folder: str | Path, out_png: str | Path, count: int) -> int:
    """Draw `count` tasks, evenly spread over a data set, on one PNG file; return how many it holds (fewer if the set is smaller)."""
    if count < 1:
        raise TaskError(f"look: count={count}: give 1 or more")
    source = JsonlTasks(str(folder))
    size = source.size("")
    count = min(count, size)
    sheet = contact_sheet([source.task(TaskKey("", i * size // count)) for i in range(count)], columns=min(4, count))
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png, format="PNG")
    return count
