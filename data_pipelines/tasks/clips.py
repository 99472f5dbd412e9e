"""Short videos of coloured shapes, with questions about what happens in them: endless, by key, and free of doubt."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from data_pipelines.tasks.clips_check import check_clip
from data_pipelines.tasks.clips_facts import checklist, visual_facts
from data_pipelines.tasks.clips_layout import ASKED, COLOURS, SHAPES, Shape, Space, between, bouncing, layout_hash
from data_pipelines.tasks.clips_questions import EVENTS, FPS, KINDS, LEVELS, Baseline, Label, baseline, labels, question, solution
from data_pipelines.tasks.clips_render import Paint, render
from data_pipelines.tasks.clips_scenes import Scene, stage
from data_pipelines.tasks.keyed import SEED_CLASSES, check_weights, dealt_key, shuffle, split_of, words
from mmrl.errors import TaskError
from mmrl.seeding import digest
from mmrl.types import Media, Task, TaskKey

PATCH = 28
"""Sides are multiples of this: the pixels of one visual token of Qwen2.5-VL, two patches of 14 along each axis."""
LARGEST_SIDE = 1120
FEWEST_FRAMES = 8
MOST_FRAMES = 64
"""Of a clip with a question: slow shapes must still move."""
MOST_UNLABELLED_FRAMES = 1024
ATTEMPTS = 20_000
"""Scenes tried for one task."""

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ClipTasks:
    """Endless questions about short videos of moving shapes, in buckets "counting-1", "order-1", ..., "first_frame-3".

    A task is a pure function of (version, split, seed, num_frames, height, width, bucket, index), the same on every machine. Layouts
    (what is shown where in each frame, colours aside) are split between train and test by their hash. Sources whose seeds differ modulo
    64 share no (layout, colours, ground), whatever their other fields. Every answer is found again in the pixels by a second program.
    """

    split: Split
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    """Of counting, order, direction, speed, grounding and first_frame."""
    levels: tuple[int, ...] = LEVELS
    """Of 1, 2 and 3, the hardest."""
    num_frames: int = 12
    """8 to 64."""
    height: int = 56
    """A multiple of 28, 56 to 1120."""
    width: int = 56
    fps: int = 2
    """1, 2, 4, 5, 10, 20 or 25 frames a second, so that the seconds of an answer have at most two decimals."""
    background: Literal["plain", "textured"] = "plain"
    weights: tuple[float, ...] = ()
    """Share of each bucket in `key`; empty = equal shares. They need not sum to 1."""
    system: str = "Watch the video and answer the question. Write the answer and nothing else."
    """System message; empty = none."""
    annotated: bool = field(default=False, repr=False)
    """Also put into meta what judges and perception prompts need: `visual_facts` and `checklist`. Changes nothing that a model sees; not
    in the repr, by which embedded models know what they were taught."""
    version: ClassVar[int] = 1
    media: ClassVar[str] = "video"
    """What its tasks show."""

    def __post_init__(self) -> None:
        check_source("clips", self.split, self.seed)
        check_space("clips", self.space, MOST_FRAMES)
        for name, allowed in (("kinds", KINDS), ("levels", LEVELS)):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given) or not set(given) <= set(allowed):
                raise TaskError(f"clips: {name}={given}: give some of {', '.join(map(str, allowed))}, each once")
        if self.fps not in FPS:
            raise TaskError(f"clips: fps={self.fps}: give one of {', '.join(map(str, FPS))}")
        if self.background not in ("plain", "textured"):
            raise TaskError(f"clips: background={self.background!r}: give one of plain, textured")
        check_weights("clips", self.weights, self.buckets)

    @property
    def space(self) -> Space:
        return Space(self.num_frames, self.height, self.width)

    @cached_property
    def _buckets(self) -> dict[str, tuple[str, int]]:
        return {f"{kind}-{level}": (kind, level) for level in sorted(self.levels) for kind in self.kinds}

    @property
    def buckets(self) -> tuple[str, ...]:
        """Level by level, easiest first."""
        return tuple(self._buckets)

    def size(self, bucket: str) -> None:
        """None: endless."""
        self._asked(bucket)

    def _asked(self, bucket: str) -> tuple[str, int]:
        if bucket not in self._buckets:
            raise TaskError(f"clips: no bucket {bucket!r}; there are {', '.join(self.buckets)}")
        return self._buckets[bucket]

    def baselines(self) -> dict[str, Baseline]:
        """Bucket -> what answers without a look at the video earn on average, counted exactly."""
        return {bucket: baseline(kind, level, self.num_frames, self.fps) for bucket, (kind, level) in self._buckets.items()}

    def key(self, index: int) -> TaskKey:
        """Deal a global index (0, 1, ...) to a bucket, so that each block of tasks holds the `weights` by largest remainder.

        Blocks are as in the maze source; with equal shares each holds one task of every bucket. The order inside a block is random.
        """
        return dealt_key("clips", self.buckets, self.weights, self.split, self.seed, index)

    def task(self, key: TaskKey) -> Task:
        """The task of a key, checked against its pixels (AssertionError if they say something else)."""
        kind, level = self._asked(key.bucket)
        if key.index < 0:
            raise ValueError(f"index must be >= 0; got {key.index}")
        number = digest("clips", self.version, self.split, self.seed, *self.space, kind, level, key.index)
        label, scene = self._scene(kind, level, number.to_bytes(16, "little"))
        paint = painted(self.space, scene.shapes, self.seed, number.to_bytes(16, "little") + b"paint", self.background == "textured")
        frames = render(self.space, scene.shapes, paint)
        media = Media(frames, np.arange(self.num_frames) / self.fps)
        meta, answer = self._meta(kind, level, label, scene, paint), solution(kind, level, label, self.fps)
        check_clip(media, meta, answer)
        if self.annotated:
            names = [name_of(shape, colour) for shape, colour in zip(scene.shapes, paint.colours, strict=True)]
            seen = (kind, level, self.space, scene.shapes, names, meta["asked"])
            meta |= {"checklist": checklist(*seen), "visual_facts": visual_facts(*seen)}
        return Task(
            id=f"clips-v{self.version}/{self.split}/{self.seed}/{self._view}/{key.bucket}/{key.index}",
            messages=self._messages(question(kind, level, meta["asked"])),
            media=(media,),
            solution=answer,
            meta=meta,
        )

    def _scene(self, kind: str, level: int, key: bytes) -> tuple[Label, Scene]:
        """The label of a key, and the first of its scenes that is sound and of the split."""
        choices = labels(kind, level, self.num_frames)
        label = choices[next(words(key + b"label")) * len(choices) >> 32]
        for attempt in range(ATTEMPTS):
            scene = stage(kind, self.space, level, label, words(key + attempt.to_bytes(4, "little")).__next__)
            if scene and split_of(layout_hash(self.space, scene.shapes)) == self.split:
                return label, scene
        raise TaskError(
            f"clips: no {self.split} scene of {kind}-{level} was found for seed={self.seed}; change height, width or num_frames"
        )

    def _meta(self, kind: str, level: int, label: Label, scene: Scene, paint: Paint) -> dict[str, Any]:
        names = [name_of(shape, colour) for shape, colour in zip(scene.shapes, paint.colours, strict=True)]
        meta: dict[str, Any] = {
            "kind": kind,
            "level": level,
            "asked": [ASKED[label[0]]] if kind == "counting" else [names[i] for i in scene.named],
            "shapes": sorted(names),
            "counts": {shape: sum(name.endswith(shape) for name in names) for shape in ASKED},
            "duration_s": self.num_frames / self.fps,
        }
        if kind == "grounding":
            meta |= {"event": EVENTS[level - 1], "span_s": [frame / self.fps for frame in label]}
        return meta

    @cached_property
    def _view(self) -> str:
        """Size, rate, background, and a short hash of a system message other than the default one."""
        view = f"{self.num_frames}x{self.height}x{self.width}/fps={self.fps}/{self.background}"
        return view if self.system == ClipTasks.system else f"{view}-{digest(self.system) % 16**6:06x}"

    def _messages(self, text: str) -> tuple[dict[str, Any], ...]:
        user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


def listed(name: str, text: str, kind: type[str] | type[int]) -> tuple[Any, ...]:
    """ "1,2" -> (1, 2)."""
    words = [word.strip() for word in text.split(",")]
    if kind is int and not all(word.isdecimal() for word in words):
        raise TaskError(f'clips: {name}={text!r}: give whole numbers with commas between, such as "1,2"')
    return tuple(kind(word) for word in words)


def check_source(name: str, split: str, seed: int) -> None:
    if split not in ("train", "test"):
        raise TaskError(f"{name}: split={split!r}: give one of train, test")
    if seed < 0:
        raise TaskError(f"{name}: seed={seed}: give 0 or more")


def check_space(name: str, space: Space, most_frames: int) -> None:
    if not FEWEST_FRAMES <= space.frames <= most_frames:
        raise TaskError(f"{name}: num_frames={space.frames}: give {FEWEST_FRAMES} to {most_frames}")
    for side in ("height", "width"):
        pixels = getattr(space, side)
        if pixels % PATCH or not 2 * PATCH <= pixels <= LARGEST_SIDE:
            raise TaskError(f"{name}: {side}={pixels}: give a multiple of {PATCH}, {2 * PATCH} to {LARGEST_SIDE}")


def name_of(shape: Shape, colour: int) -> str:
    return f"{COLOURS[colour]} {SHAPES[shape.kind]}"


def painted(space: Space, shapes: tuple[Shape, ...], seed: int, key: bytes, textured: bool) -> Paint:
    """Colours of a scene, each shape another, and its background, whose blue is set by layout, colours and the seed modulo 64: the same
    shapes in the same colours lie on another ground under another seed."""
    draw = words(key).__next__
    colours = list(range(len(COLOURS)))
    shuffle(colours, draw)
    chosen = tuple(colours[: len(shapes)])
    blue = (seed - layout_hash(space, shapes, chosen)) % SEED_CLASSES
    return Paint(chosen, (16 + (draw() >> 26), 16 + (draw() >> 26), 16 + blue), key if textured else b"")


def synthetic_clip(
    split: Split, seed: int, index: int, *, num_frames: int = 48, height: int = 56, width: int = 56, fps: float = 2.0
) -> Media:
    """A video without a question, as raw material: four to seven crosses, ells and tees (no circle, square or triangle) that bounce
    about on a textured ground. Two are there from the start and the others come one by one, so that time has a direction.

    uint8 [num_frames, height, width, 3]; frame i at i / fps seconds. A pure function of its arguments; splits share no layout, seeds
    that differ modulo 64 no (layout, colours, ground). Raises TaskError for a size that cannot be drawn.
    """
    space = Space(num_frames, height, width)
    check_source("synthetic clip", split, seed)
    check_space("synthetic clip", space, MOST_UNLABELLED_FRAMES)
    if index < 0 or not fps > 0:
        raise TaskError(f"synthetic clip: index={index}, fps={fps}: give an index from 0 up and a rate above 0")
    key = digest("synthetic clip", ClipTasks.version, split, seed, *space, index).to_bytes(16, "little")
    for attempt in range(ATTEMPTS):
        draw = words(key + attempt.to_bytes(4, "little")).__next__
        count = between(draw, 4, 7)
        kinds = [between(draw, len(ASKED), len(SHAPES) - 1) for _ in range(count)]
        begins = [0, 0, *((rank * num_frames + between(draw, 0, num_frames // 2)) // (count - 1) for rank in range(1, count - 1))]
        shapes = tuple(bouncing(space, draw, kind, begin, num_frames) for kind, begin in zip(kinds, begins, strict=True))
        if split_of(layout_hash(space, shapes)) == split:
            return Media(render(space, shapes, painted(space, shapes, seed, key + b"paint", True)), np.arange(num_frames) / fps)
    raise AssertionError("one layout in four belongs to the test split")
