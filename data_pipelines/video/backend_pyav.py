"""Decoding with PyAV, which brings its own FFmpeg.

Packets are read once to index the file: reading them is some hundred times cheaper than decoding them, and unlike a header they do not lie
about count and times. For a plain mp4 the tables that packets get their times from are read in their place. Frames are then decoded from
the nearest keyframe before each one asked for; frames that no other frame refers to are skipped unless asked for. What comes out is checked
by its timestamp; if a frame is missing, the file is decoded once more from its start with nothing skipped, and what is still missing is an
error.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.video.mp4_index import Times, index_times
from data_pipelines.video.records import Deadline, Limits, Scan, VideoInfo, video_info
from mmrl.errors import MediaError

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,swf,asf,rm,ogg,mxf,nut,dv,"
    "mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,yuv4mpegpipe"
)
"""The formats that are opened. Playlists and the like are left out: they make FFmpeg open other files and addresses."""
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that store each packet's time, so that times after a seek are those of the index."""
SEEK_PAST = 100
"""Frames; a keyframe farther ahead is sought, a nearer one is reached by reading packets."""
UNTIMED = (("avi", "h264"), ("avi", "hevc"))
"""Containers that do not say when a frame is shown, with codecs for which FFmpeg cannot tell either; their frames are counted."""
DISPOSABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
"""Codecs whose decoder knows frames that nothing refers to from the frame's own header."""


class PyAV:
    """The backend over `av`."""

    name = "pyav"
    in_process = True
    resizes = "swscale-bicubic"

    def require(self) -> None:
        import av  # noqa: F401

    def scan(self, path: Path, limits: Limits, deadline: Deadline) -> Scan:
        with _opened(path, limits, deadline) as (container, stream):
            untimed = (container.format.name, stream.codec_context.name) in UNTIMED
            times = index_times(path, stream.id) if container.format.name == SEEKABLE[0] else None
            if times is None and not untimed:
                times = _packet_times(path, container, stream, deadline)
            unit = float(stream.time_base)
            rate = float(stream.average_rate) if stream.average_rate else None
        if times is None:
            return self._scan_frames(path, limits, deadline, unit, rate)
        ticks, starts, last = times
        with _opened(path, limits, deadline) as (container, stream):
            frame = _Reader(path, container, stream, deadline).first(starts, int(ticks[0]))
            info, turns = _shown(path, frame, ticks * unit, last * unit, rate)
        return Scan(info, turns, ticks, starts)

    def _scan_frames(self, path: Path, limits: Limits, deadline: Deadline, unit: float, rate: float | None) -> Scan:
        """Index of a file whose packets carry no times: every frame is decoded once."""
        first, ticks = None, []
        with _opened(path, limits, deadline) as (container, stream):
            for frame in _Reader(path, container, stream, deadline).all(timed=False):
                first = first or frame
                ticks.append(frame.pts)
        if first is None:
            raise MediaError(f"{path}: no frame of its video can be decoded")
        timed = None not in ticks and all(one < other for one, other in pairwise(ticks))
        if not timed and not rate:
            raise MediaError(f"{path}: neither its frames nor its header say when frames are shown; put it into mp4 with ffmpeg")
        seconds = np.array(ticks) * unit if timed else np.arange(len(ticks)) / (rate or 1.0)
        info, turns = _shown(path, first, seconds, 0.0, rate)
        return Scan(info, turns)

    def read(
        self, path: Path, scan: Scan, wanted: np.ndarray, size: tuple[int, int] | None, limits: Limits, deadline: Deadline
    ) -> np.ndarray:
        """uint8 [len(wanted), H, W, 3], not yet turned upright, of the frames `wanted` (increasing)."""
        sink = _Sink(path, scan, len(wanted), size)
        if scan.ticks is None or scan.starts is None:
            rows = {int(index): row for row, index in enumerate(wanted)}
            with _opened(path, limits, deadline) as (container, stream):
                for count, frame in enumerate(_Reader(path, container, stream, deadline).all(timed=False)):
                    if count in rows:
                        sink.put(rows[count], frame)
                    if sink.full:
                        break
            return sink.done(wanted)
        rows = {int(scan.ticks[index]): row for row, index in enumerate(wanted)}
        with _opened(path, limits, deadline) as (container, stream):
            _Reader(path, container, stream, deadline).runs(rows, scan.ticks, scan.starts, sink)
        if not sink.full:
            with _opened(path, limits, deadline) as (container, stream):
                for frame in _Reader(path, container, stream, deadline).all():
                    if frame.pts in rows:
                        sink.put(rows[frame.pts], frame)
                    if sink.full:
                        break
        return sink.done(wanted)


