import json
import pickle
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from math import sqrt

import numpy as np
import pytest

from data_pipelines.tasks import clips
from data_pipelines.tasks.clips import ClipTasks, synthetic_clip
from data_pipelines.tasks.clips_layout import layout_hash
from data_pipelines.tasks.clips_questions import labels, solution
from data_pipelines.tasks.keyed import split_of
from mmrl.errors import TaskError
from mmrl.types import Media, Task, TaskKey
from rewards.exact import ExactMatch


def first(source: ClipTasks, count: int) -> list[Task]:
    return [source.task(source.key(i)) for i in range(count)]


def fingerprint(tasks: list[Task]) -> str:
    """Hash of everything in the tasks, pixels and seconds included."""
    total = sha256()
    for task in tasks:
        total.update(json.dumps([task.id, task.messages, task.solution, task.meta]).encode())
        for media in task.media:
            total.update(repr(media.frames.shape).encode() + media.frames.tobytes() + media.timestamps_s.tobytes())
    return total.hexdigest()[:16]


GOLDEN = {
    "train": (ClipTasks("train"), 90, "380762921233d386"),
    "test, textured": (ClipTasks("test", seed=3, background="textured"), 36, "df9501e90fb8c23b"),
    "long and wide": (ClipTasks("train", seed=1, num_frames=33, height=84, width=140, fps=4, system=""), 18, "70fa4cc301570d1d"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_tasks_and_pixels_are_the_same_for_ever(name):
    """If this fails, an index has changed its meaning: raise ClipTasks.version and write the new hashes here."""
    source, count, expected = GOLDEN[name]
    assert fingerprint(first(source, count)) == expected


def test_a_synthetic_clip_is_the_same_for_ever():
    assert sha256(synthetic_clip("train", 0, 7).frames.tobytes()).hexdigest()[:16] == "87c101e534341d4e"


def test_a_task_does_not_depend_on_what_was_drawn_before():
    source = ClipTasks("train")
    keys = [source.key(i) for i in range(20)]
    there = [source.task(key) for key in keys]
    fresh = pickle.loads(pickle.dumps(ClipTasks("train", kinds=source.kinds[::-1], levels=(3, 1, 2))))
    back = [fresh.task(key) for key in reversed(keys)][::-1]
    assert fingerprint(there) == fingerprint(back)


@pytest.mark.parametrize("kind", clips.KINDS)
def test_tasks_are_sound_and_their_answers_balanced(kind):
    """`task` has the pixels answer each question again and stops at the first that differs. 130 tasks of each of three levels and two
    grounds: each answer comes as often as its labels say, within four standard deviations, so no constant answer earns more."""
    for level, background in ((1, "plain"), (2, "textured"), (3, "plain")):
        source = ClipTasks("train", kinds=(kind,), levels=(level,), background=background)
        seen = Counter(source.task(source.key(i)).solution for i in range(130))
        possible = Counter(solution(kind, level, label, 2) for label in labels(kind, level, 12))
        assert seen.keys() <= possible.keys()
        for answer, ways in possible.items():
            share = ways / possible.total()
            assert abs(seen[answer] - 130 * share) <= 4 * sqrt(130 * share * (1 - share)), (level, answer, seen)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_frames": 8},
        {"num_frames": 64, "fps": 25},
        {"num_frames": 17, "height": 112, "fps": 4},
        {"num_frames": 16, "height": 168, "width": 280, "background": "textured", "fps": 1},
    ],
)
def test_other_sizes_are_sound_too(fields):
    source = ClipTasks("test", seed=5, **fields)
    for task in first(source, 36):
        shape = (source.num_frames, source.height, source.width, 3)
        assert task.media[0].frames.shape == shape
        assert task.media[0].timestamps_s.tolist() == [i / source.fps for i in range(source.num_frames)]


def test_a_layout_belongs_to_one_split_whatever_its_colours():
    for split in ("train", "test"):
        source = ClipTasks(split, seed=11)
        for bucket in source.buckets:
            for index in range(6):
                _, scene = source._scene(*source._asked(bucket), index.to_bytes(4, "little"))
                assert split_of(layout_hash(source.space, scene.shapes)) == split
                assert layout_hash(source.space, scene.shapes) == layout_hash(source.space, scene.shapes[::-1])


