"""What is known of a video before a frame of it is read, and how much reading may cost."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrl.errors import MediaError


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What `probe` finds."""

    num_frames: int
    """Frames that the file holds, whatever its header declares."""
    fps: float
    """Frames per second on average: the container's rate where it agrees with the timestamps within 1 %, else num_frames / duration_s."""
    duration_s: float
    """Seconds from the first frame's appearance to the last one's end."""
    width: int
    """Pixels, after the rotation that the file asks for."""
    height: int
    timestamps_s: np.ndarray
    """float64 [num_frames] seconds at which each frame is shown, strictly increasing from 0."""


@dataclass(frozen=True)
class Limits:
    """How much one call may cost. Past a limit the file is refused with a MediaError."""

    seconds: float = 120.0
    """Wall time of a call."""
    frame_pixels: int = 64 * 2**20
    """Largest frame, height x width as stored: a small file can declare a huge frame."""
    total_pixels: int = 2**29
    """Largest result, frames x height x width: 2**29 are 1.5 GiB."""
    isolated: bool = False
    """Decode in a child process, which is killed at the time limit and whose crash is a MediaError. Costs 0.2 s once per process and a
    copy of the frames. torchcodec and decord always run so, because their C++ loops cannot be watched from outside."""

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.frame_pixels > 0 and self.total_pixels > 0):
            raise ValueError(f"limits must be above 0; got {self}")


class Deadline:
    """The wall clock of one call."""

    def __init__(self, path: str | Path, limits: Limits) -> None:
        self.path, self.seconds = path, limits.seconds
        self.end = time.monotonic() + limits.seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        if self.left < 0:
            raise self.passed()

    def passed(self) -> MediaError:
        return MediaError(f"{self.path}: not read within the limit of {self.seconds:g} s; raise Limits.seconds, or cut the file into parts")


@dataclass(frozen=True, eq=False)
class Scan:
    """A backend's index of a file."""

    info: VideoInfo
    quarter_turns: int
    """How often `numpy.rot90` turns a decoded frame to stand upright."""
    ticks: np.ndarray | None = None
    """int64 [num_frames] timestamps in the container's unit; None where frames can only be counted (PyAV)."""
    starts: np.ndarray | None = None
    """int64 [K] ticks of the packets at which decoding can start, increasing (PyAV)."""


def video_info(timestamps_s: np.ndarray, last_s: float, rate: float | None, width: int, height: int) -> VideoInfo:
    """`timestamps_s` any start; `last_s` how long the last frame stays, 0 = unknown; `rate` frames per second that the header declares."""
    seconds = np.asarray(timestamps_s, np.float64)
    seconds = seconds - seconds[0]
    if last_s <= 0:
        last_s = float(seconds[-1]) / (len(seconds) - 1) if len(seconds) > 1 else 1 / rate if rate else 0.0
    duration = float(seconds[-1]) + last_s
    measured = len(seconds) / duration if duration > 0 else 0.0
    fps = rate if rate and abs(rate - measured) <= 0.01 * rate else measured
    return VideoInfo(len(seconds), float(fps), duration, width, height, seconds)


def is_transport_stream(path: Path) -> bool:
    """MPEG-TS: packets of 188 bytes (192 with a time before each), which begin with 0x47."""
    with path.open("rb") as file:
        head = file.read(400)
    return any(len(head) > at + 188 and head[at] == head[at + step] == 0x47 for at, step in ((0, 188), (4, 192)))
