from collections import Counter
from itertools import pairwise

import pytest

from data_pipelines.tasks.clips_layout import Space, box_of, clear_frames, near
from data_pipelines.tasks.clips_questions import KINDS, labels
from data_pipelines.tasks.clips_scenes import Scene, stage
from data_pipelines.tasks.keyed import words

SPACE = Space(12, 56, 56)


def scenes(kind: str, level: int, count: int = 60, space: Space = SPACE) -> list[tuple[tuple[int, ...], Scene]]:
    """The first scenes that come off, labels in turn."""
    every, found, attempt = labels(kind, level, space.frames), [], 0
    while len(found) < count:
        label = every[len(found) % len(every)]
        scene = stage(kind, space, level, label, words(b"%d" % attempt).__next__)
        attempt += 1
        if scene:
            found.append((label, scene))
    assert attempt < 40 * count
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_shapes_stay_inside_and_are_clear(kind, level):
    for space in (SPACE, Space(9, 84, 112)):
        for _, scene in scenes(kind, level, 30, space):
            for i, shape in enumerate(scene.shapes):
                assert 0 <= shape.first < shape.end <= space.frames
                assert len(shape.xs) == len(shape.ys) == space.frames
                assert all(0 <= x <= space.width - shape.size for x in shape.xs)
                assert all(0 <= y <= space.height - shape.size for y in shape.ys)
                assert len(clear_frames(scene.shapes, i)) >= space.clear


def test_where_a_shape_starts_says_nothing_of_its_way():
    """Starts lie in the same central part for every way: their mean is the middle of the room, within a quarter of it."""
    for level in (1, 2, 3):
        starts: dict[int, list[float]] = {}
        for label, scene in scenes("direction", level, 480):
            shape = scene.shapes[scene.named[0]]
            starts.setdefault(label[-1], []).append(shape.xs[0] / (56 - shape.size))
            starts.setdefault(label[-1], []).append(shape.ys[0] / (56 - shape.size))
        for places in starts.values():
            assert min(places) >= 1 / 3 - 0.02
            assert sum(places) / len(places) == pytest.approx(0.5, abs=0.02)


def test_the_named_order_and_the_layers_say_nothing_of_the_answer():
    """The fastest of two lies on top, and is named first, half of the times: 200 of 400 within 4 standard deviations of 10."""
    found = [(label[0], scene.named[label[0]]) for label, scene in scenes("speed", 2, 400)]
    assert abs(Counter(option for option, _ in found)[0] - 200) <= 40
    assert abs(Counter(layer for _, layer in found)[0] - 200) <= 40


def test_speeds_keep_their_margins():
    """Level 1 and 2: by the pixels gone in all, 2 and 1.5 times as much (a pixel less for rounding)."""
    for level, ratio in ((1, 2.0), (2, 1.5)):
        for label, scene in scenes("speed", level):
            gone = [sum(abs(path[-1] - path[0]) for path in (scene.shapes[i].xs, scene.shapes[i].ys)) for i in scene.named]
            assert gone[label[0]] >= ratio * gone[1 - label[0]]


def test_meeting_shapes_touch_in_their_span_only_and_keep_off_before_and_after():
    for label, scene in scenes("grounding", 3):
        one, other = (scene.shapes[i] for i in scene.named)
        for frame in range(12):
            touching = label[0] <= frame < label[1]
            assert near(box_of(one, frame), box_of(other, frame), 0 if touching else 56 // 9) == touching


def test_appearances_lie_at_least_two_frames_apart_and_after_the_first():
    for level in (1, 2, 3):
        for label, scene in scenes("order", level):
            begins = [scene.shapes[i].first for i in scene.named]
            ranked = sorted(begins)
            assert ranked[0] >= 1
            assert min(b - a for a, b in pairwise(ranked)) >= 2
            assert begins[label[0]] == ranked[0]
