"""What `mmrl tasks` does."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from data_pipelines.datasets.jsonl import JsonlTasks, write_tasks
from data_pipelines.tasks.clips import ClipTasks, Split, synthetic_clip
from data_pipelines.tasks.contact_sheet import contact_sheet
from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.video.encode import pyav, write_video
from mmrl.errors import TaskError
from mmrl.types import Task, TaskKey


def make_mazes(out: str | Path, n: int, seed: int, split: str, moves: str, turns: str, rows: int, cols: int, loops: float) -> int:
    """Write `n` mazes, equal shares of each number of moves, to the new folder `out`; return their number. See MazeTasks for the rest."""
    if n < 1:
        raise TaskError(f"maze: n={n}: give 1 or more")
    if split not in ("train", "test"):
        raise TaskError(f"maze: split={split!r}: give train or test")
    source = MazeTasks(split=split, seed=seed, rows=rows, cols=cols, moves=moves, turns=turns, loops=loops)
    return write_tasks((source.task(source.key(i)) for i in range(n)), out)


def write_clips(source: ClipTasks, n: int, out: str | Path, videos: bool = False) -> int:
    """Write the first `n` clips, equal shares of each bucket, to the new folder `out`, frames as PNG; return their number.

    `videos`: also as out/videos/0000000.mp4, ..., in the order of tasks.jsonl; needs PyAV. MediaError without it, before anything is
    written.
    """
    if n < 1:
        raise TaskError(f"clips: n={n}: give 1 or more")
    tasks = (source.task(source.key(i)) for i in range(n))
    if not videos:
        return write_tasks(tasks, out)
    pyav()
    out = Path(out)
    films = beside(out)

    def filmed() -> Iterator[Task]:
        for number, task in enumerate(tasks):
            write_video(task.media[0].frames, films / f"{number:07d}.mp4", source.fps)
            yield task

    try:
        count = write_tasks(filmed(), out)
        films.rename(out / "videos")
    except BaseException:
        shutil.rmtree(films, ignore_errors=True)
        raise
    return count


def write_footage(out: str | Path, n: int, split: Split, seed: int, num_frames: int, height: int, width: int, fps: int) -> int:
    """Write `n` synthetic clips without questions as 0000000.mp4, ... to the new folder `out`; return their number. Needs PyAV."""
    out = Path(out)
    if n < 1:
        raise TaskError(f"footage: n={n}: give 1 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TaskError(f"{out}: exists and is not empty; give another folder or remove it")
    pyav()
    films = beside(out)
    try:
        for number in range(n):
            clip = synthetic_clip(split, seed, number, num_frames=num_frames, height=height, width=width, fps=fps)
            write_video(clip.frames, films / f"{number:07d}.mp4", fps)
        films.replace(out)
    except BaseException:
        shutil.rmtree(films, ignore_errors=True)
        raise
    return n


def beside(out: Path) -> Path:
    """A new folder next to `out`, to be filled and then renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    folder.chmod(0o755)
    return folder


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
