"""Times of a video's packets from the sample tables of an mp4 or mov file (ISO/IEC 14496-12), without reading the packets.

A demuxer makes its times from these same tables, packet by packet; here they are arrays, which takes a millisecond where reading the
packets of ten minutes takes seventy. Only plain files are read so: one run of samples that all lie inside the file, one edit that shows
them all. For anything else the answer is None, and the packets are read.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

Times = tuple[np.ndarray, np.ndarray, int]
"""Ticks of the frames in the order of showing, ticks of the keyframes in the order of the file, how long the last frame stays."""
CODINGS = (b"avc1", b"avc3", b"hvc1", b"hev1", b"av01")
LARGEST = 2**28
"""Bytes of tables that are read into memory."""
SIGN = 2**31


class _Unusual(Exception):
    """The file has something that is left to the demuxer."""


def index_times(path: Path, track: int) -> Times | None:
    """Of the track with that number. None for a file that is not plain."""
    with suppress(_Unusual, struct.error, KeyError, IndexError, ValueError):
        movie, held = _movie(path)
        boxes = list(_boxes(movie))
        if any(kind == b"mvex" for kind, _ in boxes):
            raise _Unusual
        tracks = [dict(_boxes(box)) for kind, box in boxes if kind == b"trak"]
        (only,) = [one for one in tracks if _number(one[b"tkhd"], 12, 20) == track]
        return _times(only, held, _clock(dict(boxes)[b"mvhd"])[0])
    return None


def _movie(path: Path) -> tuple[memoryview, int]:
    """The box of tables, and the file's size."""
    held, at, found = path.stat().st_size, 0, None
    with path.open("rb") as file:
        while at + 8 <= held:
            file.seek(at)
            head = file.read(16)
            size, kind = struct.unpack_from(">I4s", head)
            start = 8
            if size == 1:
                (size,), start = struct.unpack_from(">Q", head, 8), 16
            size = size or held - at
            if size < start or at + size > held or kind in (b"moof", b"sidx"):
                raise _Unusual
            if kind == b"moov":
                if found is not None or size > LARGEST:
                    raise _Unusual
                file.seek(at + start)
                found = memoryview(file.read(size - start))
            at += size
    if found is None:
        raise _Unusual
    return found, held


def _boxes(of: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(of):
        size, kind = struct.unpack_from(">I4s", of, at)
        if size < 8 or at + size > len(of):
            raise _Unusual
        yield kind, of[at + 8 : at + size]
        at += size


def _number(box: memoryview, short: int, long: int) -> int:
    """A field of 32 bits, whose place depends on the width of the times before it."""
    return struct.unpack_from(">I", box, long if box[0] else short)[0]


def _clock(box: memoryview) -> tuple[int, int]:
    """Units of a second, and the length in them, of mvhd and mdhd."""
    return struct.unpack_from(">IQ", box, 20) if box[0] else struct.unpack_from(">II", box, 12)


def _table(box: memoryview, columns: int) -> np.ndarray:
    """int64 [entries, columns]."""
    (count,) = struct.unpack_from(">I", box, 4)
    return np.frombuffer(box, ">u4", count * columns, 8).reshape(count, columns).astype(np.int64)


def _spread(table: np.ndarray, count: int) -> np.ndarray:
    """Runs (how often, value) as one value for each sample."""
    if table[:, 0].sum() != count or (table[:, 1] >= SIGN).any():
        raise _Unusual
    return np.repeat(table[:, 1], table[:, 0])


def _times(track: dict[bytes, memoryview], held: int, movie_unit: int) -> Times:
    media = dict(_boxes(track[b"mdia"]))
    unit, length = _clock(media[b"mdhd"])
    listed = list(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))
    tables = dict(listed)
    if len(tables) < len(listed) or {b"sbgp", b"stps", b"stz2"} & tables.keys():  # open groups, partial keyframes
        raise _Unusual
    described = tables[b"stsd"]
    if struct.unpack_from(">I", described, 4)[0] != 1 or bytes(described[12:16]) not in CODINGS:
        raise _Unusual
    same, count = struct.unpack_from(">II", tables[b"stsz"], 4)
    if same or not count:
        raise _Unusual
    _check_places(tables, np.frombuffer(tables[b"stsz"], ">u4", count, 12).astype(np.int64), held)
    lasts = _spread(_table(tables[b"stts"], 2), count)
    shown = np.cumsum(lasts) - lasts
    if b"ctts" in tables:
        shown += _spread(_table(tables[b"ctts"], 2), count)
    keys = _table(tables[b"stss"], 1)[:, 0] - 1
    if len(keys) == 0 or keys[0] != 0 or (np.diff(keys) <= 0).any() or keys[-1] >= count or shown.min() < shown[0]:
        raise _Unusual
    shown -= _shift(track, shown, unit, movie_unit)
    order = np.argsort(shown, kind="stable")
    last = order[-1]
    if last == count - 1 and lasts.sum() != length:  # how long it stays is then up to the demuxer
        raise _Unusual
    shown_keys, shown = shown[keys], shown[order]
    if (np.diff(shown) <= 0).any() or (np.diff(shown_keys) <= 0).any():
        raise _Unusual
    return shown, shown_keys, int(lasts[last])


def _check_places(tables: dict[bytes, memoryview], sizes: np.ndarray, held: int) -> None:
    """Every sample has bytes of its own, and they lie inside the file."""
    if b"co64" in tables:
        (chunks,) = struct.unpack_from(">I", tables[b"co64"], 4)
        starts = np.frombuffer(tables[b"co64"], ">u8", chunks, 8).astype(np.int64)
    else:
        starts = _table(tables[b"stco"], 1)[:, 0]
    runs = _table(tables[b"stsc"], 3)
    firsts = runs[:, 0] - 1
    if firsts[0] != 0 or (np.diff(firsts) <= 0).any() or firsts[-1] >= len(starts) or (runs[:, 1] < 1).any():
        raise _Unusual
    each = np.repeat(runs[:, 1], np.diff(firsts, append=len(starts)))  # samples of every chunk
    if each.sum() != len(sizes) or (sizes < 1).any() or ((starts < 0) | (starts > held)).any():
        raise _Unusual
    ends = starts + np.add.reduceat(sizes, np.cumsum(each) - each)
    order = np.argsort(starts)
    if (ends > held).any() or (ends[order][:-1] > starts[order][1:]).any():
        raise _Unusual


def _shift(track: dict[bytes, memoryview], shown: np.ndarray, unit: int, movie_unit: int) -> int:
    """What the edit takes off every time. It must show all of the media, from the first frame on."""
    if b"edts" not in track:
        return 0
    edits = dict(_boxes(track[b"edts"]))[b"elst"]
    (count,) = struct.unpack_from(">I", edits, 4)
    length, start, rate = struct.unpack_from(">QqI" if edits[0] else ">IiI", edits, 8)
    if count != 1 or rate != 1 << 16 or start != shown[0] or not movie_unit or (start + length * unit // movie_unit) <= shown.max():
        raise _Unusual
    return start
