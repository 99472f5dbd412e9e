"""A second opinion on every clip, from its pixels and its public words alone.

It finds shapes by colour, tells their kind by how they fill their box, follows them from frame to frame, and answers the question from
what it saw. Shares no code with the generator, so that a bug there, in the scene or in the drawing of it, cannot hide here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmrl.types import Media

PROTOTYPES = {
    "red": 0xE11E23,
    "orange": 0xFF9114,
    "yellow": 0xFAE632,
    "green": 0x28B446,
    "blue": 0x3C6EFF,
    "purple": 0xA546E1,
    "pink": 0xFF82C3,
    "white": 0xFAFAFA,
}
"""0xRRGGBB. Only pixels of exactly this colour count, so that what lies below a smooth edge changes nothing."""
DIMMEST = min(max(code.to_bytes(3, "big")) for code in PROTOTYPES.values())
"""Every prototype is as bright as this in some channel."""


@dataclass(frozen=True, eq=False)
class Track:
    """A colour through a clip of F frames."""

    mask: np.ndarray
    """bool [F, H, W]: its pixels, edges left out."""

    @cached_property
    def area(self) -> np.ndarray:
        """int64 [F]"""
        return np.count_nonzero(self.mask, axis=(1, 2))

    @cached_property
    def shown(self) -> np.ndarray:
        """bool [F]"""
        return self.area > 0

    @cached_property
    def whole(self) -> np.ndarray:
        """int64: the frames in which nothing covers it."""
        return np.flatnonzero(self.area == self.area.max())

    @cached_property
    def boxes(self) -> np.ndarray:
        """int64 [whole frames, 2, 2]: x, y of the first and last pixel."""
        seen = self.mask[self.whole]
        ends = []
        for across in (1, 2):
            line: np.ndarray = np.any(seen, axis=across)
            ends.append((line.argmax(axis=1), line.shape[1] - 1 - line[:, ::-1].argmax(axis=1)))
        return np.array(ends).transpose(2, 1, 0)

    @cached_property
    def middles(self) -> np.ndarray:
        """int64 [whole frames, 2]: x, y of its middle in half pixels."""
        return self.boxes.sum(axis=1)

    @property
    def kind(self) -> str:
        """A square fills the corners of its box; a circle has as much of itself in the upper half as in the lower, a triangle far less."""
        best = int(self.area[self.whole].argmax())
        (left, top), (right, bottom) = self.boxes[best].tolist()
        inside = self.mask[self.whole[best], top : bottom + 1, left : right + 1]
        if inside[:: len(inside) - 1, :: inside.shape[1] - 1].all():
            return "square"
        rows = inside.sum(axis=1)
        half = len(rows) // 2
        return "triangle" if 2 * rows[:half].sum() < rows[-half:].sum() else "circle"

    @property
    def begin(self) -> int:
        return int(self.shown.argmax())


def check_clip(media: Media, meta: Mapping[str, Any], solution: str) -> None:
    """Raise AssertionError unless the frames show the shapes that `meta` names, and the answer is `solution`."""
    problem = fault(media, meta, solution)
    if problem:
        raise AssertionError(f"{problem}; solution {solution!r}, meta {dict(meta)!r}")


def fault(media: Media, meta: Mapping[str, Any], solution: str) -> str | None:
    """What is wrong, or None."""
    tracks = tracks_of(media.frames)
    if sorted(tracks) != sorted(meta["shapes"]):
        return f"the frames show {sorted(tracks)}"
    hidden = [name for name, track in tracks.items() if len(track.whole) < max(2, len(media.frames) // 6)]
    if hidden:
        return f"the {hidden[0]} is covered too long"
    counts = {kind: sum(name.endswith(kind) for name in tracks) for kind in ("circle", "square", "triangle")}
    if counts != meta["counts"]:
        return f"the frames show {counts}"
    assert media.timestamps_s is not None
    frame_s = (media.timestamps_s[-1] - media.timestamps_s[0]) / (len(media.timestamps_s) - 1)
    if abs(meta["duration_s"] - len(media.frames) * frame_s) > 1e-9:
        return f"{len(media.frames)} frames of {frame_s} s do not last {meta['duration_s']} s"
    try:
        found = answer(tracks, meta, frame_s)
    except Unclear as unclear:
        return str(unclear)
    if meta["kind"] == "grounding" and [float(second) for second in found.split("-")] != meta["span_s"]:
        return f"the event lasts {found} s"
    return None if found == solution else f"the answer is {found!r}"


class Unclear(Exception):
    """The frames do not decide the answer."""


def tracks_of(frames: np.ndarray) -> dict[str, Track]:
    """Name, such as "red circle" -> where it is."""
    bright = (frames[..., 0] >= DIMMEST) | (frames[..., 1] >= DIMMEST) | (frames[..., 2] >= DIMMEST)
    places = np.flatnonzero(bright)
    codes = frames.reshape(-1, 3)[places] @ np.array([1 << 16, 1 << 8, 1])
    found = {}
    for colour, code in PROTOTYPES.items():
        its = places[codes == code]
        if len(its):
            mask = np.zeros(bright.shape, bool)
            mask.reshape(-1)[its] = True
            track = Track(mask)
            found[f"{colour} {track.kind}"] = track
    return found


def answer(tracks: Mapping[str, Track], meta: Mapping[str, Any], frame_s: float) -> str:
    """What the frames say to the question of `meta`. Raises Unclear."""
    kind, level = meta["kind"], meta["level"]
    if kind == "counting":
        return str(sum(name.endswith(meta["asked"][0]) for name in tracks))
    asked = [tracks[name] for name in meta["asked"]]
    letters = "ABCD"[: len(asked)]
    match kind:
        case "order":
            begins = [track.begin for track in asked]
            if len(set(begins)) < len(begins) or min(begins) == 0:
                raise Unclear(f"the shapes appear in the frames {begins}")
            ranked = sorted(zip(begins, letters, strict=True))
            return "".join(letter for _, letter in ranked)[: 1 if level == 1 else None]
        case "direction":
            return way_of(asked[0], level)
        case "speed":
            paces = [np.abs(np.diff(track.middles, axis=0)).sum() / 2 / (len(track.whole) - 1) for track in asked]
            first, second = sorted(paces, reverse=True)[:2]
            if any(len(track.whole) < len(track.mask) for track in asked) or first < 1.2 * second:
                raise Unclear(f"the shapes move {paces} pixels a frame")
            return letters[int(np.argmax(paces))]
        case "grounding":
            begin, end = event(asked, level)
            places = 1 if abs(10 * frame_s - round(10 * frame_s)) < 1e-6 else 2
            return f"{begin * frame_s:.{places}f}-{end * frame_s:.{places}f}"
    if level == 1:
        there = [letter for letter, track in zip(letters, asked, strict=True) if track.shown[0]]
        if len(there) != 1:
            raise Unclear(f"the first frame shows {there}")
        return there[0]
    return corner(asked[0])


def way_of(track: Track, level: int) -> str:
    """Of all of the path, or of its last quarter."""
    if len(track.whole) < len(track.mask):
        raise Unclear("the shape is covered")
    path = track.middles if level < 3 else track.middles[-(len(track.mask) // 4) - 1 :]
    right, down = (path[-1] - path[0]).tolist()
    if max(abs(right), abs(down)) < 4 + 3 * min(abs(right), abs(down)):
        raise Unclear(f"the shape moves {right / 2} pixels to the right and {down / 2} down")
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def event(asked: list[Track], level: int) -> tuple[int, int]:
    """First frame of what happens, and the frame after it."""
    track = asked[0]
    if level == 1:
        on = track.shown
    elif level == 2:
        if len(track.whole) < len(track.mask):
            raise Unclear("the shape is covered")
        on = (np.diff(track.middles, axis=0) != 0).any(axis=1)
    else:
        on = (grown(grown(grown(track.mask))) & asked[1].mask).any(axis=(1, 2))
    frames = np.flatnonzero(on)
    if not len(frames) or frames[-1] - frames[0] + 1 != len(frames):
        raise Unclear(f"it happens in the frames {frames.tolist()}")
    return int(frames[0]), int(frames[-1]) + 1


def grown(mask: np.ndarray) -> np.ndarray:
    """By one pixel on all sides."""
    more = mask.copy()
    more[:, 1:] |= mask[:, :-1]
    more[:, :-1] |= mask[:, 1:]
    wide = more.copy()
    wide[:, :, 1:] |= more[:, :, :-1]
    wide[:, :, :-1] |= more[:, :, 1:]
    return wide


def corner(track: Track) -> str:
    """Where it is in the first frame."""
    if not len(track.whole) or track.whole[0] != 0:
        raise Unclear("the first frame does not show the whole shape")
    (left, top), (right, bottom) = track.boxes[0].tolist()
    height, width = track.mask.shape[1:]
    if (left < width / 2) != (right < width / 2) or (top < height / 2) != (bottom < height / 2):
        raise Unclear("the shape lies across the middle of the first frame")
    return f"{'top' if top < height / 2 else 'bottom'} {'left' if left < width / 2 else 'right'}"
