"""Frames and sizes against the tools themselves: qwen-vl-utils and the video processors of transformers, on keyed random cases.

No pixel is computed: videos are tensors on torch's meta device, and the decoder behind qwen-vl-utils reads a header only.
"""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as image_smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from data_pipelines.video.budget import QwenPixels
from data_pipelines.video.sampling import QwenFrames
from mmrl.seeding import stream

CASES = 300
RATES = (8.0, 15.0, 23.976023976023978, 24.0, 25.0, 29.97002997002997, 30.0, 50.0, 59.94005994005994, 60.0)


class Header:
    """Stands in for decord's reader: what a file's header says, and a record of the frames asked for."""

    num_frames = 0
    fps = 0.0
    asked: list[int]

    def __init__(self, path: str) -> None:
        pass

    def __len__(self) -> int:
        return Header.num_frames

    def get_avg_fps(self) -> float:
        return Header.fps

    def get_batch(self, indices: list[int]) -> "Header":
        Header.asked = indices
        return self

    def asnumpy(self) -> np.ndarray:
        return np.zeros((len(Header.asked), 1, 1, 3), np.uint8)


@pytest.fixture
def decord(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("decord")
    module.VideoReader = Header  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", module)


def video_case(name: str, case: int) -> tuple[np.random.Generator, int, float, dict[str, float]]:
    """A keyed length (log-uniform, 1 frame to 80 minutes at 25 per second), a rate, and what is asked of it."""
    rng = stream("parity", name, case)
    num_frames = int(np.exp(rng.uniform(0, np.log(120_000))))
    fps = float(rng.choice(RATES))
    asked: dict[str, float] = {}
    if rng.random() < 0.3:
        asked["nframes"] = int(rng.integers(1, 70))
    else:
        asked["fps"] = float(rng.choice([0.2, 0.5, 1.0, 2.0, 3.7, 8.0]))
        if rng.random() < 0.5:
            asked["min_frames"] = int(rng.integers(1, 12))
            asked["max_frames"] = asked["min_frames"] + int(rng.integers(0, 800))
    return rng, num_frames, fps, asked


def frames_or_none(sampler: QwenFrames, num_frames: int, fps: float) -> list[int] | None:
    try:
        return sampler(num_frames, fps).tolist()
    except ValueError:
        return None


@pytest.mark.usefixtures("decord")
def test_frames_of_qwen_vl_utils():
    refused = 0
    for case in range(CASES):
        rng, num_frames, fps, asked = video_case("utils", case)
        if rng.random() < 0.4:
            duration = num_frames / fps
            asked["video_start"] = float(rng.uniform(-1, duration))
            if rng.random() < 0.7:
                asked["video_end"] = float(rng.uniform(asked["video_start"], duration + 1))
        Header.num_frames, Header.fps = num_frames, fps
        try:
            vision_process._read_video_decord({"video": "x.mp4", **asked})
            theirs = Header.asked
        except ValueError:
            theirs = None
        assert frames_or_none(QwenFrames(**asked), num_frames, fps) == theirs, (num_frames, fps, asked)
        refused += theirs is None
    assert 0 < refused < CASES / 2


def test_frames_of_the_qwen2_5_vl_processor():
    processor, past_the_end, refused = Qwen2VLVideoProcessor(), 0, 0
    for case in range(CASES):
        _, num_frames, fps, asked = video_case("qwen2_5_vl", case)
        ours = frames_or_none(QwenFrames(rule="qwen2_5_vl", **asked), num_frames, fps)
        given = {("num_frames" if key == "nframes" else key): value for key, value in asked.items()}
        try:
            theirs = processor.sample_frames(VideoMetadata(total_num_frames=num_frames, fps=fps), **given).tolist()
        except (ValueError, ZeroDivisionError):
            theirs = None
        if theirs and theirs[-1] == num_frames:  # no frame has that index: reading the video would fail
            past_the_end += 1
            theirs = theirs[:-1]
        assert ours == theirs, (num_frames, fps, asked)
        refused += theirs is None
    assert past_the_end > 0
    assert 0 < refused < CASES / 2


def test_frames_of_the_qwen3_vl_processor():
    for case in range(CASES):
        _, num_frames, fps, asked = video_case("qwen3_vl", case)
        processor = Qwen3VLVideoProcessor()
        ours = QwenFrames(rule="qwen3_vl", **asked)(num_frames, fps).tolist()
        if "nframes" in asked:
            theirs = processor.sample_frames(VideoMetadata(total_num_frames=num_frames, fps=fps), num_frames=asked["nframes"])
        else:
            processor.min_frames, processor.max_frames = asked.get("min_frames", 4), asked.get("max_frames", 768)
            theirs = processor.sample_frames(VideoMetadata(total_num_frames=num_frames, fps=fps), fps=asked["fps"])
        assert ours == theirs.tolist(), (num_frames, fps, asked)


def size_case(name: str, case: int, factor: int) -> tuple[np.random.Generator, int, int, int, dict[str, int]]:
    """A keyed height and width (8 to 4000 pixels), a number of frames, and budgets."""
    rng = stream("parity", "size", name, case, factor)
    height, width = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(4000), 2)))
    budget: dict[str, int] = {}
    token = factor**2
    if rng.random() < 0.6:
        budget["min_pixels"] = int(rng.integers(1, 256) * token)
    if rng.random() < 0.6:
        budget["max_pixels"] = budget.get("min_pixels", 128 * token) + int(rng.integers(0, 2000) * token)
    if rng.random() < 0.6:
        budget["total_pixels"] = int(rng.integers(256, 40_000) * token)
    return rng, height, width, 2 * int(rng.integers(1, 385)), budget


