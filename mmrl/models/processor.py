"""Tasks to prompts: chat template, pictures to patches, placeholders expanded. Each task is processed once; the same arrays feed the
engine, the update and every other pass.

A clip of Qwen3-VL is written pair of frames by pair of frames: `<0.2 seconds>`, vision start, its tokens, vision end. The chat template's
own start and end around the clip give way to those, as in Qwen's original processor (transformers 4.57) and in vLLM; transformers 5 leaves
them, which doubles the first start and the last end. Times are the frames' own; transformers has only an even frame rate. Each is
tokenized alone, as vLLM does it, so a clip reads the same after any text.

With `timestamps="interleaved"` a clip of Qwen2.5-VL is written likewise (TimeLens, arXiv:2512.14698): `0.0s`, vision start, the tokens of
two frames, vision end, `1.0s`, and so on; a time is that of the pair's first frame. Each pair is a video of its own with its own row of
`video_grid_thw`, a form of this prompt that both transformers and vLLM can express. The vision tower attends inside a pair only, so its
features stay; the positions no longer count seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mmrl.errors import RecipeError, TaskError
from mmrl.models.patchify import VisionInput
from mmrl.models.positions import VisionLayout, mrope_positions
from mmrl.types import Completion, Media, Prompt, Task


@dataclass(frozen=True, eq=False)
class PromptMaker:
    """Wraps a model's own processor. `layout` says how its vision tokens are laid out."""

    processor: Any
    layout: VisionLayout
    max_prompt_length: int | None = None
    """Longest prompt in tokens; None = no limit. Vision-token counts cannot be cut, so a longer prompt is an error."""
    timestamps: Literal["own", "interleaved"] = "own"
    """How the times of clips are written: "own", as the family does it, or "interleaved", before each frame pair (not for Qwen3-VL)."""
    _texts: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.timestamps == "interleaved" and self.layout.pair_marks is not None:
            raise RecipeError("model.timestamps: got 'interleaved'; this model writes the time before each frame pair by itself: use 'own'")

    @cached_property
    def _pair_marks(self) -> tuple[int, int] | None:
        """Ids before and after each frame pair where pairs are written one by one; None = a clip is one run of tokens."""
        if self.timestamps == "interleaved":
            start, end = self.processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
            return start, end
        return self.layout.pair_marks

    def __call__(self, tasks: Sequence[Task]) -> list[Prompt]:
        """One prompt a task, in order. Raises TaskError, naming the task, for media that do not fit the messages, a picture or clip that
        the processor refuses, and a prompt that is too long."""
        return [self._prompt(task, [self._item(task, medium) for medium in task.media]) for task in tasks]

    def written(self, text: str) -> Completion:
        """`text` as a completion that was given and not sampled: the tokenizer's own ids, then the end of a turn, as in the chat template's
        assistant message."""
        tokenizer = self.processor.tokenizer
        ids = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], np.int64)
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(ids, shown, np.full(len(ids), np.nan, np.float32), "stop", policy_version=0, sampled=False)

    @cached_property
    def _pictures(self) -> VisionInput:
        return VisionInput.of(self.processor.image_processor)

    @cached_property
    def _clips(self) -> VisionInput:
        return VisionInput.of(self.processor.video_processor)

    def _item(self, task: Task, medium: Media) -> dict[str, np.ndarray]:
        """One medium's part of `mm_inputs`."""
        try:
            pixels, grid = (self._clips if medium.is_video else self._pictures)(medium.frames)
        except ValueError as error:
            raise _refused(task, medium, error) from error
        if medium.timestamps_s is None:
            return {"pixel_values": pixels, "image_grid_thw": grid}
        item = {"pixel_values_videos": pixels, "video_grid_thw": grid}
        if self.layout.pair_marks is not None:  # time stands in the text
            return item
        span = float(medium.timestamps_s[-1] - medium.timestamps_s[0])
        seconds_per_frame = span / (len(medium.frames) - 1) if len(medium.frames) > 1 else 1.0
        return item | {"second_per_grid_ts": np.array([seconds_per_frame * self.processor.video_processor.temporal_patch_size])}

    def _prompt(self, task: Task, items: Sequence[Mapping[str, np.ndarray]]) -> Prompt:
        text, short_ids = self._tokenized(task)
        if self.timestamps == "interleaved":
            items = [_pair_by_pair(item) if "video_grid_thw" in item else item for item in items]
        ids = self._expand(task, short_ids, items)
        if self.timestamps == "interleaved":
            text = self._with_times(text, task)
        names = sorted({name for item in items for name in item})
        mm_inputs = {name: _joined([item[name] for item in items if name in item]) for name in names}
        return Prompt(task=task, text=text, ids=ids, mm_inputs=mm_inputs)

    def _tokenized(self, task: Task) -> tuple[str, np.ndarray]:
        """Templated text and its ids with one placeholder a medium; tasks often share their words, so both are kept."""
        key = repr(task.messages)
        if key not in self._texts:
            if len(self._texts) > 4096:
                self._texts.clear()
            text = self.processor.apply_chat_template([dict(m) for m in task.messages], tokenize=False, add_generation_prompt=True)
            ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._texts[key] = (text, np.array(ids, np.int64))
        return self._texts[key]

    def _expand(self, task: Task, ids: np.ndarray, items: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Puts a medium's vision tokens in the place of each placeholder."""
        places = np.flatnonzero(self.layout.is_vision(ids))
        kinds = ["video_grid_thw" if ids[p] == self.layout.video_token_id else "image_grid_thw" for p in places]
        have = [next(name for name in item if name.endswith("_grid_thw")) for item in items]
        if kinds != have:
            asked, brought = [k.split("_")[0] for k in kinds], [k.split("_")[0] for k in have]
            raise TaskError(
                f"task {task.id}: the prompt asks for {asked} and the task brings {brought}; "
                'write one content part {"type": "image"} or {"type": "video"} for each medium, in order'
            )
        pieces, at = [], 0
        for place, medium, item, kind in zip(places, task.media, items, kinds, strict=True):
            tokens = int(item[kind].prod(-1).sum()) // self.layout.merge_size**2
            if medium.is_video and self._pair_marks is not None:
                if tuple(ids[place - 1 : place + 2 : 2]) != self._pair_marks:
                    raise TaskError(
                        f"task {task.id}: the chat template does not put its video between vision start and vision end, which the model's "
                        "frame pairs take the place of; use the template that came with the model"
                    )
                pieces += [ids[at : place - 1], self._frame_pairs(medium, tokens)]
                at = place + 2
            else:
                pieces += [ids[at:place], np.full(tokens, ids[place])]
                at = place + 1
        expanded = np.concatenate([*pieces, ids[at:]])
        if self.max_prompt_length is not None and len(expanded) > self.max_prompt_length:
            raise TaskError(
                f"task {task.id}: its prompt has {len(expanded)} tokens, the limit is {self.max_prompt_length}; "
                "make the picture smaller, shorten the text, or raise the limit"
            )
        if self.layout.is_vision(expanded[-1]):
            raise TaskError(f"task {task.id}: its prompt ends in a picture; the chat template must end in text")
        return expanded

    def _frame_pairs(self, video: Media, tokens: int) -> np.ndarray:
        """int64 ids of a clip of `tokens` vision tokens in all: for each frame pair its time in seconds, then the pair's share of the
        tokens between the marks."""
        assert self._pair_marks is not None
        start, end = self._pair_marks
        times = self._times(video)
        written = self.processor.tokenizer(times, add_special_tokens=False)["input_ids"]
        pair = [start, *[self.layout.video_token_id] * (tokens // len(times)), end]
        return np.concatenate([[*time, *pair] for time in written])

    def _times(self, video: Media) -> list[str]:
        """What is written before each frame pair: Qwen3-VL's mean time, or, interleaved, the time of the first frame. A last frame without
        a partner is a pair, as the processor doubles it."""
        assert video.timestamps_s is not None
        size = self.processor.video_processor.temporal_patch_size
        pairs = np.pad(video.timestamps_s, (0, -len(video.timestamps_s) % size), mode="edge").reshape(-1, size)
        if self.timestamps == "interleaved":
            return [f"{time:.1f}s" for time in pairs[:, 0]]
        return [f"<{time:.1f} seconds>" for time in pairs.mean(1)]

    def _with_times(self, text: str, task: Task) -> str:
        """The templated text with a placeholder for each frame pair, its time before it."""
        assert self._pair_marks is not None
        start, end = self._pair_marks
        one = "".join(self.processor.tokenizer.convert_ids_to_tokens([start, self.layout.video_token_id, end]))
        before, *after = text.split(one)
        clips = ["".join(time + one for time in self._times(medium)) for medium in task.media if medium.is_video]
        return before + "".join(clip + piece for clip, piece in zip(clips, after, strict=True))


def _pair_by_pair(video: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A clip's arrays as those of one video per frame pair; patches already lie pair after pair."""
    ((pairs, height, width),) = video["video_grid_thw"]
    grids = np.tile(np.array([1, height, width], video["video_grid_thw"].dtype), (pairs, 1))
    return {**video, "video_grid_thw": grids, "second_per_grid_ts": np.repeat(video["second_per_grid_ts"], pairs)}


def _refused(task: Task, media: Media, error: ValueError) -> TaskError:
    frames, height, width, _ = media.frames.shape
    what = f"its video of {frames} frames, {height} x {width} pixels," if media.is_video else f"its picture of {height} x {width} pixels"
    return TaskError(f"task {task.id}: {what} is refused by the model's processor ({error}); resize or leave out this task")


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Along the first axis; a single array as it is, because pixels are large."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def prompt_positions(prompt: Prompt, layout: VisionLayout) -> np.ndarray:
    """int64 [3, P] rotary positions of a prompt, read-only; its completion goes on at `max + 1`."""
    mm = prompt.mm_inputs
    grids = [np.asarray(mm[name]).tolist() if name in mm else [] for name in ("image_grid_thw", "video_grid_thw")]
    images, videos = (tuple(tuple(grid) for grid in some) for some in grids)
    return _positions(prompt.ids.tobytes(), layout, images, videos, tuple(mm.get("second_per_grid_ts", ())))


@functools.lru_cache(maxsize=256)
def _positions(
    ids: bytes, layout: VisionLayout, images: tuple[tuple[int, ...], ...], videos: tuple[tuple[int, ...], ...], seconds: tuple[float, ...]
) -> np.ndarray:
    """Kept, because a prompt comes by in every pass, and tasks of one kind often have the same words and the same size of pictures."""
    positions = mrope_positions(np.frombuffer(ids, np.int64), layout, images, videos, seconds)
    positions.flags.writeable = False
    return positions
