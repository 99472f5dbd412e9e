"""Perturbations of time: which frame is shown when. Timestamps stay, so the clip keeps its clock; a picture is refused."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipelines.perturb.checks import need_frames, share, within
from mmrl.types import Media


def shown(media: Media, order: np.ndarray) -> Media:
    """Media whose frame i is frame order[i]."""
    return Media(media.frames[order], media.timestamps_s)


@dataclass(frozen=True)
class FrameShuffle:
    """All frames in random order, every order equally likely (T-GRPO of Video-R1, arXiv:2503.21776; VideoSSR's Shuffle, arXiv:2511.06281).

    The order drawn may be the true one: once in F! draws.
    """

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return shown(media, rng.permutation(need_frames(media, 2, "frame_shuffle")))


@dataclass(frozen=True)
class Reverse:
    """The last frame first. No randomness."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return shown(media, np.arange(need_frames(media, 2, "reverse"))[::-1])


@dataclass(frozen=True)
class Freeze:
    """The first frame all the time. No randomness."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return shown(media, np.zeros(need_frames(media, 2, "freeze"), np.int64))


@dataclass(frozen=True)
class StutterHold:
    """n evenly spaced key frames, each held for F // n frames, the first for F mod n more (VideoSSR, arXiv:2511.06281: n of 2 to 5).

    Key frame k is frame k * F // n, which is our reading of "evenly spaced". n is drawn once.
    """

    holds: tuple[int, ...] = (2, 3, 4, 5)
    """The numbers n, each equally likely; the media needs as many frames as the largest."""

    def __post_init__(self) -> None:
        if not self.holds or min(self.holds) < 1:
            raise ValueError(f"holds must be numbers of 1 or more; got {self.holds}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        count = need_frames(media, max(2, *self.holds), "stutter_hold")
        holds = self.holds[rng.integers(len(self.holds))]
        lengths = np.full(holds, count // holds)
        lengths[0] += count % holds
        return shown(media, np.repeat(np.arange(holds) * count // holds, lengths))


@dataclass(frozen=True)
class FrameDrop:
    """Takes round(ratio * F) frames away at random and fills their places."""

    ratio: float = 0.5
    """Share of the frames, in [0, 1]."""
    fill: Literal["black", "previous"] = "black"
    """"black", or the frame shown before; with "previous" the first frame is never taken."""
    strength: float = 1.0
    """Factor on the ratio, in [0, 1]."""

    def __post_init__(self) -> None:
        share("ratio", self.ratio)
        share("strength", self.strength)
        if self.fill not in ("black", "previous"):
            raise ValueError(f"fill must be 'black' or 'previous'; got {self.fill!r}")

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        count = need_frames(media, 2, "frame_drop")
        first = int(self.fill == "previous")
        wanted = min(round(self.ratio * self.strength * count), count - first)
        dropped = first + rng.permutation(count - first)[:wanted]
        if self.fill == "black":
            frames = media.frames.copy()
            frames[dropped] = 0
            return Media(frames, media.timestamps_s)
        order = np.arange(count)
        order[dropped] = 0
        return shown(media, np.maximum.accumulate(order))


@dataclass(frozen=True)
class Slow:
    """Frame i shows frame floor(i / factor): slowed down, and the end is not reached. No randomness.

    VideoSSR, arXiv:2511.06281, names Slow without parameters, and its code lacks it: rule and factor are ours.
    """

    factor: float = 2.0
    """1 to 64."""

    def __post_init__(self) -> None:
        within("factor", self.factor, 1, 64)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return shown(media, (np.arange(need_frames(media, 2, "slow")) / self.factor).astype(np.int64))


@dataclass(frozen=True)
class Fast:
    """Frame i shows frame floor(i * factor), the last one when there are no more: speeded up, then held. No randomness.

    VideoSSR, arXiv:2511.06281, names Fast without parameters, and its code lacks it: rule and factor are ours. It reports lower results
    with Fast.
    """

    factor: float = 2.0
    """1 to 64."""

    def __post_init__(self) -> None:
        within("factor", self.factor, 1, 64)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        count = need_frames(media, 2, "fast")
        return shown(media, np.minimum((np.arange(count) * self.factor).astype(np.int64), count - 1))


@dataclass(frozen=True, eq=False)
class Swap:
    """A run of frames of another clip in the place of all frames; where the run starts is drawn (VideoSSR's code, arXiv:2511.06281)."""

    other: Media
    """Frames of the same height and width, at least as many."""

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        count, spare = len(media.frames), len(self.other.frames) - len(media.frames)
        if spare < 0 or self.other.frames.shape[1:] != media.frames.shape[1:]:
            have, need = self.other.frames.shape, media.frames.shape
            raise ValueError(f"the other clip has frames of shape {have}; {need[0]} or more of {need[1]} x {need[2]} pixels are needed")
        start = int(rng.integers(spare + 1))
        return Media(self.other.frames[start : start + count].copy(), media.timestamps_s)
