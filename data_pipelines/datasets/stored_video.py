"""A video of a task without its pixels: frames of a file by number, and what is done to them. JSON in, `Media` out, the same every time.

    {"file": "clips/a.mp4", "indices": [50, 68, 86], "size": [224, 280], "fps": 1.2, "edits": [...]}

`size` (height, width) is optional: the file's own. With `fps`, frame k is shown at k / fps seconds; without, at its time in the file.
`edits` are done in order:

    {"perturb": "ZoomOut", "fields": {"low": 1.2}, "start": 1, "length": 2, "key": "any text"}     an operation on frames 1 and 2
    {"paste": [{"frame": 0, "shape": "circle", "x": 90.5, "y": 60.0, "size": 31.25, "angle": 0, "colour": [250, 60, 71]}]}

The names are those of `data_pipelines.perturb.ops`; `key` is what its randomness hangs on. The other clip of a `Swap` is a field
`other`: {"file", "indices"}, read at the same size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from data_pipelines.perturb import ops
from data_pipelines.perturb.ops import Segment, Swap
from data_pipelines.perturb.shapes import PastedShape, pasted
from mmrl.seeding import stream
from mmrl.types import Media, Task

if TYPE_CHECKING:
    from mmrl.protocols import Perturbation

FORM = 'give {"file": path, "indices": [frame numbers]} and, if wanted, "size": [height, width], "fps" and "edits"'
EDIT_FORM = 'give {"perturb": name, "fields", "start", "length", "key"} or {"paste": [shapes]}'

ReadFrames = Callable[[str, Sequence[int], tuple[int, int] | None], Media]
"""(file, indices, size) -> those frames, with the file's timestamps."""


@dataclass(frozen=True, eq=False)
class StoredTask:
    """A task that is written with entries in the place of its videos' frames."""

    task: Task
    videos: tuple[Mapping[str, Any], ...]
    """One entry for each video of the task."""


class BadEntry(ValueError):
    """An entry that is not of the form: (key, value, remedy)."""


