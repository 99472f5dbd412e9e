"""Clips whose frames carry their own number, made with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

MILLISECOND = Fraction(1, 1000)
BITS = 8


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: above, the bits of `number` as eight black or white bars, highest first; below, colours that move."""
    bits = np.array([255 * (number >> bit & 1) for bit in reversed(range(BITS))], np.uint8)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([(columns * 2 + rows + number * 3) % 200, (rows * 2 + number) % 200, (columns + 40 * number) % 160], -1).astype(
        np.uint8
    )
    pixels[: height // 2] = bits[columns[0] * BITS // width][None, :, None]
    return pixels


def numbers(frames: np.ndarray) -> list[int]:
    """What `picture` wrote."""
    _, height, width, _ = frames.shape
    centres = [(2 * bar + 1) * width // (2 * BITS) for bar in range(BITS)]
    return (frames[:, height // 4, centres].mean(-1).round() > 127).dot(2 ** np.arange(BITS)[::-1]).tolist()


def write_clip(
    path: Path,
    count: int = 40,
    *,
    size: tuple[int, int] = (48, 80),
    codec: str = "libx264",
    milliseconds: list[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    pixels: str = "yuv420p",
) -> list[int]:
    """Writes frames 0 to count - 1, by default 40 ms apart, and returns their times in ms. `rotation` as players must turn it back."""
    times = milliseconds or [40 * i for i in range(count)]
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25, options={"threads": "1", **(options or {"g": "12", "bf": "3", "crf": "18"})})
        upright = np.rot90(picture(0, *size), -rotation // 90)
        stream.height, stream.width, stream.pix_fmt = upright.shape[0], upright.shape[1], pixels
        base = Fraction(1, 25) if all(time % 40 == 0 for time in times) else MILLISECOND
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture(number, *size), -rotation // 90)))
            frame.pts, frame.time_base = int(time * MILLISECOND / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return times


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """40 frames, 40 ms apart, 80 x 48 pixels, keyframes every 12, three B-frames in a row."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path)
    return path