class _Sink:
    """Frames as they come, converted to RGB and scaled by swscale.

    Scaled frames are converted with full chroma and exact rounding, which leaves out the darkening by about one level of swscale's default
    conversion and gives the same bytes on any processor; through planes, which swscale fills four times as fast as pixels, bit for bit
    alike. Frames that keep their size go through the default on purpose: it is what the other backends do.
    """

    def __init__(self, path: Path, scan: Scan, count: int, size: tuple[int, int] | None) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        stored = (scan.info.height, scan.info.width)
        self.path, self.scaled = path, size is not None
        self.height, self.width = size or (stored[::-1] if scan.quarter_turns % 2 else stored)
        self.frames = np.empty((count, self.height, self.width, 3), np.uint8)
        self.have = np.zeros(count, bool)
        exact = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        self.flags = Interpolation.BICUBIC | exact if self.scaled else Interpolation.BILINEAR
        self.reformatter = VideoReformatter()

    @property
    def full(self) -> bool:
        return bool(self.have.all())

    def put(self, row: int, frame: Any) -> None:
        if not self.scaled and (frame.height, frame.width) != (self.height, self.width):
            raise MediaError(
                f"{self.path}: frames change from {self.width} x {self.height} to {frame.width} x {frame.height} pixels; give a size"
            )
        pixels = self.reformatter.reformat(
            frame, self.width, self.height, "gbrp" if self.scaled else "rgb24", interpolation=self.flags, threads=1
        )
        if self.scaled:
            for plane, channel in enumerate((1, 2, 0)):
                self.frames[row, ..., channel] = _lines(pixels.planes[plane])[: self.height, : self.width]
        else:
            self.frames[row] = _lines(pixels.planes[0])[: self.height, : 3 * self.width].reshape(self.height, self.width, 3)
        self.have[row] = True

    def done(self, wanted: np.ndarray) -> np.ndarray:
        if not self.full:
            lost = wanted[~self.have]
            raise MediaError(
                f"{self.path}: {len(lost)} of {len(wanted)} frames cannot be decoded, the first is frame {lost[0]}; the file is damaged"
            )
        return self.frames


