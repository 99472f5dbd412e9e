"""VideoSSR (arXiv:2511.06281): questions that unlabelled videos answer themselves, endless and by key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np

from data_pipelines.datasets.stored_video import StoredTask, edited, paste_edit, perturb_edit, swap_edit
from data_pipelines.perturb.ops import visibility
from data_pipelines.tasks import videossr_counting as counting
from data_pipelines.tasks import videossr_grounding as grounding
from data_pipelines.tasks import videossr_jigsaw as jigsaw
from data_pipelines.tasks.keyed import check_weights, dealt_key
from data_pipelines.tasks.videossr_baseline import Baseline
from data_pipelines.tasks.videossr_footage import Footage, Framing, Library, SyntheticFile, VideoFile
from mmrl.errors import TaskError
from mmrl.seeding import digest, stream
from mmrl.types import Media, Task, TaskKey

GROUNDING = tuple(f"grounding-{name}" for name in grounding.OPERATIONS)
COUNTING = tuple(counting.KINDS)
JIGSAW = tuple(f"jigsaw-{clips}" for clips in range(2, jigsaw.MOST_CLIPS + 1))
KINDS = (*GROUNDING, *COUNTING, *JIGSAW)
TRAINING = ("grounding-channel_swap", "grounding-mirror", "grounding-zoom_out", "grounding-rotate", "counting-easy", "jigsaw-6")
"""VideoSSR-30K. No temporal anomaly: with some of them the paper's results fall."""
TRAINING_WEIGHTS = (3.0, 3.0, 3.0, 3.0, 6.0, 12.0)
"""Thousands of tasks of VideoSSR-30K (from its scripts' index ranges; the share of counting is inferred)."""
VIUBENCH = (*TRAINING[:4], "grounding-shuffle", "counting-easy", "counting-hard", "jigsaw-6", "jigsaw-8")
"""The paper's evaluation set: 2,700 questions, 300 of each kind (inferred), at up to 512 x 512 pixels."""
BRIEF = {"grounding": "When?", "counting": "How many?", "jigsaw": "Order?"}
ATTEMPTS = 32
"""Videos and segments drawn for one task, until what was done to one can be seen."""


class Shown(NamedTuple):
    """A question about a video: what is shown of it, and the answer."""

    clips: list[list[int]]
    """Frames of each video that is shown, by their place among the sampled ones."""
    edits: list[dict[str, Any]]
    """Done to the first of them."""
    media: tuple[Media, ...]
    question: str
    solution: str
    meta: dict[str, Any]


class Unfit(NamedTuple):
    """A draw that gives no sound task, and why."""

    reason: str


