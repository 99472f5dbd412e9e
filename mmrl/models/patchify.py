"""Frames to what the vision tower reads, bit for bit as the model's own processor makes it, in one pass.

The processor takes a clip through memory four times in float32: cast, normalise, permute, join. Here one row of patches at a time is
normalised in the CPU's cache and written to its place in the output, which is the only float32 array of the clip's size.

A size is changed once. Frames that come in the size that the processor would choose, as `read_frames(path, indices, size)` decodes them,
are not resized again; any others go through the processor's own `resize`, so their values are its own too.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.image_utils import SizeDict

from data_pipelines.compiled import compiled
from data_pipelines.perturb.pixels import still
from mmrl.models.memory import Memory

KNOWN = (Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor)
"""Processors that do what `VisionInput` does. Not their subclasses, which may do otherwise."""
PIXELS = Memory(2**30)
_log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True, eq=False)
class Patchify:
    """uint8 [F, H, W, 3] to float32 rows [N, 3 * temporal_patch_size * patch_size ** 2], one a patch.

    Rows come in the order of the vision tower: groups of `temporal_patch_size` frames, in a group blocks of `merge_size` x `merge_size`
    patches from left to right and down, in a block likewise. A row is channel by channel, frame by frame, line by line. A last group that
    is not full repeats the last frame.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: np.ndarray
    """float32 [3] levels, 0 to 255: a value is (level - mean) / std, each rounded, as the processor computes it."""
    std: np.ndarray

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """The rows, and the grid: frame groups, patches down, patches across. ValueError for sides that are no multiple of
        merge_size * patch_size."""
        count, height, width, _ = frames.shape
        patch, merge, group = self.patch_size, self.merge_size, self.temporal_patch_size
        block = patch * merge
        if height % block or width % block:
            raise ValueError(f"height and width must be multiples of {block}; got {height} x {width}")
        groups, down, across = -(-count // group), height // block, width // block
        shape = (groups, down, across, merge, merge, 3, group, patch, patch)
        out = PIXELS.empty(math.prod(shape)).reshape(shape)
        _patchify(still(frames), self.mean, self.std, out if patch % 2 else out.view(np.uint64))  # two values are moved as one
        return out.reshape(-1, 3 * group * patch**2), (groups, height // patch, width // patch)


@compiled
def _patchify(frames: np.ndarray, mean: np.ndarray, std: np.ndarray, out: np.ndarray) -> None:
    count, height, width = frames.shape[:3]
    groups, merge, group, patch, run = out.shape[0], out.shape[3], out.shape[6], out.shape[7], out.shape[8]
    planes = np.empty((3, group, patch * width), np.float32)  # a row of patches
    values = planes.reshape(-1).view(out.dtype)
    mean_red, mean_green, mean_blue = mean[0], mean[1], mean[2]
    std_red, std_green, std_blue = std[0], std[1], std[2]
    for n in range(groups):
        for row in range(height // patch):
            for t in range(group):
                levels = frames[min(n * group + t, count - 1), row * patch : (row + 1) * patch].reshape(-1)
                red, green, blue = planes[0, t], planes[1, t], planes[2, t]
                for i in range(patch * width):
                    red[i] = (np.float32(levels[3 * i]) - mean_red) / std_red
                    green[i] = (np.float32(levels[3 * i + 1]) - mean_green) / std_green
                    blue[i] = (np.float32(levels[3 * i + 2]) - mean_blue) / std_blue
            across = width // patch
            for column in range(across):
                target = out[n, row // merge, column // merge, row % merge, column % merge].reshape(-1)
                for line in range(3 * group * patch):
                    into, start = np.uint64(line * run), np.uint64((line * across + column) * run)
                    for x in range(run):
                        target[into + np.uint64(x)] = values[start + np.uint64(x)]


@dataclass(frozen=True, eq=False)
class VisionInput:
    """One picture or clip to `pixel_values` and its grid, as an image or video processor of transformers makes them."""

    processor: Any
    patchify: Patchify | None
    """None: only the processor itself knows how."""

    @classmethod
    def of(cls, processor: Any) -> VisionInput:
        """Where mmrl's way would give other values than the processor's, the processor is called, and the log says so once."""
        patchify, reason = _patchify_of(processor)
        if reason and reason not in _told:
            _told.add(reason)
            _log.warning("pictures and clips go through the model's processor, which is slower: %s", reason)
        return cls(processor, patchify)

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, D] and grid int64 [1, 3] of uint8 [F, H, W, 3]. ValueError for what the processor refuses."""
        if self.patchify is None:
            return _by_processor(self.processor, frames)
        rows, grid = self.patchify(self._resized(frames))
        return rows, np.array([grid])

    def _resized(self, frames: np.ndarray) -> np.ndarray:
        """In the size that the processor chooses: the very same frames where they have it."""
        known = self.processor
        if not known.do_resize:
            return frames
        pixels = channels_last(frames)
        resized = known.resize(
            pixels[None] if _is_video(known) else pixels,
            size=SizeDict(**dict(known.size)),
            resample=known.resample,
            factor=known.patch_size * known.merge_size,
            temporal_factor=known.temporal_patch_size,
            cap_pixels_per_frame=bool(getattr(known, "cap_pixels_per_frame", False)),
        )
        return resized.reshape(-1, *resized.shape[-3:]).permute(0, 2, 3, 1).numpy()


def channels_last(frames: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] as [F, 3, H, W] over the same memory, the form that torch's kernels are fast for. Not to be written to: a
    read-only array (from the frame cache) gives no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)


def _is_video(processor: Any) -> bool:
    return "pixel_values_videos" in processor.model_input_names


def _by_processor(processor: Any, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if _is_video(processor):
        out = processor(videos=[channels_last(frames)], do_sample_frames=False, return_tensors="pt")
        return out["pixel_values_videos"].numpy(), out["video_grid_thw"].numpy()
    out = processor(images=[channels_last(frames)[0]], return_tensors="pt")
    return out["pixel_values"].numpy(), out["image_grid_thw"].numpy()


def _patchify_of(processor: Any) -> tuple[Patchify | None, str | None]:
    """What gives the same bits as the processor, or why nothing does."""
    name = type(processor).__name__
    if type(processor) not in KNOWN:
        return None, f"{name} is not one of {', '.join(known.__name__ for known in KNOWN)}"
    if not (processor.do_rescale and processor.do_normalize):
        return None, f"its {name} does not rescale and normalise"
    levels = 1.0 / processor.rescale_factor
    mean, std = ((torch.tensor(value) * levels).numpy() for value in (processor.image_mean, processor.image_std))
    return Patchify(processor.patch_size, processor.merge_size, processor.temporal_patch_size, mean, std), None
