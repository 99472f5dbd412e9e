#!/usr/bin/env python
"""Reads damaged files under a memory cap and a time limit: each must give exact frames or a MediaError that names file and cause.

python scripts/fuzz_media.py --count 1000 --out docs/results/media_fuzz.json

The sources are made here (videos in several containers and codecs, animations); damage is drawn by key, so file i is the same on every
machine with the same encoders. A worker process reads the files; one that crashes or hangs is noticed, counted and replaced.

"exact" are files whose every frame is the undamaged file's at that time; a cut file may have fewer. Bits flipped inside coded pixels or
in a container's table of times can decode without any sign, since most formats carry no checksum: those are counted as "unnoticed".
"""

import argparse
import json
import multiprocessing
import re
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipelines.video.decode import Limits, open_media, probe, read_frames
from mmrl.errors import MediaError
from mmrl.metrics import machine, source_commit, write_json
from mmrl.seeding import stream

KINDS = ("truncated", "bits_flipped", "bytes_zeroed", "wrong_extension", "zero_bytes", "huge_size", "endless_gif", "spliced")
SHARES = (0.25, 0.35, 0.1, 0.06, 0.02, 0.1, 0.04, 0.08)
FRAMES = 24
BITS = 5
SECONDS = 10.0
"""Time limit of a file, given to the reader; a worker silent for three times as long counts as hung."""
MEMORY = 2 * 2**30
"""Address space of a worker."""
LIMITS = Limits(seconds=SECONDS, frame_pixels=2**24, total_pixels=2**26)
VIDEOS = (
    ("h264.mp4", "libx264", {"g": "8", "bf": "2"}, {"movflags": "faststart"}),
    ("h264_end.mp4", "libx264", {"g": "8", "bf": "2"}, {}),
    ("h264.mkv", "libx264", {"g": "8", "bf": "2"}, {"cluster_time_limit": "200"}),
    ("h264.ts", "libx264", {"g": "8", "bf": "2"}, {}),
    ("mpeg4.avi", "mpeg4", {"g": "8", "bf": "2"}, {}),
    ("vp9.webm", "libvpx-vp9", {"g": "8", "deadline": "realtime", "cpu-used": "8"}, {}),
    ("h265.mp4", "libx265", {"x265-params": "keyint=8:log-level=none"}, {}),
)
ANIMATIONS = ("GIF", "PNG", "WEBP")


