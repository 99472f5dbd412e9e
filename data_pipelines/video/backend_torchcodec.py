"""Decoding with torchcodec, which brings torch and uses the system's FFmpeg. It only runs in a child process."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.video.pictures import resized
from data_pipelines.video.records import Deadline, Limits, Scan, is_transport_stream, video_info
from mmrl.errors import MediaError

BATCH = 16
THUMBNAIL = (16, 16)


class TorchCodec:
    """The backend over `torchcodec`. Its public interface tells a frame's time only with the frame, so a scan decodes the whole video."""

    name = "torchcodec"
    in_process = False
    resizes = "pillow-bicubic"

    def require(self) -> None:
        import_module("torchcodec.decoders")

    def scan(self, path: Path, limits: Limits, deadline: Deadline) -> Scan:
        resize = import_module("torchcodec.transforms").Resize(THUMBNAIL)
        about = _opened(path).metadata
        width, height = about.width or 0, about.height or 0
        if height * width > limits.frame_pixels:
            raise MediaError(f"{path}: frames of {width} x {height} pixels are more than {limits.frame_pixels}; make them smaller")
        decoder = _opened(path, transforms=[resize])
        seconds, last_s = [], 0.0
        try:
            for at in range(0, len(decoder), BATCH):
                batch = decoder.get_frames_in_range(at, min(at + BATCH, len(decoder)))
                seconds.append(batch.pts_seconds.numpy())
                last_s = float(batch.duration_seconds[-1])
        except (RuntimeError, ValueError, IndexError) as error:
            raise _damaged(path, error) from error
        if not seconds:
            raise MediaError(f"{path}: its video has no frames")
        times = np.concatenate(seconds)
        if (np.diff(times) <= 0).any():
            raise MediaError(f"{path}: torchcodec finds no usable timestamps in it; read it with MMRL_VIDEO_BACKEND=pyav")
        return Scan(video_info(times, last_s, about.average_fps_from_header, width, height), quarter_turns=0)

    def read(
        self, path: Path, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline
    ) -> np.ndarray:
        """uint8 [len(wanted), H, W, 3] of the frames `wanted` (increasing); torchcodec turns them upright itself."""
        decoder = _opened(path)
        frames = np.empty((len(wanted), *(size or (scan.info.height, scan.info.width)), 3), np.uint8)
        try:
            for at in range(0, len(wanted), BATCH):
                batch = decoder.get_frames_at(wanted[at : at + BATCH].tolist()).data.numpy()
                for row, frame in enumerate(batch, at):
                    frames[row] = frame if size is None else resized(frame, size)
        except (RuntimeError, ValueError, IndexError) as error:
            raise _damaged(path, error) from error
        return frames


def _opened(path: Path, **options: Any) -> Any:
    if is_transport_stream(path):
        raise MediaError(f"{path}: is a transport stream, in which torchcodec finds wrong frames; read it with MMRL_VIDEO_BACKEND=pyav")
    try:
        return import_module("torchcodec.decoders").VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, **options)
    except (RuntimeError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened as a video by torchcodec: {_cause(error)}") from error


def _damaged(path: Path, error: Exception) -> MediaError:
    return MediaError(f"{path}: cannot be decoded by torchcodec: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The last line of torchcodec's message that says something; the first names its C++ source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rsplit(": ", 1)[-1] if lines else type(error).__name__
