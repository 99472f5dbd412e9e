"""`mmrl bench media`: from a video file to pixel_values, by qwen-vl-utils with the model's own processor, and by mmrl, in turn."""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

from data_pipelines.video import backends
from data_pipelines.video.budget import QwenPixels
from data_pipelines.video.cache import FrameCache
from data_pipelines.video.decode import probe, read_frames
from data_pipelines.video.sampling import QwenFrames
from mmrl.bench.report import write_bench
from mmrl.errors import RecipeError
from mmrl.models.patchify import VisionInput
from mmrl.types import Media

FAMILIES: dict[str, tuple[Any, int]] = {"qwen2_5_vl": (Qwen2VLVideoProcessor, 14), "qwen3_vl": (Qwen3VLVideoProcessor, 16)}
"""Video processor and patch size."""
READERS = ("decord", "torchcodec")
VERSIONS = ("torchvision", "qwen-vl-utils", "av", "decord", "torchcodec")


@dataclass(frozen=True)
class Budget:
    """What of a video is read: qwen-vl-utils' own words."""

    family: str
    fps: float
    max_frames: int
    max_pixels: int | None

    def indices(self, num_frames: int, fps: float) -> np.ndarray:
        return QwenFrames(fps=self.fps, max_frames=self.max_frames)(num_frames, fps)

    def size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        return QwenPixels(2 * FAMILIES[self.family][1], max_pixels=self.max_pixels).video_size(height, width, num_frames)

    def request(self, file: Path) -> dict[str, Any]:
        """For qwen-vl-utils."""
        asked = {"video": str(file), "fps": self.fps, "max_frames": self.max_frames}
        return asked if self.max_pixels is None else asked | {"max_pixels": self.max_pixels}


