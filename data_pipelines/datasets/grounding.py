"""Temporal grounding: when in this video does this happen? Tasks from annotation files and a folder of videos.

Frames, sizes and filters are those of TimeLens (arXiv:2512.14698; released training/data/grounding.py). True spans stay as annotated; the
reward `temporal_iou` with `snap: true` widens them to the stamps that the model is shown.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from data_pipelines.datasets.annotations import Event, read_events
from data_pipelines.datasets.difficulty import reason_to_drop
from data_pipelines.video.budget import QwenPixels, timelens_input
from data_pipelines.video.cache import FrameCache
from data_pipelines.video.decode import probe, read_frames
from data_pipelines.video.sampling import QwenFrames
from mmrl.errors import MediaError, TaskError
from mmrl.seeding import digest
from mmrl.types import Media, Task, TaskKey

QUESTION = (
    'When in the video does this happen: "{query}"? Find its start and its end, and reply with one sentence: '
    "The event happens in <start> - <end> seconds."
)
"""In our words; the sentence to reply with is the released one's."""
EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif")
"""Tried in this order where an annotation names a video without one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundingTasks:
    """Sentences about videos, each with the span in which it is true, from an annotation file. The file is read and every video looked for
    when the source is made; frames are decoded when a task is asked for.

    TaskError or MediaError names the file and line.
    """

    path: str
    """Annotation file."""
    videos: str
    """Folder that the names of videos in the file start from. A name may lack its extension, or be a folder of frames."""
    format: Literal["auto", "charades_sta", "activitynet", "qvhighlights", "timelens"] = "auto"
    """How the file is written; "auto" = told by its first line."""
    factor: Literal[28, 32] = 28
    """Pixels per side of a vision token: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    fps: float = 2.0
    """Frames to show per second of video, fewer where they would be more than 2 * total_tokens / min_tokens."""
    total_tokens: int = 14336
    """Vision tokens of a video, shared among its pairs of frames."""
    min_tokens: int = 64
    """Least tokens of a pair of frames."""
    filters: bool = True
    """Leave out videos shorter than 5 or longer than 500 s, sentences of more than 200 words or about sound, and spans outside the video.
    For an evaluation, where every sentence counts, set false."""
    missing_videos: Literal["error", "skip"] = "error"
    """What to do about a video that is not in the folder; "skip" leaves its events out."""
    question: str = QUESTION
    """What is asked; {query} stands for the sentence."""
    cache: bool = True
    """Keep decoded frames on disk, in $MMRL_CACHE/frames."""
    version: ClassVar[int] = 1
    media: ClassVar[str] = "video"
    """What its tasks show."""

    def __post_init__(self) -> None:
        if self.question.count("{query}") != 1:
            raise TaskError(f"grounding: question: got {self.question!r}; write {{query}} once, where the sentence goes")
        if self.min_tokens < 1 or self.total_tokens < 2 * self.min_tokens:
            message = "grounding: min_tokens must be 1 or more and total_tokens at least twice that"
            raise TaskError(f"{message}; got {self.min_tokens} and {self.total_tokens}")
        for name, path, found in (("path", self.path, Path(self.path).is_file()), ("videos", self.videos, Path(self.videos).is_dir())):
            if not found:
                raise TaskError(f"grounding: {name}: {path!r}: no such {'file' if name == 'path' else 'folder'}")
        self._read  # noqa: B018  reads and checks the file now, not at the first task

    @property
    def dropped(self) -> tuple[str, ...]:
        """Each event that is left out, with the reason: "file:line: the video lasts 3 s, not 5 to 500"."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[tuple[Event, ...], tuple[str, ...]]:
        """The events that are asked about, and what was left out."""
        events = read_events(Path(self.path), None if self.format == "auto" else self.format)
        reasons = [self._reason_to_drop(event) for event in events]
        kept = tuple(event for event, reason in zip(events, reasons, strict=True) if reason is None)
        dropped = tuple(f"{event.where}: {reason}" for event, reason in zip(events, reasons, strict=True) if reason is not None)
        if not kept:
            raise TaskError(f"{self.path}: none of its {len(events)} events can be used; the first: {dropped[0]}")
        if dropped:
            _log.info("%s: %d of %d events left out; the first: %s", self.path, len(dropped), len(events), dropped[0])
        return kept, dropped

    def _reason_to_drop(self, event: Event) -> str | None:
        if self._file(event) is None:
            return f"no video {event.video!r} in {self.videos}"
        if not self.filters:
            return None
        reasons = (reason_to_drop(event.query, span, self._duration(event)) for span in event.spans_s)
        return next((reason for reason in reasons if reason), None)

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {}

    def _file(self, event: Event) -> Path | None:
        """The video of an event; None where it is missing and may be."""
        if event.video not in self._files:
            base = Path(self.videos, event.video)
            paths = [base, *(base.with_name(base.name + extension) for extension in EXTENSIONS)]
            found = next((path for path in paths if path.exists()), None)
            if found is None:
                if self.missing_videos == "skip":
                    return None
                raise MediaError(
                    f"{event.where}: no video {event.video!r} in {self.videos}, nor with {', '.join(EXTENSIONS)} after it; "
                    "set missing_videos: skip to go without"
                )
            self._files[event.video] = found
        return self._files[event.video]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, float, int, int, float]]:
        return {}

    def _shape(self, event: Event) -> tuple[int, float, int, int, float]:
        """(frames, fps, height, width, duration_s) of its video, looked up once."""
        if event.video not in self._shapes:
            try:
                info = probe(self._files[event.video])
            except MediaError as error:
                raise MediaError(f"{event.where}: {error}") from error
            self._shapes[event.video] = (info.num_frames, info.fps, info.height, info.width, info.duration_s)
        return self._shapes[event.video]

    def _duration(self, event: Event) -> float:
        return self._shape(event)[4] if event.duration_s is None else event.duration_s

    @property
    def buckets(self) -> tuple[str, ...]:
        return ("",)

    def size(self, bucket: str) -> int:
        if bucket:
            raise TaskError(f"{self.path}: no bucket {bucket!r}; there is only ''")
        return len(self._read[0])

    @cached_property
    def _sampling(self) -> tuple[QwenFrames, QwenPixels]:
        frames, pixels = timelens_input(self.factor, min_tokens=self.min_tokens, total_tokens=self.total_tokens)
        return replace(frames, fps=self.fps), pixels

    def _id(self, event: Event) -> str:
        """Names file, video and event, with a short hash of everything else that makes the task."""
        settings = (self.factor, float(self.fps), self.total_tokens, self.min_tokens, self.question)
        mark = digest(*settings, event.query, *(second for span in event.spans_s for second in span)) % 16**8
        return f"grounding-v{self.version}/{Path(self.path).stem}/{event.video}/{event.number}-{mark:08x}"

    def task(self, key: TaskKey) -> Task:
        """Raises ValueError for an index outside the bucket, MediaError for a video that cannot be decoded."""
        if not 0 <= key.index < self.size(key.bucket):
            raise ValueError(f"index must be 0 to {self.size(key.bucket) - 1}; got {key.index}")
        event = self._read[0][key.index]
        self._file(event)
        media = self._media(event)
        spans = [list(span) for span in event.spans_s]
        start, end = spans[0]
        content = ({"type": "video"}, {"type": "text", "text": self.question.replace("{query}", event.query)})
        return Task(
            id=self._id(event),
            messages=({"role": "user", "content": list(content)},),
            media=(media,),
            solution=f"The event happens in {start:.1f} - {end:.1f} seconds.",
            meta={
                "kind": "grounding", "query": event.query, "span_s": spans[0], "spans_s": spans, "duration_s": self._duration(event),
                "video": event.video,
            },
        )  # fmt: skip

    def _media(self, event: Event) -> Media:
        num_frames, fps, height, width, _ = self._shape(event)
        frames, pixels = self._sampling
        try:
            indices = frames(num_frames, fps)
            size = pixels.video_size(height, width, len(indices))
            return (FrameCache().read if self.cache else read_frames)(self._files[event.video], indices, size)
        except (MediaError, ValueError) as error:
            raise MediaError(f"{event.where}: {error}") from error