def check_entry(entry: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """(key, path) of each file that an entry names. BadEntry(key, value, remedy) if it is not of the form."""
    _known(entry, key, ("file", "indices", "size", "fps", "edits"), "a video file has file, indices and size, fps, edits")
    files = [_check_frames(entry, key)]
    size, fps, edits = entry.get("size"), entry.get("fps"), entry.get("edits", [])
    if size is not None and not (_whole_numbers(size, 1) and len(size) == 2):
        raise BadEntry(f"{key}.size", size, "give [height, width] in pixels, or leave it out")
    if fps is not None and not (_is_number(fps) and fps > 0):
        raise BadEntry(f"{key}.fps", fps, "give frames per second, above 0")
    if not isinstance(edits, list):
        raise BadEntry(f"{key}.edits", edits, "give a list")
    for number, edit in enumerate(edits):
        files += _check_edit(edit, f"{key}.edits[{number}]", len(entry["indices"]))
    return files


def media_of(entry: Mapping[str, Any], read: ReadFrames) -> Media:
    """The frames of a checked entry. What `read` raises passes."""
    size = tuple(entry["size"]) if entry.get("size") else None
    media = read(entry["file"], entry["indices"], size)
    if entry.get("fps"):
        media = Media(media.frames, np.arange(len(media.frames)) / entry["fps"])
    return edited(media, entry.get("edits", ()), read)


def moved(entry: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """The entry with every file's path replaced by `place` of it."""
    new = {**entry, "file": place(entry["file"])}
    if "edits" in entry:
        new["edits"] = [
            {**edit, "fields": {"other": moved(edit["fields"]["other"], place)}} if edit.get("perturb") == "Swap" else edit
            for edit in entry["edits"]
        ]
    return new


def edited(media: Media, edits: Sequence[Mapping[str, Any]], read: ReadFrames) -> Media:
    """`media` after checked edits, in order."""
    for edit in edits:
        if "paste" in edit:
            media = Media(pasted(media.frames, [_shape(one) for one in edit["paste"]]), media.timestamps_s)
        else:
            media = Segment(_operation(edit, media, read), edit["start"], edit["length"])(media, stream("edit", edit["key"]))
    return media


def perturb_edit(op: "Perturbation", start: int, length: int, key: str) -> dict[str, Any]:
    """The edit that applies an operation with plain fields to frames [start, start + length)."""
    assert is_dataclass(op)
    values = {item.name: getattr(op, item.name) for item in fields(op)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"perturb": type(op).__name__, "fields": plain, "start": start, "length": length, "key": key}


def swap_edit(file: str, indices: Sequence[int], start: int, length: int, key: str) -> dict[str, Any]:
    """The edit that puts a run of other frames in the place of frames [start, start + length)."""
    return {"perturb": "Swap", "fields": {"other": {"file": file, "indices": list(indices)}}, "start": start, "length": length, "key": key}


def paste_edit(shapes: Sequence[PastedShape]) -> dict[str, Any]:
    """The edit that pastes shapes."""
    return {"paste": [{item.name: getattr(one, item.name) for item in fields(one)} | {"colour": list(one.colour)} for one in shapes]}


def _operation(edit: Mapping[str, Any], media: Media, read: ReadFrames) -> "Perturbation":
    if edit["perturb"] == "Swap":
        other = edit["fields"]["other"]
        _, height, width, _ = media.frames.shape
        return Swap(read(other["file"], other["indices"], (height, width)))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in edit["fields"].items()}
    return getattr(ops, edit["perturb"])(**values)


def _shape(values: Mapping[str, Any]) -> PastedShape:
    return PastedShape(**{**values, "colour": tuple(values["colour"])})


def _check_frames(entry: Any, key: str) -> tuple[str, str]:
    if not isinstance(entry, dict) or "file" not in entry:
        raise BadEntry(key, entry, FORM)
    if not isinstance(entry["file"], str) or not entry["file"]:
        raise BadEntry(f"{key}.file", entry["file"], "give a path")
    if not (_whole_numbers(entry.get("indices"), 0) and entry["indices"]):
        raise BadEntry(f"{key}.indices", entry.get("indices"), "give the numbers of its frames, from 0")
    return f"{key}.file", entry["file"]


def _check_edit(edit: Any, key: str, frames: int) -> list[tuple[str, str]]:
    if not isinstance(edit, dict) or ("perturb" in edit) == ("paste" in edit):
        raise BadEntry(key, edit, EDIT_FORM)
    if "paste" in edit:
        _known(edit, key, ("paste",), EDIT_FORM)
        for number, one in enumerate(edit["paste"] if isinstance(edit["paste"], list) else [edit["paste"]]):
            _check_shape(one, f"{key}.paste[{number}]", frames)
        return []
    _known(edit, key, ("perturb", "fields", "start", "length", "key"), EDIT_FORM)
    names = sorted(name for name in ops.__all__ if isinstance(getattr(ops, name), type) and name not in ("Segment", "Chain"))
    if edit["perturb"] not in names:
        raise BadEntry(f"{key}.perturb", edit["perturb"], f"there are {', '.join(names)}")
    part = [edit.get("start"), edit.get("length")]
    if not _whole_numbers(part, 0) or not 0 < part[1] <= frames - part[0]:
        raise BadEntry(key, {"start": part[0], "length": part[1]}, f"give a start and a length inside the {frames} frames")
    if not isinstance(edit.get("fields"), dict) or not isinstance(edit.get("key"), str):
        raise BadEntry(key, edit, EDIT_FORM)
    if edit["perturb"] == "Swap":
        _known(edit["fields"], f"{key}.fields", ("other",), 'give {"other": {"file", "indices"}}')
        return [_check_frames(edit["fields"].get("other"), f"{key}.fields.other")]
    try:
        _operation(edit, _NOTHING, _no_file)
    except (TypeError, ValueError) as error:
        raise BadEntry(f"{key}.fields", edit["fields"], f"{edit['perturb']} refuses them: {error}") from error
    return []


def _check_shape(values: Any, key: str, frames: int) -> None:
    remedy = 'give {"frame", "shape", "x", "y", "size", "angle", "colour": [red, green, blue]}'
    names = {item.name for item in fields(PastedShape)}
    if not isinstance(values, dict) or values.keys() != names:
        raise BadEntry(key, values, remedy)
    colour = values["colour"]
    sound = _whole_numbers(colour, 0) and len(colour) == 3 and max(colour) <= 255
    if not sound or not all(_is_number(values[name]) for name in ("frame", "x", "y", "size", "angle")):
        raise BadEntry(key, values, remedy)
    if not (isinstance(values["frame"], int) and 0 <= values["frame"] < frames):
        raise BadEntry(f"{key}.frame", values["frame"], f"give 0 to {frames - 1}")
    try:
        _shape(values)
    except ValueError as error:
        raise BadEntry(key, values, str(error)) from error


def _known(entry: Mapping[str, Any], key: str, names: Sequence[str], remedy: str) -> None:
    unknown = sorted(set(entry) - set(names))
    if unknown:
        raise BadEntry(f"{key}.{unknown[0]}", entry[unknown[0]], remedy)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole_numbers(values: Any, least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)


_NOTHING = Media(np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1))


def _no_file(file: str, indices: Sequence[int], size: tuple[int, int] | None) -> Media:
    raise AssertionError(f"nothing is read while {file} is checked")
