"""The logged groups, as plain data for the page's script, within a byte budget."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.errors import MmrlError
from mmrl.report.answers import mark_inside, read_answer, truth_of
from mmrl.report.films import end_s, films_of
from mmrl.report.pictures import FRAME, PICTURE, Album, Key, Limit, Picture
from mmrl.report.run_folder import Evaluation, finite
from mmrl.report.signals import token_signals
from mmrl.report.walk import is_maze, walk

CELL_PIXELS = 28
"""A maze picture is this many pixels a cell, without margin; on a picture of another size no path can be drawn."""

_Pictures = dict[tuple[str, Limit], tuple[Key, Picture]]
"""Path as the run wrote it, and how large it may be -> what `Album.look` gave."""

_REQUIRED = ("step", "task_id", "rollout", "prompt", "completion", "finish", "solution", "meta", "images", "reward", "parts", "advantage")


@dataclass(frozen=True)
class Logged:
    """The groups that made it into the page, of all that were logged."""

    groups: list[dict[str, Any]]
    """In order of steps."""
    total: int
    rollouts_total: int


def embed_groups(files: Sequence[Path], album: Album, budget: int) -> Logged:
    """Groups worth at most `budget` bytes of page, pictures included. When they do not all fit, every file gets the same share, the
    first and the last file first, and a file's groups are taken in its order; what one file leaves over, the next ones may use."""
    order = sorted(range(len(files)), key=lambda index: (index not in (0, len(files) - 1), index))
    allowance, spent, total, rollouts_total = 0.0, 0, 0, 0
    taken: dict[int, list[dict[str, Any]]] = {}
    for index in order:
        allowance += budget / len(files)
        table = read_rollouts(files[index], _REQUIRED)
        spans = list(group_spans(table))
        total, rollouts_total = total + len(spans), rollouts_total + table.num_rows
        for begin, end in spans if allowance > 0 else []:
            group, pictures = _group(table.slice(begin, end - begin).to_pylist(), album, f"{files[index]}: row {begin}")
            cost = _json_bytes(group) + album.new_bytes({key for key, _ in pictures.values()})
            if cost > budget:
                continue
            # A file's first group may overdraw its share: later files pay, so that large groups are spread over the run too.
            if spent + cost > budget or (cost > allowance and index in taken):
                break
            allowance, spent = allowance - cost, spent + cost
            taken.setdefault(index, []).append(_with_pictures(group, pictures, album))
    return Logged([group for index in sorted(taken) for group in taken[index]], total, rollouts_total)


