"""Decoding with decord. It can loop for ever on damaged files, so it only runs in a child process."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.video.pictures import resized
from data_pipelines.video.records import Deadline, Limits, Scan, video_info
from mmrl.errors import MediaError

BATCH = 16


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
        except decord.DECORDError as error:
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
        try:
            for at in range(0, len(wanted), BATCH):
                batch = reader.get_batch(wanted[at : at + BATCH]).asnumpy()
                for row, frame in enumerate(batch, at):
                    frames[row] = frame if size is None else resized(frame, size)
        except decord.DECORDError as error:
            raise _damaged(path, error) from error
        return frames


def _opened(path: Path) -> Any:
    import decord

    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{path}: cannot be opened as a video by decord: {_cause(error)}") from error


def _damaged(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path}: cannot be decoded by decord: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The first line of decord's message, without its C++ place and stack."""
    return str(error).strip().splitlines()[0].rsplit("] ", 1)[-1].strip()