@dataclass(frozen=True)
class VideoSSRTasks:
    """Endless questions that unlabelled videos answer themselves (VideoSSR, arXiv:2511.06281), in buckets "grounding-mirror",
    "counting-easy", "jigsaw-6", and so on.

    Grounding: some frames in a row were changed; when? Counting: shapes were pasted in; how many of each? Jigsaw: the clips of a video are
    shown in shuffled order; which is theirs? Times are on the paper's clock: frame i of F is at i / sample_fps seconds, sample_fps being F
    over the FULL duration.

    A task is a pure function of (version, split, seed, frames, sizes, min_change, the videos' content, bucket, index). Which split owns a
    video follows from its content (one in four is for test), so none is in both. Raises TaskError where no video can be used, MediaError
    for a video that cannot be read.
    """

    split: Literal["train", "test", "all"]
    """Of the videos. "all" takes every video; it needs `videos`."""
    videos: tuple[str, ...] = ()
    """Folders, searched through, and files; empty = synthetic clips, square, as large as max_pixels allows."""
    seed: int = 0
    kinds: tuple[str, ...] = TRAINING
    """Buckets: "grounding-" with one of the changes of docs/videossr.md, "counting-easy", "counting-hard", "counting-single", "jigsaw-2" to
    "jigsaw-9"."""
    frames: int = 48
    """Frames of a video that are shown, 6 or more. Of 48, 8 to 16 are changed; of fewer, a sixth to a third."""
    min_pixels: int = 128 * 128
    """Least pixels of a frame; smaller videos are enlarged."""
    max_pixels: int = 256 * 256
    """Most pixels of a frame. The paper evaluates at 512 * 512."""
    factor: int = 28
    """Sides of frames are multiples of this: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    min_change: float = 2.0
    """Mean change of a pixel's value, 0 to 255, below which nobody can be asked about it: inside a changed part, and from clip to clip of
    a jigsaw. Such a draw is replaced by another."""
    weights: tuple[float, ...] = ()
    """Share of each bucket in `key`; empty = equal shares. They need not sum to 1."""
    on_media_error: Literal["raise", "skip"] = "raise"
    """"skip" leaves out videos that cannot be read; to find them, the frames of every video are decoded at the start."""
    system: str = "Give the answer alone, without reasoning or explanation."
    """System message; empty = none."""
    brief: bool = False
    """Ask in a word or two ("When?"), for models too small to read: the embedded one sees little beside a long question."""
    version: ClassVar[int] = 1
    media: ClassVar[str] = "video"
    """What its tasks show."""

    def __post_init__(self) -> None:
        for name, allowed in (("split", ("train", "test", "all")), ("on_media_error", ("raise", "skip"))):
            if getattr(self, name) not in allowed:
                raise self._error(name, f"give one of {', '.join(allowed)}")
        if self.seed < 0:
            raise self._error("seed", "give 0 or more")
        if not 0 <= self.min_change < 255:
            raise self._error("min_change", "give 0 to 255")
        self._check_kinds()
        check_weights("videossr", self.weights, self.kinds)
        if not 1 <= self.factor**2 <= self.min_pixels <= self.max_pixels:
            raise TaskError(
                f"videossr: factor={self.factor}, min_pixels={self.min_pixels}, max_pixels={self.max_pixels}: "
                "need factor² <= min_pixels <= max_pixels"
            )
        if self.videos:
            self.library  # noqa: B018  looks at the videos now, not at the first task
        elif self.split == "all":
            raise self._error("split", "synthetic clips have no such split; give train or test, or videos")

    def _error(self, name: str, remedy: str) -> TaskError:
        return TaskError(f"videossr: {name}={getattr(self, name)!r}: {remedy}")

    def _check_kinds(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise self._error("kinds", "give some, each once")
        for kind in self.kinds:
            if kind not in KINDS:
                raise TaskError(f"videossr: kinds: no {kind!r}; there are {', '.join(KINDS)}")
            family, _, name = kind.partition("-")
            if family == "jigsaw" and self.frames % int(name):
                raise self._error("frames", f"{kind} cuts them into {name} equal clips; give a multiple of {name}")
            fewest = (
                4 * counting.KINDS[kind].frames if family == "counting" else grounding.fewest_frames(name) if family == "grounding" else 6
            )
            if self.frames < fewest:
                raise self._error("frames", f"{kind} needs {fewest} or more")

    @cached_property
    def _framing(self) -> Framing:
        return Framing(self.frames, self.factor, self.min_pixels, self.max_pixels)

    @cached_property
    def library(self) -> Library:
        """The videos that can be used, and those that cannot, with the reasons. TaskError if the split has none."""
        library = self._framing.library(self.videos, self.on_media_error)
        if not library.of_split(self.split):
            shown = "; ".join(f"{path}: {reason}" for path, reason in library.unusable[:3])
            also = f"; {len(library.unusable)} cannot be used, such as {shown}" if shown else ""
            remedy = "; split all takes every video" if library.videos else ""
            raise TaskError(
                f"videossr: videos={list(self.videos)}: none for split {self.split!r}, {len(library.videos)} in all{remedy}{also}"
            )
        return library

    @cached_property
    def own_videos(self) -> tuple[VideoFile, ...]:
        """The split's videos, in the order of their content."""
        return self.library.of_split(self.split)

    @property
    def buckets(self) -> tuple[str, ...]:
        return self.kinds

    def size(self, bucket: str) -> None:
        """None: endless. Each bucket shows every video once before it shows one again."""
        self._check_bucket(bucket)

    def _check_bucket(self, bucket: str) -> None:
        if bucket not in self.kinds:
            raise TaskError(f"videossr: no bucket {bucket!r}; there are {', '.join(self.kinds)}")

    def key(self, index: int) -> TaskKey:
        """Deal a global index (0, 1, ...) to a bucket, so that each block of tasks holds the `weights` by largest remainder."""
        return dealt_key("videossr", self.kinds, self.weights, self.split, self.seed, index)

    def baselines(self) -> dict[str, Baseline]:
        """Bucket -> what answers that do not look at the video earn on average."""
        return {kind: baseline(kind, self.frames) for kind in self.kinds}

    def task(self, key: TaskKey) -> Task:
        """Raises MediaError for a video that cannot be read, TaskError if nothing that can be seen was found to ask about."""
        return self._made(key)[0]

    def stored(self, key: TaskKey) -> StoredTask:
        """The same task, its videos as entries for a tasks.jsonl: file, frame numbers and edits. TaskError for synthetic clips."""
        task, footage, shown = self._made(key)
        if isinstance(footage, SyntheticFile):
            raise TaskError("videossr: synthetic clips lie in no file; write the tasks with their frames")
        entries = [
            {
                "file": footage.path,
                "indices": [footage.indices[place] for place in places],
                "size": list(footage.size),
                "fps": footage.sample_fps,
                **({"edits": shown.edits} if shown.edits else {}),
            }
            for places in shown.clips
        ]
        return StoredTask(task, tuple(entries))

    def _made(self, key: TaskKey) -> tuple[Task, Footage, Shown]:
        self._check_bucket(key.bucket)
        if key.index < 0:
            raise ValueError(f"index must be >= 0; got {key.index}")
        reasons: dict[str, None] = {}
        for attempt in range(ATTEMPTS):
            drawn = (self.version, self.split, self.seed, self.frames, key.bucket, key.index, attempt)
            footage = self._footage(key, attempt)
            shown = self._shown(key.bucket, footage, stream("videossr", *drawn), f"videossr/{digest(*drawn):032x}")
            if isinstance(shown, Shown):
                return self._task(key, footage, shown), footage, shown
            reasons[shown.reason] = None
        raise TaskError(
            f"videossr: {key.bucket}, index {key.index}: {ATTEMPTS} draws gave no sound task: {'; '.join(list(reasons)[:3])}. "
            "Leave this kind out, give other videos, or lower min_change"
        )

    def _footage(self, key: TaskKey, attempt: int) -> Footage:
        """First the video whose turn it is, then any."""
        if not self.videos:
            split = cast(Literal["train", "test"], self.split)
            return self._framing.synthetic(split, self.seed, digest("videossr clip", self.frames, key.bucket, key.index, attempt))
        if attempt:
            rng = stream("videossr other video", self.version, self.split, self.seed, key.bucket, key.index, attempt)
            return self.own_videos[int(rng.integers(len(self.own_videos)))]
        turn, place = divmod(key.index, len(self.own_videos))
        rng = stream("videossr turn", self.version, self.split, self.seed, key.bucket, turn)
        return self.own_videos[int(rng.permutation(len(self.own_videos))[place])]

    def _shown(self, bucket: str, footage: Footage, rng: np.random.Generator, edit_key: str) -> Shown | Unfit:
        frames = footage.read(footage.indices, footage.size)
        family, _, name = bucket.partition("-")
        match family:
            case "grounding":
                return self._grounding(name, footage, frames, rng, edit_key)
            case "counting":
                return self._counting(bucket, footage, frames, rng)
        return self._jigsaw(int(name), footage, frames, rng)

    def _grounding(self, name: str, footage: Footage, frames: np.ndarray, rng: np.random.Generator, edit_key: str) -> Shown | Unfit:
        start, end = grounding.draw_segment(rng, self.frames)
        solution = grounding.answer((start, end), footage.sample_fps)
        span = grounding.span_of(solution)
        if span[0] == span[1]:
            return Unfit(f"{footage.file} is so short that the answer, in tenths of a second, would be {solution}")
        if name.startswith("rotate_") and frames.shape[1] != frames.shape[2]:
            return Unfit(f"{footage.file}: frames of {frames.shape[2]} x {frames.shape[1]} pixels cannot be turned by a quarter")
        op = grounding.OPERATIONS[name]
        if op is None:
            other = self._another(footage, rng)
            if other is None:
                return Unfit("a swap needs two videos")
            edit = swap_edit(other.file, other.indices, start, end - start, edit_key)
        else:
            other, edit = None, perturb_edit(op, start, end - start, edit_key)
        before = _clip(frames, range(len(frames)), footage)
        after = edited(before, [edit], lambda file, indices, size: Media((other or footage).read(indices, size)))
        change = visibility(before, after, start, end - start)
        if change < self.min_change:
            return Unfit(f"{footage.file}: {name} changes pixels by {change:.2f} on average, less than min_change={self.min_change:g}")
        meta = {"kind": "grounding", "span_s": span, "segment": [start, end]}
        question = grounding.question(grounding.CHANGES[name], footage.duration_s)
        return Shown([list(range(len(frames)))], [edit], (after,), question, solution, meta)

    def _another(self, footage: Footage, rng: np.random.Generator) -> Footage | None:
        """Another video than `footage`; None if there is none."""
        if isinstance(footage, SyntheticFile):
            return self._framing.synthetic(footage.split, footage.seed, digest("videossr swap", footage.index))
        others = [video for video in self.own_videos if video.content != footage.content]
        return others[int(rng.integers(len(others)))] if others else None

    def _counting(self, bucket: str, footage: Footage, frames: np.ndarray, rng: np.random.Generator) -> Shown:
        shapes = counting.draw_shapes(rng, frames, counting.KINDS[bucket])
        edit = paste_edit(shapes)
        media = edited(_clip(frames, range(len(frames)), footage), [edit], _no_file)
        numbers = counting.counts(shapes)
        meta = {"kind": "counting", "counts": numbers, "shown": counting.frames_of(shapes)}
        return Shown([list(range(len(frames)))], [edit], (media,), counting.QUESTION, counting.answer(numbers), meta)

    def _jigsaw(self, clips: int, footage: Footage, frames: np.ndarray, rng: np.random.Generator) -> Shown | Unfit:
        order = jigsaw.draw_order(rng, clips)
        change = jigsaw.least_change(frames, clips)
        if change < self.min_change:
            return Unfit(f"{footage.file}: two clips in a row differ by {change:.2f} on average, less than min_change={self.min_change:g}")
        places = jigsaw.frames_of(order, len(frames))
        media = tuple(_clip(frames, own, footage) for own in places)
        meta = {"kind": "jigsaw", "order": order}
        return Shown(places, [], media, jigsaw.question(clips), jigsaw.answer(order), meta)

    def _task(self, key: TaskKey, footage: Footage, shown: Shown) -> Task:
        blind = baseline(key.bucket, self.frames)._asdict()
        meta = shown.meta | {
            "variant": key.bucket,
            "duration_s": footage.duration_s,
            "sample_fps": footage.sample_fps,
            "video": footage.content,
            "baselines": {name: value for name, value in blind.items() if name != "answer"},
        }
        identity = f"videossr-v{self.version}/{self.split}/{self.seed}/{self.frames}-{self._view}/{key.bucket}/{key.index}"
        return Task(identity, self._messages(shown), shown.media, shown.solution, meta)

    @cached_property
    def _view(self) -> str:
        """Short hash of whatever else decides a task."""
        videos = [video.content for video in self.own_videos] if self.videos else ["synthetic"]
        fields = (self.min_pixels, self.max_pixels, self.factor, float(self.min_change), self.system)
        return f"{digest(*fields, *videos) % 16**8:08x}{'-brief' if self.brief else ''}"

    def _messages(self, shown: Shown) -> tuple[Mapping[str, Any], ...]:
        question = BRIEF[shown.meta["kind"]] if self.brief else shown.question
        content = list(_parts(len(shown.clips), question))
        user = {"role": "user", "content": content}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


def baseline(kind: str, frames: int) -> Baseline:
    """What blind answers earn on a kind, with `frames` frames a video."""
    family, _, name = kind.partition("-")
    match family:
        case "grounding":
            return grounding.baseline(frames)
        case "counting":
            return counting.baseline(kind)
    return jigsaw.baseline(int(name))


def _parts(videos: int, question: str) -> Iterator[dict[str, str]]:
    """The prompt: the video, or each clip after its label, then the question."""
    for number in range(1, videos + 1):
        if videos > 1:
            yield {"type": "text", "text": f"Clip {number}"}
        yield {"type": "video"}
    yield {"type": "text", "text": question}


def _clip(frames: np.ndarray, places: Sequence[int], footage: Footage) -> Media:
    """Some of the sampled frames as a video of its own, whose clock starts at 0: a later clip's true seconds would tell its place."""
    return Media(frames[list(places)], np.arange(len(places)) / footage.sample_fps)


def _no_file(file: str, indices: Sequence[int], size: tuple[int, int] | None) -> Media:
    raise AssertionError(f"pasting shapes reads no file, not {file}")
