"""Rotary positions of a prompt, computed here and passed to every forward: engine, trainer and tests share one rule.

Qwen2.5-VL's multimodal rotary embedding (arXiv:2502.13923, section 2.1.2) gives each token three numbers (time, height, width). Text
counts up by one on all three; a picture or clip lays its merged patches on a grid from where the text stopped; the text after it starts
one past the largest number on any axis. transformers 5 departs from that last rule after long videos; vLLM and the original code follow
it, and so do we.

Qwen3-VL (arXiv:2511.21631) has the same rule and another prompt: a clip is a row of pictures, one of each frame pair, with its time
written before it. Every pair is a grid of its own, with text between, so time is read and not counted in positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class VisionLayout:
    """What of a model's configuration decides positions."""

    image_token_id: int
    video_token_id: int
    merge_size: int
    """Patches per token along height and along width."""
    tokens_per_second: float | None
    """Time positions per second of video; None = one per frame pair, however long it lasts (Qwen2-VL)."""
    pair_marks: tuple[int, int] | None = None
    """Ids of the tokens before and after each frame pair of a clip, which makes every pair a grid of its own (Qwen3-VL); None = the whole
    clip is one grid."""

    @classmethod
    def of(cls, config: Any) -> "VisionLayout":
        """From a model's transformers configuration."""
        return cls(
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
            merge_size=config.vision_config.spatial_merge_size,
            tokens_per_second=getattr(config.vision_config, "tokens_per_second", None),
            pair_marks=(config.vision_start_token_id, config.vision_end_token_id) if config.model_type == "qwen3_vl" else None,
        )

    def is_vision(self, ids: np.ndarray) -> np.ndarray:
        """bool, shape of `ids`: True = the place of a vision token."""
        return (ids == self.image_token_id) | (ids == self.video_token_id)


def mrope_positions(
    ids: np.ndarray,
    layout: VisionLayout,
    image_grid_thw: Sequence[Sequence[int]] | np.ndarray = (),
    video_grid_thw: Sequence[Sequence[int]] | np.ndarray = (),
    second_per_grid_ts: Sequence[float] | np.ndarray = (),
) -> np.ndarray:
    """int64 [3, P] positions (time, height, width) of the expanded prompt `ids` int64 [P].

    Grids are in patches, (frames / temporal patch, height, width), in the order of the prompt; `second_per_grid_ts` has one number a
    video, and none where frame pairs are grids of their own. Raises ValueError if the placeholders and the grids do not match.
    """
    if layout.pair_marks is not None:
        video_grid_thw = [(1, height, width) for pairs, height, width in video_grid_thw for _ in range(pairs)]
        second_per_grid_ts = [0.0] * len(video_grid_thw)
    if len(video_grid_thw) != len(second_per_grid_ts):
        raise ValueError(f"{len(video_grid_thw)} video grids, but second_per_grid_ts has {len(second_per_grid_ts)}")
    images, videos = iter(image_grid_thw), iter(zip(video_grid_thw, second_per_grid_ts, strict=True))
    positions = np.empty((3, len(ids)), np.int64)
    start, at = 0, 0
    for begin, end in _runs(layout.is_vision(ids)):
        positions[:, at:begin] = start + np.arange(begin - at)
        start += begin - at
        at = begin
        while at < end:
            is_image = ids[at] == layout.image_token_id
            grid, seconds = (next(images, None), 0.0) if is_image else next(videos, (None, 0.0))
            if grid is None:
                raise ValueError(f"token {at}: a {'picture' if is_image else 'video'} placeholder without a grid")
            block = _grid_positions(grid, layout, seconds)
            if at + block.shape[1] > end:
                raise ValueError(f"token {at}: grid {list(grid)} needs {block.shape[1]} placeholders, the prompt has {end - at}")
            positions[:, at : at + block.shape[1]] = start + block
            start += int(block.max()) + 1
            at += block.shape[1]
    positions[:, at:] = start + np.arange(len(ids) - at)
    left = sum(1 for _ in images) + sum(1 for _ in videos)
    if left:
        raise ValueError(f"{left} grids have no placeholder in the prompt")
    return positions


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _grid_positions(grid: Sequence[int], layout: VisionLayout, second_per_grid: float) -> np.ndarray:
    """int64 [3, tokens] from 0. Time advances by whole positions: floor(frame * positions per second * seconds per grid).

    In float32, as transformers does it: a step of 1.9999999999 positions, from clips whose times are not exact in binary, is 2.
    """
    frames, height, width = int(grid[0]), int(grid[1]) // layout.merge_size, int(grid[2]) // layout.merge_size
    step = np.float32(1) if layout.tokens_per_second is None else np.float32(layout.tokens_per_second) * np.float32(second_per_grid)
    time = (np.arange(frames, dtype=np.float32) * step).astype(np.int64)
    axes = np.meshgrid(time, np.arange(height), np.arange(width), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes])