def _lines(plane: Any) -> np.ndarray:
    """uint8 [lines, bytes of a line], padded on the right."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


class _Reader:
    """One opened file: packets in, frames out."""

    def __init__(self, path: Path, container: Any, stream: Any, deadline: Deadline) -> None:
        self.path, self.container, self.stream, self.deadline = path, container, stream, deadline
        self.codec = stream.codec_context
        self.packets: Iterator[Any] = container.demux(stream)

    def all(self, timed: bool = True) -> Iterator[Any]:
        """Every frame in the order of showing. MediaError at the first packet that cannot be decoded, or time that goes back."""
        from av.error import FFmpegError

        started, last = False, None
        for packet in self.packets:
            self.deadline.check()
            started = started or packet.is_keyframe
            try:
                frames = [] if _is_empty(packet) else self.codec.decode(packet if packet.size else None)
            except (FFmpegError, MemoryError) as error:
                if not started:  # a recording that was begun between two keyframes
                    continue
                raise MediaError(f"{self.path}: cannot be decoded {_second(packet)}: {_why(error)}") from error
            for frame in frames:
                if not started and frame.is_corrupt:
                    continue
                started = True
                if frame.is_corrupt:
                    raise MediaError(f"{self.path}: the decoder found damage in the frame {_second(frame)}")
                if timed and last is not None and frame.pts is not None and frame.pts <= last:
                    raise MediaError(f"{self.path}: the times of its frames contradict their order {_second(frame)}; make the file again")
                last = frame.pts
                yield frame

    def first(self, starts: np.ndarray, tick: int) -> Any:
        """The first frame, decoded."""
        for frame in self.all():
            if frame.pts == tick:
                return frame
        raise MediaError(f"{self.path}: its first frame cannot be decoded; the file is damaged")

    def runs(self, rows: dict[int, int], ticks: np.ndarray, starts: np.ndarray, sink: _Sink) -> None:
        """Decodes the frames at the ticks of `rows`, from keyframe to keyframe. Those that do not come are left out of the sink."""
        runs: dict[int, set[int]] = {}
        for tick in rows:
            before = np.searchsorted(starts, tick, side="right") - 1
            runs.setdefault(int(starts[max(before, 0)]), set()).add(tick)
        seekable = self.container.format.name in SEEKABLE
        here = int(ticks[0])
        for start, wanted in runs.items():
            far = bool(np.searchsorted(ticks, start) - np.searchsorted(ticks, here) > SEEK_PAST)
            here = max(wanted)
            if self._run(self._go_to(start, seekable and far), start, wanted, rows, sink):
                continue
            before = int(
                starts[max(np.searchsorted(starts, start) - 1, 0)]
            )  # frames after an open group's keyframe may name ones before it
            if not seekable or not self._run(self._go_to(before, seek=True), start, wanted, rows, sink):
                return

    def _go_to(self, start: int, seek: bool) -> Any:
        """The keyframe's packet, everything before it passed over; None if it does not come."""
        self.codec.flush_buffers()
        if seek:
            self.container.seek(start, stream=self.stream)
            self.packets = self.container.demux(self.stream)
        for packet in self.packets:
            self.deadline.check()
            if packet.is_keyframe and packet.pts == start:
                return packet
            if seek and packet.is_keyframe and packet.pts is not None and packet.pts > start:
                return None
        return None

    def _run(self, packet: Any, start: int, wanted: set[int], rows: dict[int, int], sink: _Sink) -> bool:
        """Decodes from a packet until the last wanted one is in, then drains the decoder. False if there was damage from `start` on."""
        from av.error import FFmpegError

        unsent, last, skips = set(wanted), start - 1, self.codec.name in DISPOSABLE
        while packet is not None:
            self.deadline.check()
            if skips:
                self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            end = not packet.size and not _is_empty(packet)
            try:
                frames = [] if _is_empty(packet) else self.codec.decode(None if end else packet)
                unsent.discard(packet.pts)
                if not unsent and not end:
                    frames += self.codec.decode(None)
            except (FFmpegError, MemoryError):
                if packet.pts is not None and packet.pts < start:  # may refer to frames that were passed over
                    frames = []
                else:
                    return False
            for frame in frames:
                if frame.is_corrupt or frame.pts is None or frame.pts < start:
                    continue
                if frame.pts <= last:  # the times contradict the order
                    return False
                last = frame.pts
                if last in wanted:
                    sink.put(rows[last], frame)
            if end or not unsent:
                return True
            packet = next(self.packets, None)
        return False


