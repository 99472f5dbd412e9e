"""Hiding patches: at random, or those that matter most."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_pipelines.perturb.checks import share
from mmrl.types import Media


@dataclass(frozen=True)
class PatchMask:
    """Fills each cell of a square grid with one colour, independently with probability `ratio` (PAPO, arXiv:2507.06448).

    The grid starts at the top left; its last row and column may be partial. Pictures and videos.
    """

    ratio: float = 0.6
    """Probability that a cell is hidden, in [0, 1]."""
    patch: int = 14
    """Side of a cell in pixels of the frames as they are, before the model's own resizing."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB, 0 to 255."""
    per_frame: bool = False
    """False: one draw for all frames of a video, so that nothing hidden shows in the next frame. True: a draw for each."""
    strength: float = 1.0
    """Factor on the ratio, in [0, 1]."""

    def __post_init__(self) -> None:
        share("ratio", self.ratio)
        share("strength", self.strength)
        check_fill(self.fill)
        if self.patch < 1:
            raise ValueError(f"patch must be 1 or more pixels; got {self.patch}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        count, height, width, _ = media.frames.shape
        rows, columns = np.arange(height) // self.patch, np.arange(width) // self.patch
        cells = rng.random((count if self.per_frame else 1, rows[-1] + 1, columns[-1] + 1)) < self.ratio * self.strength
        return hidden(media, cells, rows, columns, self.fill) if cells.any() else media


@dataclass(frozen=True, eq=False)
class PatchScoreMask:
    """Fills the floor(ratio * N) cells of highest score with one colour (PAPO's semantic-aware masking, arXiv:2507.06448).

    PAPO scores the patches of DINOv2: attention received from all patches, mean over the heads and over layers 6 to 9; any model's scores
    will do. Of equal scores the earlier cell is hidden, row by row. No randomness. Pictures and videos.
    """

    scores: np.ndarray
    """Float [rows, columns], for all frames, or [F, rows, columns]; finite. The grid is laid evenly over the picture."""
    ratio: float = 0.6
    """Share of the cells that is hidden, in [0, 1]."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB, 0 to 255."""

    def __post_init__(self) -> None:
        share("ratio", self.ratio)
        check_fill(self.fill)
        if self.scores.ndim not in (2, 3) or not self.scores.size or not np.isfinite(self.scores).all():
            raise ValueError(f"scores must be finite, [rows, columns] or [F, rows, columns]; got shape {self.scores.shape}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        scores = self.scores if self.scores.ndim == 3 else self.scores[None]
        grids, down, across = scores.shape
        count, height, width, _ = media.frames.shape
        if grids not in (1, count) or down > height or across > width:
            raise ValueError(f"scores of shape {self.scores.shape} do not fit {count} frames of {height} x {width} pixels")
        worst_first = np.argsort(-scores.reshape(grids, -1), axis=1, kind="stable")
        cells = np.zeros((grids, down * across), bool)
        np.put_along_axis(cells, worst_first[:, : int(self.ratio * down * across)], True, axis=1)
        if not cells.any():
            return media
        rows, columns = np.arange(height) * down // height, np.arange(width) * across // width
        return hidden(media, cells.reshape(scores.shape), rows, columns, self.fill)


def check_fill(fill: tuple[int, int, int]) -> None:
    if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
        raise ValueError(f"fill must be three numbers of 0 to 255; got {fill}")


def hidden(media: Media, cells: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: tuple[int, int, int]) -> Media:
    """Media with the `cells` (bool [1 or F, rows, columns]) filled; pixel (y, x) lies in cell (rows[y], columns[x])."""
    count, height, width, _ = media.frames.shape
    kept = np.repeat(np.where(cells, 0, 255).astype(np.uint8)[:, :, columns], 3, axis=2)  # [1 or F, rows, W * 3]
    painted = ~kept & np.tile(np.array(fill, np.uint8), width)
    source, target = media.frames.reshape(count, height, -1), np.empty((count, height, width * 3), np.uint8)
    edges = np.flatnonzero(np.diff(rows, prepend=-1, append=rows[-1] + 1))
    for row, (top, bottom) in enumerate(pairwise(edges)):
        np.bitwise_and(source[:, top:bottom], kept[:, row, None], out=target[:, top:bottom])
        if any(fill):
            target[:, top:bottom] |= painted[:, row, None]
    return Media(target.reshape(media.frames.shape), media.timestamps_s)
