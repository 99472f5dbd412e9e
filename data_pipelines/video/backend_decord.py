"""Decoding with decord, in a child process only.

Asked for single frames, decord 0.6 gives wrong ones after seeking in HEVC, in H.264 with open groups of pictures, and in ASF. So frames are
read from the first to the last one asked for, which it does rightly; transport streams, where it does not, are refused.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.video.pictures import resized
from data_pipelines.video.records import Deadline, Limits, Scan, is_transport_stream, video_info
from mmrl.errors import MediaError


class Decord:
    """The backend over `decord`. Indexes packets itself; where it finds no usable times the file is refused."""

    name = "decord"
    in_process = False
    resizes = "pillow-bicubic"

    def require(self) -> None:
        import decord  # noqa: F401

    def scan(self, path: Path, limits: Limits, deadline: Deadline) -> Scan:
        import decord

        reader = _opened(path)
        try:
            height, width, _ = reader[0].shape
            spans = reader.get_frame_timestamp(np.arange(len(reader))).astype(np.float64)
            rate = float(reader.get_avg_fps())
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise _damaged(path, error) from error
        if height * width > limits.frame_pixels:
            raise MediaError(f"{path}: frames of {width} x {height} pixels are more than {limits.frame_pixels}; make them smaller")
        seconds = spans[:, 0]
        if not np.isfinite(spans).all() or (np.diff(seconds) <= 0).any() or seconds[0] < -1e6:
            raise MediaError(f"{path}: decord finds no usable timestamps in it; read it with MMRL_VIDEO_BACKEND=pyav")
        return Scan(video_info(seconds, float(spans[-1, 1] - spans[-1, 0]), rate, width, height), quarter_turns=0)

    def read(
        self, path: Path, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline
    ) -> np.ndarray:
        """uint8 [len(wanted), H, W, 3] of the frames `wanted` (increasing); decord turns them upright itself."""
        import decord

        reader = _opened(path)
        frames = np.empty((len(wanted), *(size or (scan.info.height, scan.info.width)), 3), np.uint8)
        rows = {int(index): row for row, index in enumerate(wanted)}
        try:
            for index in range(int(wanted[-1]) + 1):
                frame = reader.next()
                if index in rows:
                    frames[rows[index]] = frame.asnumpy() if size is None else resized(frame.asnumpy(), size)
        except (decord.DECORDError, RuntimeError, IndexError, StopIteration) as error:
            raise _damaged(path, error) from error
        return frames


def _opened(path: Path) -> Any:
    import decord

    if is_transport_stream(path):
        raise MediaError(f"{path}: is a transport stream, in which decord finds the wrong frames; read it with MMRL_VIDEO_BACKEND=pyav")
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{path}: cannot be opened as a video by decord: {_cause(error)}") from error


def _damaged(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path}: cannot be decoded by decord: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The first line of decord's message, without its C++ place and stack."""
    lines = str(error).strip().splitlines() or ["it ends too early"]
    return lines[0].rsplit("] ", 1)[-1].strip()