def command(
    files: list[Path],
    family: list[str],
    fps: list[float],
    max_frames: list[int],
    max_pixels: list[int],
    rounds: int,
    json_file: Path | None,
) -> None:
    """What the command line calls. `max_pixels` 0 = qwen-vl-utils' own budget."""
    unknown = [name for name in family if name not in FAMILIES]
    if unknown:
        raise RecipeError(f"--family: got {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise RecipeError(f"{missing[0]}: no such file; give the paths of videos")
    torch.set_num_threads(1)
    points = []
    for file in files:
        seen = set()
        for budget in [Budget(a, b, c, d or None) for a, b, c, d in product(family, fps, max_frames, max_pixels)]:
            info = probe(file)
            indices = budget.indices(info.num_frames, info.fps)
            size = budget.size(info.height, info.width, len(indices))
            if (budget.family, indices.tobytes(), size) in seen:  # a short video: this budget holds no more than the one before
                continue
            seen.add((budget.family, indices.tobytes(), size))
            points.append(run(file, budget, rounds))
            point = points[-1]
            print(
                f"{point['file']} {budget.family} {point['frames']} frames of {point['size'][1]} x {point['size'][0]}: "
                f"{point['speedup']} cached {point['speedup_cached']} pixels {point['mean_abs_pixel_diff']}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    write_bench(json_file, points, VERSIONS)


def run(file: Path, budget: Budget, rounds: int) -> dict[str, Any]:
    """Medians of `rounds` rounds on one file. First both sides must choose the same frames and the same size."""
    make, patch_size = FAMILIES[budget.family]
    processor = make(do_resize=False)  # the size is qwen-vl-utils' choice, on both sides
    pixels_of = VisionInput.of(processor)

    def ours(read: Callable[..., Media], remembered: bool) -> tuple[Media, np.ndarray]:
        if not remembered:
            backends._kept.cache_clear()  # each file is new to a first epoch
        info = probe(file)
        indices = budget.indices(info.num_frames, info.fps)
        media = read(file, indices, budget.size(info.height, info.width, len(indices)))
        return media, pixels_of(media.frames)[0]

    def theirs(reader: str) -> tuple[torch.Tensor, Any, torch.Tensor]:
        with _one_thread(reader) as fetch_video:
            video, metadata = fetch_video(budget.request(file), image_patch_size=patch_size, return_video_metadata=True)
            made = processor(videos=[video], do_sample_frames=False, return_tensors="pt")
        return video, metadata, made["pixel_values_videos"]

    info = probe(file)
    indices = budget.indices(info.num_frames, info.fps)
    media, made = ours(read_frames, remembered=False)
    apart, failed = {}, {}
    for reader in READERS:
        try:
            video, metadata, expected = theirs(reader)
        except Exception as error:  # whatever a reader raises: it is then not compared with, and the results say so
            failed[reader] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            continue
        asked = np.asarray(metadata["frames_indices"])
        if asked.tolist() != indices.tolist():
            failed[reader] = (
                f"chooses other frames: {len(asked)} of {metadata['total_num_frames']}, not {len(indices)} of {info.num_frames}"
            )
        elif tuple(video.shape[2:]) != media.frames.shape[1:3] or expected.shape != made.shape:
            ours_is, theirs_is = (*media.frames.shape[1:3], *made.shape), (*video.shape[2:], *expected.shape)
            failed[reader] = f"chooses another size, or makes other rows of it: {theirs_is}, not {ours_is}"
        else:
            apart[reader] = _mean_abs_diff(video, media.frames) / 255
        del video, expected
    if not apart:
        raise RecipeError(f"{file}: nothing to compare with: {failed}")
    del media, made
    with tempfile.TemporaryDirectory() as folder:
        cache = FrameCache(folder)
        ours(cache.read, remembered=False)
        arms: dict[str, Callable[[], object]] = {reader: functools.partial(theirs, reader) for reader in apart}
        arms |= {"mmrl": lambda: ours(read_frames, remembered=False), "mmrl_cached": lambda: ours(cache.read, remembered=True)}
        costs: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, arm in arms.items():
                costs[name].append(_cpu_seconds(arm))
    median = {name: statistics.median(of) for name, of in costs.items()}
    best = min(apart, key=lambda reader: median[reader])
    return {
        "file": file.name, "seconds_of_video": round(info.duration_s, 2), "frames_of_video": info.num_frames,
        "source_size": [info.height, info.width], "family": budget.family, "fps": budget.fps, "max_frames": budget.max_frames,
        "max_pixels": budget.max_pixels, "frames": len(indices), "size": list(budget.size(info.height, info.width, len(indices))),
        "rounds": rounds, "fastest_reader": best,
        "speedup": round(median[best] / median["mmrl"], 2),
        "speedup_cached": round(median[best] / median["mmrl_cached"], 1),
        "speedup_over": {reader: round(median[reader] / median["mmrl"], 2) for reader in apart},
        "mean_abs_pixel_diff": {reader: round(value, 5) for reader, value in apart.items()},
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "spread": {name: [round(min(of), 4), round(max(of), 4)] for name, of in costs.items()},
        "not_compared": failed,
    }  # fmt: skip


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads of this process: other work on the machine does not count, a second thread does."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _mean_abs_diff(video: torch.Tensor, frames: np.ndarray) -> float:
    """Of float [F, 3, H, W] and uint8 [F, H, W, 3], levels."""
    total = sum(float(np.abs(one.permute(1, 2, 0).numpy() - other).sum(dtype=np.float64)) for one, other in zip(video, frames, strict=True))
    return total / frames.size


@contextmanager
def _one_thread(reader: str) -> Iterator[Callable[..., Any]]:
    """qwen-vl-utils' `fetch_video` with that reader and one decoding thread, as mmrl's own decoder has. By itself decord takes a thread for
    each processor and torchcodec eight."""
    from qwen_vl_utils import vision_process

    os.environ["TORCHCODEC_NUM_THREADS"] = "1"
    chosen, vision_process.get_video_reader_backend = vision_process.get_video_reader_backend, lambda: reader
    try:
        if reader != "decord":
            yield vision_process.fetch_video
            return
        import decord

        plain, decord.VideoReader = decord.VideoReader, functools.partial(decord.VideoReader, num_threads=1)
        try:
            yield vision_process.fetch_video
        finally:
            decord.VideoReader = plain
    finally:
        vision_process.get_video_reader_backend = chosen