def silhouettes(task: Task) -> bytes:
    """Where anything is to be seen: the layout as a model could remember it, colours aside."""
    frames = task.media[0].frames
    red, green, blue = (frames[..., channel] != frames[0, 0, 0, channel] for channel in range(3))
    return np.packbits(red | green | blue).tobytes()


def test_splits_share_no_silhouette_in_the_smallest_bucket(monkeypatch):
    """One circle of one size going one way: so few layouts that the splits would meet, were they not kept apart."""
    monkeypatch.setattr("data_pipelines.tasks.clips_scenes.some_kind", lambda draw: draw() * 0)
    monkeypatch.setattr("data_pipelines.tasks.clips_scenes.some_size", lambda space, draw: draw() * 0 + 13)
    found = {
        (split, seed): {silhouettes(task) for task in first(ClipTasks(split, seed, ("direction",), (1,)), 260)}
        for split, seed in (("train", 0), ("train", 1), ("test", 0), ("test", 1))
    }
    assert len(found["train", 0] & found["train", 1]) > 5
    assert not (found["train", 0] | found["train", 1]) & (found["test", 0] | found["test", 1])


@pytest.mark.parametrize("seed", [0, 1, 63, 64, 1000])
def test_the_ground_tells_seeds_apart(seed):
    """The ground's blue is 16 + (seed - hash of layout and colours) % 64: the same shapes in the same colours lie on another ground
    under another seed, unless the two are equal modulo 64."""
    source = ClipTasks("train", seed=seed)
    for index in range(6):
        key = source.key(index)
        frames = source.task(key).media[0].frames
        number = clips.digest("clips", source.version, "train", seed, 12, 56, 56, *source._asked(key.bucket), key.index)
        _, scene = source._scene(*source._asked(key.bucket), number.to_bytes(16, "little"))
        paint = clips.painted(source.space, scene.shapes, seed, number.to_bytes(16, "little") + b"paint", False)
        assert paint.base == tuple(np.median(frames.reshape(-1, 3), axis=0))
        assert (layout_hash(source.space, scene.shapes, paint.colours) + paint.base[2] - 16 - seed) % 64 == 0


def test_key_deals_each_bucket_once_in_a_block():
    source = ClipTasks("train")
    assert source.buckets[:6] == ("counting-1", "order-1", "direction-1", "speed-1", "grounding-1", "first_frame-1")
    blocks = [[source.key(i) for i in range(start, start + 18)] for start in (0, 18, 36)]
    for n, block in enumerate(blocks):
        assert sorted(key.bucket for key in block) == sorted(source.buckets)
        assert {key.index for key in block} == {n}
    assert len({tuple(key.bucket for key in block) for block in blocks}) == 3


def test_weights_set_the_shares():
    """3 : 1 makes blocks of four."""
    source = ClipTasks("train", kinds=("order", "speed"), levels=(2,), weights=(0.75, 0.25))
    assert Counter(source.key(i).bucket for i in range(4)) == {"order-2": 3, "speed-2": 1}


def test_what_is_in_a_task():
    task = ClipTasks("train", kinds=("grounding",)).task(TaskKey("grounding-3", 0))
    assert [message["role"] for message in task.messages] == ["system", "user"]
    (video, words) = task.messages[1]["content"]
    assert video == {"type": "video"}
    assert json.loads(json.dumps(task.meta)) == task.meta
    assert words["text"] == f"During which seconds do the {' and the '.join(task.meta['asked'])} touch? Answer with start-end."
    assert (task.meta["kind"], task.meta["level"], task.meta["event"], task.meta["duration_s"]) == ("grounding", 3, "touching", 6.0)
    assert task.solution == "-".join(f"{second:.1f}" for second in task.meta["span_s"])
    assert sum(task.meta["counts"].values()) == len(task.meta["shapes"]) == 3
    counting = ClipTasks("train", system="").task(TaskKey("counting-2", 5))
    assert [message["role"] for message in counting.messages] == ["user"]
    assert counting.solution == str(counting.meta["counts"][counting.meta["asked"][0]])


