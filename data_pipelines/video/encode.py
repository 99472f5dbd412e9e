"""Frames to a video file, by PyAV."""

from pathlib import Path
from typing import Any

import numpy as np

from mmrl.errors import MediaError


def pyav() -> Any:
    """The `av` module. MediaError says how to get it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"writing videos needs PyAV, which does not import ({error}); install it with: pip install av") from error
    return av


def write_video(frames: np.ndarray, path: str | Path, fps: int) -> None:
    """Write uint8 [F, H, W, 3] RGB frames as H.264 in an .mp4 file, frame i at i / fps seconds. H and W must be even.

    The colours come back a little off: 4:2:0, nearly lossless. Raises MediaError without PyAV, for odd sizes, and where encoding fails.
    """
    av = pyav()
    count, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise MediaError(f"{path}: frames of {height} x {width} pixels: a video needs even sides")
    try:
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=fps, options={"crf": "6", "preset": "veryfast", "threads": "1"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for pixels in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: {count} frames cannot be written as a video: {error}") from error