def meta_video(num_frames: int, height: int, width: int) -> torch.Tensor:
    return torch.empty((num_frames, 3, height, width), dtype=torch.uint8, device="meta")


def size_or_none(size, *arguments: int) -> tuple[int, int] | None:
    try:
        return size(*arguments)
    except ValueError:
        return None


@pytest.mark.parametrize("factor", [28, 32])
def test_video_sizes_of_qwen_vl_utils(monkeypatch, factor):
    refused = 0
    for case in range(CASES // 2):
        _, height, width, num_frames, budget = size_case("utils", case, factor)
        video = meta_video(num_frames, height, width)
        monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "meta", lambda ele, video=video: (video, {}, 2.0))
        monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "meta")
        try:
            theirs = tuple(vision_process.fetch_video({"video": "x.mp4", **budget}, image_patch_size=factor // 2).shape[-2:])
        except (ValueError, RuntimeError):  # too long a shape; a side of 0
            theirs = None
        ours = size_or_none(QwenPixels(factor, **budget).video_size, height, width, num_frames)
        assert ours == theirs, (height, width, num_frames, budget)
        refused += theirs is None
    assert refused < CASES / 10


@pytest.mark.parametrize("factor", [28, 32])
def test_image_sizes_of_qwen_vl_utils(factor):
    for case in range(CASES // 3):
        rng, height, width, _, budget = size_case("image", case, factor)
        height, width = min(height, 600), min(width, 600)
        budget = {key: value // 8 + 1 for key, value in budget.items() if key != "total_pixels"}
        budget.setdefault("max_pixels", budget.get("min_pixels", 4 * factor**2) + int(rng.integers(0, 300)) * factor**2)
        try:
            picture = vision_process.fetch_image({"image": Image.new("RGB", (width, height)), **budget}, image_patch_size=factor // 2)
            theirs = (picture.height, picture.width)
        except ValueError:
            theirs = None
        assert size_or_none(QwenPixels(factor, **budget).image_size, height, width) == theirs, (height, width, budget)


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("rule", ["qwen2_5_vl", "qwen3_vl"])
def test_image_sizes_of_the_processors(rule, factor):
    for case in range(CASES // 2):
        _, height, width, _, budget = size_case("processor image", case, factor)
        low, high = budget.get("min_pixels"), budget.get("max_pixels", 2500 * factor**2)
        given = {"min_pixels": low} if low else {}
        try:
            theirs = image_smart_resize(height, width, factor, max_pixels=high, **given)
        except ValueError:
            theirs = None
        ours = size_or_none(QwenPixels(factor, rule, max_pixels=high, **given).image_size, height, width)
        assert ours == theirs, (height, width, given, high)


@pytest.mark.parametrize("capped", [False, True])
def test_video_sizes_of_the_qwen2_5_vl_processor(capped):
    processor = Qwen2VLVideoProcessor()
    for case in range(CASES // 2):
        rng, height, width, num_frames, budget = size_case("qwen2_5_vl", case, 28)
        size = SizeDict(shortest_edge=budget.get("min_pixels", 128 * 28**2), longest_edge=budget.get("max_pixels", 768 * 28**2))
        processor.max_video_tokens = int(rng.integers(500, 128_000))
        total = int(processor.max_video_tokens * 28 * 28 * 0.9) if capped else None
        pixels = QwenPixels(28, "qwen2_5_vl", budget.get("min_pixels"), budget.get("max_pixels"), total)
        theirs = processor_size(processor, size, 28, capped, height, width, num_frames)
        assert size_or_none(pixels.video_size, height, width, num_frames) == theirs, (height, width, num_frames, budget, total)


@pytest.mark.parametrize("capped", [False, True])
def test_video_sizes_of_the_qwen3_vl_processor(capped):
    processor = Qwen3VLVideoProcessor()
    for case in range(CASES // 2):
        rng, height, width, num_frames, budget = size_case("qwen3_vl", case, 32)
        num_frames -= int(rng.integers(0, 2))  # its rule gives odd numbers of frames too
        if rng.random() < 0.5:  # few frames and a budget of about what they have: there it counts how an odd number is rounded
            num_frames = int(rng.integers(1, 8))
            budget = {"min_pixels": 4096, "total_pixels": max(int(num_frames * height * width * rng.uniform(0.8, 1.4)), 4096)}
        low, total = budget.get("min_pixels", 128 * 32**2), budget.get("total_pixels", 768 * 32**2)
        size = SizeDict(shortest_edge=low, longest_edge=total)
        cap = 768 * 32**2 if capped else None
        pixels = QwenPixels(32, "qwen3_vl", budget.get("min_pixels"), cap, budget.get("total_pixels"))
        theirs = processor_size(processor, size, 32, capped, height, width, num_frames)
        assert size_or_none(pixels.video_size, height, width, num_frames) == theirs, (height, width, num_frames, budget)


def processor_size(processor, size, factor, capped, height, width, num_frames) -> tuple[int, ...] | None:
    try:
        out = processor.resize(
            meta_video(num_frames, height, width)[None],
            size=size,
            resample=PILImageResampling.BICUBIC,
            factor=factor,
            temporal_factor=2,
            cap_pixels_per_frame=capped,
        )
    except ValueError:
        return None
    return tuple(out.shape[-2:])


def test_the_defaults_are_the_tools_own():
    """Where nothing is said, each rule has the budget of the class that it follows."""
    for num_frames in (4, 64, 768):
        assert QwenPixels(28, "qwen2_5_vl").video_size(720, 1280, num_frames) == processor_size(
            Qwen2VLVideoProcessor(), SizeDict(**Qwen2VLVideoProcessor.size), 28, False, 720, 1280, num_frames
        )
        assert QwenPixels(32, "qwen3_vl").video_size(720, 1280, num_frames) == processor_size(
            Qwen3VLVideoProcessor(), SizeDict(**Qwen3VLVideoProcessor.size), 32, False, 720, 1280, num_frames
        )
    assert QwenPixels(28, "qwen2_5_vl").image_size(3000, 4000) == image_smart_resize(3000, 4000)
    defaults = QwenFrames()
    assert (defaults.fps, defaults.min_frames, defaults.max_frames, defaults.temporal_patch) == (
        vision_process.FPS,
        vision_process.FPS_MIN_FRAMES,
        vision_process.FPS_MAX_FRAMES,
        vision_process.FRAME_FACTOR,
    )
    assert math.isclose(QwenPixels(28).frame_pixels(768)[1], 128000 * 784 * 0.9 / 768 * 2)