@contextmanager
def _opened(path: Path, limits: Limits, deadline: Deadline) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; the decoder uses one thread, refuses damage, and refuses frames above the limit."""
    import av
    from av.error import ArgumentError, ExitError, FFmpegError
    from av.stream import Disposition

    pixels = {"max_pixels": str(limits.frame_pixels)}
    try:
        options = {**pixels, "format_whitelist": CONTAINERS}
        container = av.open(f"file:{path}", options=options, metadata_errors="replace", timeout=max(0.001, deadline.left))
    except (FFmpegError, MemoryError) as error:
        if isinstance(error, ExitError):
            raise deadline.passed() from error
        cause = "no video format that is read here" if isinstance(error, ArgumentError) else _why(error)
        raise MediaError(f"{path}: cannot be opened as a video: {cause}") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = sorted({s.type for s in container.streams}) or ["nothing"]
            raise MediaError(f"{path}: holds no video, only {' and '.join(kinds)}")
        stream = streams[0]
        codec = stream.codec_context
        if codec is None:
            raise MediaError(f"{path}: PyAV has no decoder for its video; convert it with ffmpeg")
        if codec.width * codec.height > limits.frame_pixels:
            raise MediaError(
                f"{path}: frames of {codec.width} x {codec.height} pixels are more than {limits.frame_pixels}; make them smaller"
            )
        codec.thread_count = 1
        codec.options = {**pixels, "err_detect": "explode"}
        try:
            yield container, stream
        except (FFmpegError, MemoryError) as error:
            if isinstance(error, ExitError):
                raise deadline.passed() from error
            raise MediaError(f"{path}: cannot be read: {_why(error)}") from error


def _packet_times(path: Path, container: Any, stream: Any, deadline: Deadline) -> Times | None:
    """None without times or keyframes."""
    from av.error import FFmpegError

    if container.format.name == "avi":
        _check_riff(path)
    ticks, durations, starts, before = array("q"), array("q"), array("q"), 0
    try:
        for count, packet in enumerate(container.demux(stream)):
            if count % 64 == 0:  # a look at the clock costs as much as half a packet
                deadline.check()
            pts = packet.pts
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise MediaError(f"{path}: the packet {_second(packet)} is cut or damaged; make the file again")
            if pts is None:
                return None
            if packet.is_keyframe:
                starts.append(pts)
            if not starts or pts < starts[0]:  # before the first keyframe: refers to what is not in the file
                before += 1
                continue
            if not packet.is_discard:
                ticks.append(pts)
                durations.append(packet.duration or 0)
    except FFmpegError as error:
        declared = f" of the {stream.frames} that its header declares" if stream.frames else ""
        raise MediaError(f"{path}: ends or breaks off after {len(ticks)} frames{declared}: {_why(error)}; make the file again") from error
    if before and not starts:
        return None
    if not ticks:
        raise MediaError(f"{path}: its video has no frames")
    order = np.argsort(ticks, kind="stable")
    shown, keys = np.array(ticks, np.int64)[order], np.array(starts, np.int64)
    if (np.diff(shown) <= 0).any():
        return None
    if (np.diff(keys) <= 0).any():
        raise MediaError(f"{path}: its timestamps jump back; put it together again with ffmpeg")
    return shown, keys, int(durations[order[-1]])


def _check_riff(path: Path) -> None:
    """A cut avi has lost its index, and the order of its last frames with it."""
    with path.open("rb") as file:
        head = file.read(8)
    declared, held = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    if head[:4] == b"RIFF" and held < declared < 2**32 - 2**20:  # larger: not known when it was written
        raise MediaError(f"{path}: ends after {held} of the {declared} bytes that its header declares; make the file again")


def _shown(path: Path, frame: Any, seconds: np.ndarray, last_s: float, rate: float | None) -> tuple[VideoInfo, int]:
    """The info and the quarter turns (counterclockwise) after which the frame stands upright."""
    if frame.rotation % 90:
        raise MediaError(f"{path}: asks to be turned by {frame.rotation} degrees; only multiples of 90 are supported")
    turns = frame.rotation // 90 % 4
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    return video_info(seconds, last_s, rate, width, height), turns


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _second(timed: Any) -> str:
    return "at an unknown time" if timed.pts is None else f"at {float(timed.pts * timed.time_base):.3f} s"


def _is_empty(packet: Any) -> bool:
    """No data, but not the end of the stream either: Theora's way to say that the frame before stays."""
    return not packet.size and packet.dts is not None
