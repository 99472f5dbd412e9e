#!/usr/bin/env python
"""Makes data_pipelines/video/probe_clip.mp4, on which a process tries its video decoders: python scripts/make_probe_clip.py"""

from fractions import Fraction

import av
import numpy as np

from data_pipelines.video.backends import PROBE_CLIP, PROBE_TICKS

TICK = Fraction(1, 25)


def main() -> None:
    with av.open(str(PROBE_CLIP), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "b_strategy": "0", "g": "6", "crf": "23", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = TICK
        for number, tick in enumerate(PROBE_TICKS):
            bits = [255 * (number >> bit & 1) for bit in (3, 2, 1, 0)]
            pixels = np.broadcast_to(np.repeat(bits, 16)[None, :, None], (48, 64, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))
            frame.pts, frame.time_base = tick, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
