#!/usr/bin/env python
"""Seconds to read frames from video files, by backend, and from the cache: prints JSON, and writes it with --out.

COMMAND  OMP_NUM_THREADS=1 python scripts/bench_decode.py VIDEO... --out docs/results/bench/decode.json
EXPECT   pyav fastest; a cache hit well below a twentieth of decoding

Every backend runs in this process, one thread, and opens and indexes the file anew each time. "sized" scales frames to 336 x 448 pixels.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.video.backends import BACKENDS, trouble
from data_pipelines.video.cache import FrameCache
from data_pipelines.video.decode import probe
from data_pipelines.video.records import Deadline, Limits
from mmrl.metrics import machine, source_commit, write_json

LIMITS = Limits()
SIZE = (336, 448)
FEW = 16


def milliseconds(read: Callable[[], object], rounds: int) -> dict[str, float]:
    """CPU time of the process, over rounds."""
    seen = []
    for _ in range(rounds):
        start = time.process_time()
        read()
        seen.append(1000 * (time.process_time() - start))
    return {"min": round(min(seen), 2), "median": round(statistics.median(seen), 2), "max": round(max(seen), 2)}


def decode(name: str, path: Path, wanted: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Opens, indexes where that is how the backend finds frames, and reads; torchcodec's scan for times is left out."""
    backend, deadline = BACKENDS[name], Deadline(path, LIMITS)
    scan = SCANS[path] if name == "torchcodec" else backend.scan(path, LIMITS, deadline)
    return backend.read(path, scan, wanted, size, LIMITS, deadline)


SCANS: dict[Path, Any] = {}


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    found = probe(path)
    SCANS[path] = BACKENDS["pyav"].scan(path, LIMITS, Deadline(path, LIMITS))
    points = []
    for count in (FEW, found.num_frames):
        wanted = np.unique(np.linspace(0, found.num_frames - 1, count).round().astype(np.int64))
        for size in (None, SIZE):
            times = {
                name: milliseconds(lambda name=name, wanted=wanted, size=size: decode(name, path, wanted, size), rounds)
                for name in BACKENDS
                if not trouble(name)
            }
            with tempfile.TemporaryDirectory() as folder:
                cache = FrameCache(folder)
                cache.read(path, wanted, size)
                first = milliseconds(lambda folder=folder, w=wanted, s=size: FrameCache(folder).read(path, w, s).frames.max(), 1)
                hit = milliseconds(lambda cache=cache, w=wanted, s=size: cache.read(path, w, s).frames.max(), rounds)
            times |= {"cache_first_in_process": first, "cache": hit}
            shape = [found.height, found.width]
            points.append({"file": path.name, "of": found.num_frames, "stored": shape, "read": len(wanted), "sized": size, "ms": times})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    versions = {}
    for package in ("av", "decord", "torchcodec", "pillow", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    report = {
        "commit": source_commit(),
        "command": " ".join(["scripts/bench_decode.py", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])]),
        "machine": machine(),
        "versions": versions,
        "clock": "CPU time of the process, one thread; a cache hit includes a look at every pixel",
        "points": [point for path in args.videos for point in measure(path, args.rounds)],
    }
    if args.out:
        write_json(args.out, report)
    for point in report["points"]:
        print(json.dumps({**point, "ms": {name: times["median"] for name, times in point["ms"].items()}}))


if __name__ == "__main__":
    main()