def test_ids_tell_sources_apart():
    sources = [
        ClipTasks("train"),
        ClipTasks("test"),
        ClipTasks("train", seed=1),
        ClipTasks("train", num_frames=14),
        ClipTasks("train", width=84),
        ClipTasks("train", fps=4),
        ClipTasks("train", background="textured"),
        ClipTasks("train", system="Look."),
    ]
    ids = [source.task(TaskKey("order-2", 17)).id for source in sources]
    assert ids[0] == "clips-v1/train/0/12x56x56/fps=2/plain/order-2/17"
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"split": "val"}, r"clips: split='val': give one of train, test"),
        ({"seed": -1}, r"clips: seed=-1: give 0 or more"),
        ({"kinds": ("order", "colour")}, r"clips: kinds=\('order', 'colour'\): give some of counting, order,"),
        ({"kinds": ()}, r"clips: kinds=\(\)"),
        ({"levels": (1, 1)}, r"clips: levels=\(1, 1\): give some of 1, 2, 3, each once"),
        ({"num_frames": 7}, r"clips: num_frames=7: give 8 to 64"),
        ({"num_frames": 65}, r"clips: num_frames=65"),
        ({"height": 60}, r"clips: height=60: give a multiple of 28, 56 to 1120"),
        ({"width": 28}, r"clips: width=28"),
        ({"fps": 3}, r"clips: fps=3: give one of 1, 2, 4, 5, 10, 20, 25"),
        ({"background": "space"}, r"clips: background='space': give one of plain, textured"),
        ({"weights": (1.0, 2.0)}, r"clips: weights=\(1.0, 2.0\): give 18 finite numbers"),
    ],
)
def test_impossible_requests_name_key_value_and_range(fields, named):
    with pytest.raises(TaskError, match=named):
        ClipTasks(**{"split": "train", **fields})


def test_an_unknown_bucket_and_a_negative_index_are_refused():
    source = ClipTasks("train", levels=(1,))
    with pytest.raises(TaskError, match=r"no bucket 'order-2'; there are counting-1, order-1"):
        source.task(TaskKey("order-2", 0))
    with pytest.raises(TaskError, match="no bucket"):
        source.size("order")
    with pytest.raises(ValueError, match="got -1"):
        source.task(TaskKey("order-1", -1))
    with pytest.raises(ValueError, match="got -1"):
        source.key(-1)


def test_a_broken_renderer_is_caught(monkeypatch):
    """Frames shown backwards, and the topmost shape left out: the second program sees it, for every kind."""
    real = clips.render
    for kind in clips.KINDS:
        source = ClipTasks("train", kinds=(kind,), levels=(2,))
        monkeypatch.setattr(
            clips, "render", lambda space, shapes, paint: real(space, shapes[:-1], paint._replace(colours=paint.colours[:-1]))
        )
        with pytest.raises(AssertionError, match="the frames show"):
            source.task(source.key(0))
        monkeypatch.setattr(clips, "render", lambda *scene: real(*scene)[::-1])
        if kind not in ("counting", "speed"):  # these are the same backwards
            with pytest.raises(AssertionError, match=r"the answer is|the event lasts|appear in the frames"):
                first(source, 8)


def test_synthetic_clips_move_and_have_a_beginning():
    for index in range(20):
        clip = synthetic_clip("train", 4, index)
        assert clip.frames.shape == (48, 56, 56, 3)
        assert clip.timestamps_s.tolist() == [i / 2 for i in range(48)]
        change = np.abs(np.diff(clip.frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
        assert change.min() > 1.0, f"clip {index}: frames {change.argmin()} and the next differ by {change.min()} of 255"
        bright = (clip.frames.max(axis=-1) > 150).sum(axis=(1, 2))
        assert bright[-6:].mean() > 1.3 * bright[:6].mean()


def test_synthetic_clips_differ_by_split_seed_and_index_and_refuse_bad_sizes():
    made: list[Media] = [synthetic_clip(*key) for key in (("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("test", 0, 0))]
    assert len({clip.frames.tobytes() for clip in made}) == 4
    assert synthetic_clip("train", 0, 0).frames.tobytes() == made[0].frames.tobytes()
    with pytest.raises(TaskError, match="synthetic clip: width=50"):
        synthetic_clip("train", 0, 0, width=50)
    with pytest.raises(TaskError, match=r"synthetic clip: index=-1, fps=2\.0"):
        synthetic_clip("train", 0, -1)


def test_importing_clips_loads_no_torch_and_no_video_library():
    code = "import sys, data_pipelines.tasks\nprint([n for n in ('torch', 'transformers', 'rewards', 'av') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_answers_are_scored_by_exact_match():
    reward = ExactMatch(answer="text")
    source = ClipTasks("test")
    for index in range(18):
        task = source.task(source.key(index))
        assert reward.value(task, f" {task.solution}\n") == 1.0
        assert reward.value(task, f"The answer is {task.solution}") == 0.0