def picture(number: int, height: int = 72, width: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]; the upper half is the number in black and white bars."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([(columns * 2 + number * 9) % 200, (rows * 3 + number) % 200, (rows + columns) % 150], -1).astype(np.uint8)
    bits = np.array([255 * (number >> bit & 1) for bit in reversed(range(BITS))], np.uint8)
    pixels[: height // 2] = bits[columns[0] * BITS // width][None, :, None]
    return pixels


def numbers(frames: np.ndarray) -> list[int]:
    """-1 where the bars are no longer black and white."""
    _, height, width, _ = frames.shape
    centres = [(2 * bar + 1) * width // (2 * BITS) for bar in range(BITS)]
    levels = frames[:, height // 4, centres].mean(-1)
    read = (levels > 127).dot(2 ** np.arange(BITS)[::-1])
    return np.where((np.abs(levels - 127) > 90).all(-1), read, -1).tolist()


def write_sources(folder: Path) -> list[Path]:
    for name, codec, options, container in VIDEOS:
        with av.open(str(folder / name), "w", options=container) as out:
            video = out.add_stream(codec, rate=25, options={"threads": "1", **options})
            video.height, video.width, video.pix_fmt = 72, 96, "yuv420p"
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(picture(number))
                frame.pts, frame.time_base = number, Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode())
    first, *others = [Image.fromarray(picture(number)) for number in range(FRAMES)]
    for form in ANIMATIONS:
        lossless = {"lossless": True} if form == "WEBP" else {}
        first.save(folder / f"animation.{form.lower()}", form, save_all=True, append_images=others, duration=40, loop=0, **lossless)
    return sorted(folder.iterdir())


def damaged(sources: list[Path], number: int) -> tuple[str, str, bytes]:
    """Kind of damage, a file name, and its content."""
    rng = stream("media_fuzz", 1, number)
    kind = KINDS[int(rng.choice(len(KINDS), p=SHARES))]
    source = sources[int(rng.integers(len(sources)))]
    content = bytearray(source.read_bytes())
    name = f"{number:06d}-{kind}{source.suffix}"
    if kind == "truncated":
        del content[int(rng.integers(1, len(content))) :]
    elif kind == "bits_flipped":
        for _ in range(int(2 ** rng.integers(0, 8))):
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    elif kind == "bytes_zeroed":
        start = int(rng.integers(len(content)))
        stop = min(len(content), start + int(2 ** rng.integers(2, 12)))
        content[start:stop] = bytes(stop - start)
    elif kind == "wrong_extension":
        name = f"{number:06d}-{kind}{rng.choice(['.jpg', '.txt', '.mp4', '.gif', '.webm'])}"
        if rng.random() < 0.3:
            content = bytearray(rng.bytes(2000))
    elif kind == "zero_bytes":
        content = bytearray()
    elif kind == "huge_size":
        enlarge(content, rng)
    elif kind == "endless_gif":
        name, content = f"{number:06d}-{kind}.gif", endless_gif(rng)
    else:  # the beginning of one file and the end of another
        other = sources[int(rng.integers(len(sources)))].read_bytes()
        cut = float(rng.random())
        content = content[: int(len(content) * cut)] + other[int(len(other) * cut) :]
    return kind, name, bytes(content)


def enlarge(content: bytearray, rng: np.random.Generator) -> None:
    """Makes the header declare a huge picture, or a huge number of frames."""
    huge = int(rng.choice([20000, 60000, 2**31 - 1, 2**32 - 1]))
    for tag, offset, form in ((b"avc1", 28, ">H"), (b"hvc1", 28, ">H"), (b"IHDR", 4, ">I"), (b"acTL", 4, ">I")):
        if (at := content.find(tag)) >= 0:
            struct.pack_into(form, content, at + offset, min(huge, 65535) if form == ">H" else huge)
    for tag, offset in ((b"stsz", 12), (b"stts", 8), (b"ctts", 8), (b"stco", 8), (b"stsc", 8)):
        if (at := content.find(tag)) >= 0 and rng.random() < 0.5:
            struct.pack_into(">I", content, at + offset, huge)
    for tag, offset in ((b"avih", 24), (b"avih", 40), (b"strh", 40)):
        if (at := content.find(tag)) >= 0:
            struct.pack_into("<I", content, at + offset, huge)
    if content[:4] == b"GIF8":
        struct.pack_into("<HH", content, 6, 65535, 65535)
    if content[8:12] == b"WEBP" and (at := content.find(b"VP8X")) >= 0:
        content[at + 12 : at + 18] = b"\xff" * 6
    if content[:4] == b"\x1a\x45\xdf\xa3" and (at := content.find(b"\xb0\x81")) >= 0:  # Matroska's PixelWidth, one byte long
        content[at + 2] = 255
    if content[:1] == b"\x47":  # a transport stream has no size in its header: its sequence parameters are overwritten
        at = content.find(b"\0\0\0\x01\x67")
        content[at + 8 : at + 16] = rng.bytes(8)


def endless_gif(rng: np.random.Generator) -> bytearray:
    """Loops for ever, has no end mark, and holds up to 30,000 frames of one pixel."""
    first = Image.new("P", (1, 1))
    first.putpalette([0, 0, 0, 255, 255, 255])
    with tempfile.TemporaryFile() as file:
        first.save(file, "GIF", save_all=True, append_images=[Image.new("P", (1, 1), 1)], loop=0, duration=10)
        file.seek(0)
        whole = file.read()
    frame = whole.index(b"\x21\xf9")
    return bytearray(whole[:frame] + whole[frame:-1] * int(rng.integers(100, 30000)))


def examine(path: Path, backend: str | None, limits: Limits) -> dict[str, Any]:
    """What became of a file: "error", or how its frames compare with the undamaged ones."""
    try:
        whole = open_media(path, backend=backend, limits=limits)
        if whole.is_video:
            found = probe(path, backend=backend, limits=limits)
            some = read_frames(path, [found.num_frames - 1, 0], backend=backend, limits=limits)
            if not np.array_equal(some.frames, whole.frames[[-1, 0]]) or found.num_frames != len(whole.frames):
                return {"outcome": "wrong", "cause": "frames read one by one differ from frames read together"}
    except MediaError as error:
        named = str(path) in str(error) and len(str(error)) > len(str(path)) + 10
        return {"outcome": "error" if named else "wrong", "cause": str(error).replace(str(path), "FILE")}
    if "endless" in path.name:
        return {"outcome": "exact"}
    read, ticks = np.array(numbers(whole.frames)), [0] if whole.timestamps_s is None else (whole.timestamps_s * 25).round()
    if whole.frames.shape[1:] == (72, 96, 3) and (read - read[0] == ticks).all():
        truth = np.stack([picture(number) for number in read]).astype(int)
        near = np.abs(truth - whole.frames).mean((1, 2, 3)).max() < 12
        return {"outcome": "exact" if near else "unnoticed", "cause": "right frames at their times, but pixels of some are altered"}
    return {"outcome": "unnoticed", "cause": f"{whole.frames.shape[1:]}: frames {read.tolist()} at ticks {list(map(int, ticks))}"}


def work(pipe: Any, backend: str | None, limits: Limits) -> None:
    if not limits.isolated:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (path := pipe.recv()) is not None:
        start = time.perf_counter()
        result = examine(path, backend, limits)
        pipe.send({**result, "seconds": round(time.perf_counter() - start, 3)})


class Worker:
    """A process that examines files; a new one after a crash or a hang."""

    def __init__(self, backend: str | None, limits: Limits) -> None:
        self.settings = (backend, limits)
        self.start()

    def start(self) -> None:
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=work, args=(other, *self.settings))
        self.process.start()
        other.close()

    def examine(self, path: Path) -> dict[str, Any]:
        self.pipe.send(path)
        try:
            if self.pipe.poll(3 * SECONDS + 30):
                return self.pipe.recv()
            outcome = {"outcome": "hang"}
        except EOFError:
            self.process.join()
            outcome = {"outcome": "crash", "cause": f"exit code {self.process.exitcode}"}
        self.process.kill()
        self.process.join()
        self.start()
        return outcome

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--backend", help="default: the best one")
    parser.add_argument("--isolated", action="store_true", help="decode in a child process")
    parser.add_argument("--keep", type=Path, help="folder for the files that crashed, hung or gave wrong frames")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    limits = Limits(LIMITS.seconds, LIMITS.frame_pixels, LIMITS.total_pixels, isolated=args.isolated)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    bad, unnoticed, causes, slowest = [], [], Counter(), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sources").mkdir()
        sources = write_sources(folder / "sources")
        worker = Worker(args.backend, limits)
        for source in list(sources):
            result = worker.examine(source)
            if result["outcome"] == "error" and args.backend:  # a container that this backend refuses
                sources.remove(source)
            elif result["outcome"] != "exact":
                raise SystemExit(f"{source.name} is not damaged, but: {result}")
        for number in range(args.first, args.first + args.count):
            kind, file, content = damaged(sources, number)
            path = folder / file
            path.write_bytes(content)
            result = worker.examine(path)
            outcomes[kind][result["outcome"]] += 1
            slowest = max(slowest, result.get("seconds", 0.0))
            if result["outcome"] in ("crash", "hang", "wrong"):
                bad.append({"number": number, "file": file, **result})
                print(json.dumps(bad[-1]), file=sys.stderr, flush=True)
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / file).write_bytes(content)
            elif result["outcome"] == "error":
                causes[re.sub(r"[0-9.]+", "N", result["cause"].split(": ", 1)[-1])[:60]] += 1
            elif result["outcome"] == "unnoticed":
                unnoticed.append({"number": number, "file": file, "cause": result["cause"]})
            path.unlink()
        worker.stop()
    total = sum(outcomes.values(), Counter())
    words = ["scripts/fuzz_media.py", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])]
    report = {
        "commit": source_commit(),
        "command": " ".join(words),
        "machine": machine(),
        "versions": {package: version(package) for package in ("av", "pillow", "numpy")},
        "files": args.count,
        "memory_cap_gib": None if args.isolated else MEMORY / 2**30,
        "time_limit_s": SECONDS,
        "slowest_s": slowest,
        "outcomes": dict(total),
        "by_kind": {kind: dict(counter) for kind, counter in outcomes.items()},
        "bad": bad,
        "unnoticed": unnoticed,
        "causes": dict(causes.most_common(25)),
    }
    if args.out:
        write_json(args.out, report)
    print(json.dumps({key: report[key] for key in ("files", "slowest_s", "outcomes", "by_kind", "bad")}, indent=1))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
