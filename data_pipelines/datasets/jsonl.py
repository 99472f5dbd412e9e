"""Tasks on disk: a folder with `tasks.jsonl` and `media/`, or a .jsonl file of one's own.

One JSON object a line: `id`, `prompt` (chat messages), `images` (paths), `videos`, `solution`, `meta`. A video is
{"frames": [paths], "timestamps_s": [seconds]}, or {"file": path, "indices": [frame numbers]} with an optional "size": [height, width];
frames of files are decoded when the task is asked for, and cached. Paths are relative to the file's folder.
"""

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.video.cache import FrameCache
from data_pipelines.video.pictures import read_image
from mmrl.errors import MediaError, TaskError
from mmrl.types import Media, Task, TaskKey

TASKS = "tasks.jsonl"
MEDIA_PER_FOLDER = 1000


def write_tasks(tasks: Iterable[Task], folder: str | Path) -> int:
    """Write tasks to a new folder as they come, and return their number. Pictures become PNG files without metadata.

    The folder appears whole or not at all: it is written beside its place and renamed. Raises TaskError if the folder exists and is not
    empty, or if there are no tasks.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TaskError(f"{folder}: exists and is not empty; give another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        partial.chmod(0o755)
        count = 0
        with (partial / TASKS).open("w", encoding="utf-8", newline="\n") as lines:
            for task in tasks:
                lines.write(json.dumps(row_of(task, partial, count), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
                count += 1
            lines.flush()
            os.fsync(lines.fileno())
        if not count:
            raise TaskError(f"{folder}: no tasks to write")
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return count


def row_of(task: Task, folder: Path, number: int) -> dict[str, Any]:
    """The JSON object of a task, its media saved under `folder`."""
    shelf = Path("media") / f"{number // MEDIA_PER_FOLDER:04d}"
    images: list[str] = []
    videos: list[dict[str, Any]] = []
    for which, media in enumerate(task.media):
        (folder / shelf).mkdir(parents=True, exist_ok=True)
        paths = []
        for frame, pixels in enumerate(media.frames):
            path = shelf / (f"{number:07d}-{which}" + (f"-{frame:04d}.png" if media.is_video else ".png"))
            Image.fromarray(pixels).save(folder / path, compress_level=6)
            paths.append(path.as_posix())
        if media.timestamps_s is None:
            images += paths
        else:
            videos.append({"frames": paths, "timestamps_s": [float(second) for second in media.timestamps_s]})
    row = {"id": task.id, "prompt": list(task.messages), "images": images, "videos": videos, "solution": task.solution, "meta": task.meta}
    return {key: value for key, value in row.items() if value or key not in ("images", "videos")}


@dataclass(frozen=True)
class JsonlTasks:
    """A data set on disk as a source of tasks. Keeps byte offsets in memory; reads lines and decodes pictures when asked.

    Every line is checked when the source is made: TaskError or MediaError names file, line, key and value.
    """

    path: str
    """A folder that holds `tasks.jsonl`, or a .jsonl file."""
    bucket_by: str | None = None
    """A key of `meta`: tasks are grouped by its value, in buckets such as "moves=1", smallest first. None: one bucket ""."""

    def __post_init__(self) -> None:
        self._index  # noqa: B018  reads and checks the file now, not at the first task

    @property
    def file(self) -> Path:
        path = Path(self.path)
        return path / TASKS if path.is_dir() else path

    @cached_property
    def _index(self) -> dict[str, tuple[array, array]]:
        """Bucket -> the byte offsets and line numbers of its tasks."""
        if not self.file.is_file():
            raise TaskError(f"{self.file}: no such file; give a folder with {TASKS}, or a .jsonl file")
        seen: dict[bytes, int] = {}
        found: dict[Any, tuple[array, array]] = {}
        with self.file.open("rb") as lines:
            offset = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = self._row(line, number)
                    key = blake2b(row["id"].encode(), digest_size=16).digest()
                    if key in seen:
                        raise self._error(number, "id", row["id"], f"line {seen[key]} has it already; give each task its own")
                    seen[key] = number
                    offsets, numbers = found.setdefault(self._group(row, number), (array("Q"), array("Q")))
                    offsets.append(offset)
                    numbers.append(number)
                offset += len(line)
        if not found:
            raise TaskError(f"{self.file}: no tasks in it")
        if self.bucket_by is None:
            return {"": found[None]}
        if len({isinstance(value, str) for value in found}) > 1:
            raise TaskError(f"{self.file}: meta.{self.bucket_by} is a text in some lines and a number in others; make it one of them")
        return {f"{self.bucket_by}={value}": found[value] for value in sorted(found)}

    def _group(self, row: Mapping[str, Any], number: int) -> Any:
        if self.bucket_by is None:
            return None
        value = row["meta"].get(self.bucket_by)
        if not isinstance(value, str | int | float):
            raise self._error(number, f"meta.{self.bucket_by}", value, "bucket_by needs a text or a number in every line")
        return value

    @property
    def buckets(self) -> tuple[str, ...]:
        return tuple(self._index)

    def size(self, bucket: str) -> int:
        return len(self._places(bucket)[0])

    def _places(self, bucket: str) -> tuple[array, array]:
        if bucket not in self._index:
            raise TaskError(f"{self.file}: no bucket {bucket!r}; there are {', '.join(map(repr, self.buckets))}")
        return self._index[bucket]

    def task(self, key: TaskKey) -> Task:
        """Raises ValueError for an index outside the bucket, MediaError for a picture that cannot be decoded."""
        offsets, numbers = self._places(key.bucket)
        if not 0 <= key.index < len(offsets):
            raise ValueError(f"index must be 0 to {len(offsets) - 1} in bucket {key.bucket!r}; got {key.index}")
        number = numbers[key.index]
        with self.file.open("rb") as lines:
            lines.seek(offsets[key.index])
            row = self._row(lines.readline(), number)
        images, videos = iter(row.get("images", ())), iter(row.get("videos", ()))
        media = [
            self._still(next(images), number) if kind == "image" else self._clip(next(videos), number)
            for kind in media_parts(row["prompt"])
        ]
        return Task(row["id"], tuple(row["prompt"]), tuple(media), row["solution"], row["meta"])

    def _still(self, path: str, number: int) -> Media:
        return Media(read_image(self.file.parent / path, f"{self.file}:{number}")[None])

    @cached_property
    def _cache(self) -> FrameCache:
        return FrameCache()

    def _clip(self, video: Mapping[str, Any], number: int) -> Media:
        if "file" in video:
            try:
                return self._cache.read(self.file.parent / video["file"], video["indices"], video.get("size"))
            except MediaError as error:
                raise MediaError(f"{self.file}:{number}: {error}") from error
        frames = [read_image(self.file.parent / path, f"{self.file}:{number}") for path in video["frames"]]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            raise MediaError(f"{self.file}:{number}: videos: frames of different sizes {sorted(sizes)}; make them equal")
        return Media(np.stack(frames), np.array(video["timestamps_s"], np.float64))

    def _error(self, number: int, key: str, value: Any, remedy: str) -> TaskError:
        shown = repr(value)
        return TaskError(f"{self.file}:{number}: {key}: got {shown if len(shown) <= 120 else shown[:117] + '...'}; {remedy}")

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        """A line as a checked row."""
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{self.file}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise self._error(number, "line", row, "give a JSON object")
        kinds = {"id": str, "prompt": list, "solution": str, "meta": dict, "images": list, "videos": list}
        for key, kind in kinds.items():
            if key not in row and key not in ("images", "videos"):
                raise TaskError(f"{self.file}:{number}: {key} is missing; a task has id, prompt, solution and meta")
            if key in row and not isinstance(row[key], kind):
                raise self._error(number, key, row[key], f"give a {kind.__name__}")
        unknown = row.keys() - kinds.keys()
        if unknown:
            raise TaskError(f"{self.file}:{number}: unknown key {sorted(unknown)[0]!r}; put data of your own into meta")
        if not row["id"]:
            raise self._error(number, "id", row["id"], "give a name")
        self._check_prompt(row["prompt"], number)
        self._check_media(row, number)
        return row

    def _check_prompt(self, prompt: list[Any], number: int) -> None:
        if not prompt:
            raise self._error(number, "prompt", prompt, "give at least one message")
        for i, message in enumerate(prompt):
            where = f"prompt[{i}]"
            if (
                not isinstance(message, dict)
                or not isinstance(message.get("role"), str)
                or not isinstance(message.get("content"), str | list)
            ):
                raise self._error(number, where, message, 'give {"role": ..., "content": a text or a list of parts}')
            for j, part in enumerate(message["content"] if isinstance(message["content"], list) else ()):
                sound = isinstance(part, dict) and part.get("type") in ("text", "image", "video")
                if not sound or (part["type"] == "text" and not isinstance(part.get("text"), str)):
                    raise self._error(
                        number, f"{where}.content[{j}]", part, 'give {"type": "text", "text": ...}, {"type": "image"} or {"type": "video"}'
                    )

    def _check_media(self, row: Mapping[str, Any], number: int) -> None:
        parts = media_parts(row["prompt"])
        for kind, key in (("image", "images"), ("video", "videos")):
            given, wanted = row.get(key, []), parts.count(kind)
            if len(given) != wanted:
                raise TaskError(
                    f"{self.file}:{number}: {key}: {len(given)} given, but the prompt has {wanted} {kind} parts; make them equal"
                )
        paths = [(f"images[{i}]", path) for i, path in enumerate(row.get("images", ()))]
        for i, video in enumerate(row.get("videos", ())):
            paths += self._frames(video, f"videos[{i}]", number)
        for key, path in paths:
            if not isinstance(path, str):
                raise self._error(number, key, path, "give a path")
            if not (self.file.parent / path).is_file():
                raise MediaError(f"{self.file}:{number}: {key}: no such file {path!r} in {self.file.parent}")

    def _frames(self, video: Any, key: str, number: int) -> list[tuple[str, Any]]:
        remedy = (
            'give {"frames": [paths], "timestamps_s": [seconds]}, as many of the one as of the other, '
            'or {"file": path, "indices": [frame numbers]}'
        )
        if not isinstance(video, dict):
            raise self._error(number, key, video, remedy)
        if "file" in video:
            return self._file(video, key, number)
        frames, seconds = video.get("frames"), video.get("timestamps_s")
        if not isinstance(frames, list) or not isinstance(seconds, list) or not 0 < len(frames) == len(seconds):
            raise self._error(number, key, video, remedy)
        if not all(isinstance(second, int | float) and not isinstance(second, bool) for second in seconds):
            raise self._error(number, f"{key}.timestamps_s", seconds, "give numbers")
        return [(f"{key}.frames[{i}]", path) for i, path in enumerate(frames)]

    def _file(self, video: Mapping[str, Any], key: str, number: int) -> list[tuple[str, Any]]:
        unknown = video.keys() - {"file", "indices", "size"}
        if unknown:
            raise self._error(number, f"{key}.{sorted(unknown)[0]}", video[sorted(unknown)[0]], "a video file has file, indices and size")
        indices, size = video.get("indices"), video.get("size")
        if not isinstance(indices, list) or not indices or not all(_whole(index, 0) for index in indices):
            raise self._error(number, f"{key}.indices", indices, "give the numbers of its frames, from 0")
        if size is not None and not (isinstance(size, list) and len(size) == 2 and all(_whole(side, 1) for side in size)):
            raise self._error(number, f"{key}.size", size, "give [height, width] in pixels, or leave it out")
        return [(f"{key}.file", video["file"])]


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def media_parts(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """ "image" or "video" for each media part, in order."""
    contents = (message["content"] for message in messages if not isinstance(message["content"], str))
    return [part["type"] for content in contents for part in content if part["type"] != "text"]