def embed_examples(evaluations: Sequence[Evaluation], album: Album, budget: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """(tasks that the first and the last evaluation both show, how many of them there are); at most `limit`, within `budget` bytes.
    With one evaluation, its tasks."""
    if not evaluations:
        return [], 0
    ends = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else [evaluations[0]]
    by_task = [{str(example.get("task_id")): (index, example) for index, example in enumerate(end.examples)} for end in ends]
    shared = [task_id for task_id in by_task[0] if all(task_id in examples for examples in by_task)]
    taken: list[dict[str, Any]] = []
    spent = 0
    for task_id in shared[:limit]:
        index, example = by_task[0][task_id]
        place = f"{ends[0].file}: examples.{index}"
        meta = _meta(example.get("meta"), place)
        solution = str(example.get("solution", ""))
        shown, pictures = _shown(meta, solution, example, album, place, beside=ends[0].file.parent)
        attempts = [
            _attempt(examples[task_id][1], end, meta, shown.get("truth"), place) for end, examples in zip(ends, by_task, strict=True)
        ]
        card = {"task": task_id, "solution": solution, "attempts": attempts, **shown}
        cost = _json_bytes(card) + album.new_bytes({key for key, _ in pictures.values()})
        if spent + cost > budget:
            continue
        spent += cost
        taken.append(_with_pictures(card, pictures, album))
    return taken, len(shared)


def read_rollouts(file: Path, required: Sequence[str]) -> pa.Table:
    """A file of rollouts that has at least the `required` columns; MmrlError otherwise."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise MmrlError(f"{file}: no parquet file that can be read ({error}); delete it to report on the rest of the run") from error
    missing = [column for column in required if column not in table.column_names]
    if missing:
        raise MmrlError(f"{file}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    return table


def group_spans(table: pa.Table) -> Iterator[tuple[int, int]]:
    """[begin, end) of each group: neighbouring rows of one step and task. A rollout number that does not grow begins a new group, so
    that a task drawn twice in a step stays two groups."""
    rows = list(zip(*(table[column].to_pylist() for column in ("step", "task_id", "rollout")), strict=True))
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end][:2] != rows[end - 1][:2] or rows[end][2] <= rows[end - 1][2]:
            yield begin, end
            begin = end


def _group(rows: list[dict[str, Any]], album: Album, place: str) -> tuple[dict[str, Any], _Pictures]:
    first = rows[0]
    meta = _meta(first["meta"], place)
    shown, pictures = _shown(meta, first["solution"], first, album, place)
    group = {
        "step": first["step"],
        "task": first["task_id"],
        "prompt": first["prompt"],
        "solution": first["solution"],
        "rollouts": [],
        **shown,
    }
    if first.get("view"):
        group["view"], more = _view(first, meta, album, place)
        pictures |= more
    for row in rows:
        rollout = _rollout(row, meta, shown.get("truth"), place)
        if row["prompt"] != first["prompt"]:
            rollout["prompt"] = row["prompt"]  # an arm with a prompt of its own
        if _media(row) != _media(first):
            own, more = _shown(meta, first["solution"], row, album, place)
            rollout |= {key: own[key] for key in ("images", "films") if key in own}  # or with pictures of its own
            pictures |= more
        if row.get("view") and _viewed(row) != _viewed(first):
            rollout["view"], more = _view(row, meta, album, place)
            pictures |= more
        group["rollouts"].append(rollout)
    return group, pictures


def _viewed(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("view"), row.get("view_images") or [], row.get("view_videos") or []


def _view(row: Mapping[str, Any], meta: Mapping[str, Any], album: Album, place: str) -> tuple[dict[str, Any], _Pictures]:
    """The pictures that a rollout was scored under besides its own: "name", "images", and "films" if there are clips."""
    name, images, videos = _viewed(row)
    shown, pictures = _shown(meta, "", {"images": images, "videos": videos}, album, f"{place}, view {name}")
    return {"name": name} | {key: shown[key] for key in ("images", "films") if key in shown}, pictures


def _media(row: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    return row.get("images") or [], row.get("videos") or []


def _shown(
    meta: Mapping[str, Any], solution: str, row: Mapping[str, Any], album: Album, place: str, *, beside: Path | None = None
) -> tuple[dict[str, Any], _Pictures]:
    """What a card shows of its task: "images", "films" if there are clips, "maze" and "truth" where they can be drawn."""
    images, videos = _media(row)
    films = films_of(videos, place)
    wanted = [(path, PICTURE) for path in images] + [(path, FRAME) for film in films for path in film["frames"]]
    pictures = {(path, limit): album.look(path, place, beside=beside, limit=limit) for path, limit in wanted}
    shown: dict[str, Any] = {"images": list(images)} | _maze(meta, [pictures[path, PICTURE][1] for path in images])
    truth = truth_of(meta, solution, end_s(films, meta), place)
    if truth is not None:
        shown["truth"] = truth
        for film in films if truth["kind"] == "grounding" else ():
            mark_inside(film, truth["spans"])
    return shown | ({"films": films} if films else {}), pictures


def _rollout(row: Mapping[str, Any], meta: Mapping[str, Any], truth: Mapping[str, Any] | None, place: str) -> dict[str, Any]:
    place = f"{place}, rollout {row['rollout']}"
    tokens = list(row.get("tokens") or ())
    parts = json_object(row["parts"], f"{place}: parts")
    rollout = {
        "index": row["rollout"],
        "arm": row.get("arm") or "plain",
        "version": row.get("policy_version"),
        "finish": row["finish"],
        "reward": finite(row["reward"], f"{place}: reward"),
        "advantage": finite(row["advantage"], f"{place}: advantage"),
        "success": finite(row.get("success"), f"{place}: success"),
        "parts": {name: finite(value, f"{place}: parts.{name}") for name, value in parts.items()},
        "tokens": tokens,
        "signals": token_signals(row, place),
    }
    if "".join(tokens) != row["completion"]:
        rollout["text"] = row["completion"]  # tokens alone do not tell it: an end token, or a character cut in two
    return rollout | _walked(meta, row["completion"]) | read_answer(truth, row["completion"])


def _attempt(
    example: Mapping[str, Any], end: Evaluation, meta: Mapping[str, Any], truth: Mapping[str, Any] | None, place: str
) -> dict[str, Any]:
    completion = str(example.get("completion", ""))
    attempt = {"step": end.step, "text": completion, "success": finite(example.get("success"), f"{place}: success")}
    return attempt | _walked(meta, completion) | read_answer(truth, completion)


def _walked(meta: Mapping[str, Any], completion: str) -> dict[str, Any]:
    if not is_maze(meta):
        return {}
    path = walk(meta, completion)
    return {"path": path.cells, "bump": path.bump}


def _maze(meta: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Only what drawing needs. `on_picture`: the first picture has the size on which cells can be found; otherwise the page draws the
    maze itself and shows the picture beside it."""
    if not is_maze(meta):
        return {}
    sizes = [(picture.width, picture.height) for picture in pictures]
    on_picture = sizes[:1] == [(meta["cols"] * CELL_PIXELS, meta["rows"] * CELL_PIXELS)]
    return {"maze": {key: meta[key] for key in ("rows", "cols", "openings", "start", "goal")} | {"on_picture": on_picture}}


def _with_pictures(card: dict[str, Any], pictures: _Pictures, album: Album) -> dict[str, Any]:
    """The card with picture paths replaced by positions in the album."""
    position = {path: album.add(key) for path, (key, _) in pictures.items()}
    holders = (card, *card.get("rollouts", ()))
    for holder in (*holders, *(holder["view"] for holder in holders if "view" in holder)):
        if holder.get("images"):
            holder["images"] = [position[path, PICTURE] for path in holder["images"]]
        for film in holder.get("films", ()):
            film["frames"] = [position[path, FRAME] for path in film["frames"]]
    return card


def _meta(value: Any, place: str) -> Mapping[str, Any]:
    """A task's meta: an object in evaluation files, its JSON text in rollout files."""
    return value if isinstance(value, dict) else json_object(value, f"{place}: meta")


def json_object(text: str | None, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise MmrlError(f"{place}: broken JSON: {error}; it begins {str(text)[:60]!r}") from error
    if not isinstance(value, dict):
        raise MmrlError(f"{place}: expected a JSON object, got {str(text)[:60]!r}")
    return value


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
