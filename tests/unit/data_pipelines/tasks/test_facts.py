"""What annotated mazes and clips say of themselves, against their public data, their pixels, and a judge that reads it."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest

from data_pipelines.tasks.clips import ClipTasks
from data_pipelines.tasks.clips_check import Track, tracks_of
from data_pipelines.tasks.maze import MazeTasks
from mmrl.types import Task
from rewards.checklist import answered
from rewards.rule_judge import RuleJudge, claims

SOURCES = {
    "mazes": (MazeTasks, {"rows": 4, "cols": 6, "moves": "1-6", "turns": "0-3"}),
    "clips": (ClipTasks, {}),
    "clips, wide": (ClipTasks, {"num_frames": 20, "height": 84, "width": 140, "seed": 3}),
}


def first(name: str, count: int, **options) -> list[Task]:
    make, fields = SOURCES[name]
    source = make("train", **fields, **options)
    return [source.task(source.key(i)) for i in range(count)]


@pytest.mark.parametrize("name", SOURCES)
def test_annotations_change_nothing_else(name):
    for plain, full in zip(first(name, 36), first(name, 36, annotated=True), strict=True):
        assert (plain.id, plain.messages, plain.solution) == (full.id, full.messages, full.solution)
        assert all(np.array_equal(one.frames, other.frames) for one, other in zip(plain.media, full.media, strict=True))
        assert {key: value for key, value in full.meta.items() if key not in ("visual_facts", "checklist")} == {
            key: value for key, value in plain.meta.items() if key != "checklist"
        }
        assert "visual_facts" not in plain.meta
        assert json.loads(json.dumps(full.meta)) == full.meta


def test_they_are_not_in_the_repr_that_names_embedded_models():
    assert "annotated" not in repr(MazeTasks("train", annotated=True)) + repr(ClipTasks("train", annotated=True))


@pytest.mark.parametrize("name", SOURCES)
def test_every_item_has_its_answer_once_among_its_options(name):
    tasks = first(name, 90, annotated=True)
    for task in tasks:
        items = task.meta["checklist"]
        assert len(items) <= 8
        assert len({item["question"] for item in items}) == len(items)
        for item in items:
            assert item.keys() == {"question", "answer", "options"}
            assert item["options"].count(item["answer"]) == 1
            assert len(set(item["options"])) == len(item["options"]) >= 3
        assert all(answered(items, "\n".join(f"{n}. {item['answer']}" for n, item in enumerate(items, 1))))
    if name == "mazes":
        assert all(len(task.meta["checklist"]) == 8 for task in tasks)


@pytest.mark.parametrize("name", SOURCES)
def test_the_judge_by_rule_reads_every_fact(name):
    """All facts together are stated, none by a text without them, and each by itself states itself."""
    for task in first(name, 60, annotated=True):
        facts = task.meta["visual_facts"]
        if not facts:
            continue
        assert all(claims(fact) for fact in facts)
        whole, none, *single = RuleJudge()(facts, [" ".join(facts), "I see.", *facts])
        assert set(whole.scores) == {1.0}, (facts, whole)
        assert set(none.scores) == {0.0}
        assert all(verdict.scores[n] == 1 for n, verdict in enumerate(single))


@pytest.mark.parametrize("name", SOURCES)
def test_another_tasks_facts_are_not_taken_for_its_own(name):
    """Whoever describes the wrong picture is right only by chance, and never in the sentences that differ in every claim."""
    tasks = [task for task in first(name, 60, annotated=True) if task.meta["visual_facts"]]
    for one, other in pairwise(tasks):
        known = {claim for fact in other.meta["visual_facts"] for claim in claims(fact)}
        (verdict,) = RuleJudge()(one.meta["visual_facts"], [" ".join(other.meta["visual_facts"])])
        for fact, score in zip(one.meta["visual_facts"], verdict.scores, strict=True):
            assert score <= float(claims(fact) <= known)


def test_a_maze_by_hand():
    source = MazeTasks("train", rows=3, cols=3, annotated=True)
    task = source.task(source.key(0))
    meta = task.meta
    (start, goal), opened = (meta["start"], meta["goal"]), [tuple(map(tuple, pair)) for pair in meta["openings"]]
    assert meta["visual_facts"][:2] == [
        f"{letter} is in row {row + 1}, column {column + 1}." for letter, (row, column) in (("O", start), ("T", goal))
    ]
    assert len(meta["visual_facts"]) == 5
    for letter, (row, column), fact in (("O", start, meta["visual_facts"][3]), ("T", goal, meta["visual_facts"][4])):
        near = {"above": (row - 1, column), "below": (row + 1, column), "left": (row, column - 1), "right": (row, column + 1)}
        for side, cell in near.items():
            walled = tuple(sorted([(row, column), cell])) not in opened
            assert (side in fact) == walled, (letter, side, fact, meta)
    assert meta["checklist"][6]["options"] == ["0", "1", "2", "3"]
    assert meta["checklist"][7]["options"][:5] == ["up", "down", "left", "right", "up, down"]


def test_nothing_of_the_way_is_given_away():
    for task in first("mazes", 40, annotated=True):
        assert not re.search(r"\bmoves?\b|\bway\b|starts", " ".join(task.meta["visual_facts"]))


# --- clips against their pixels -----------------------------------------------------------------------------------------------------------


def seen_at(track: Track, height: int, width: int) -> str:
    """Where a shape is in the first frame in which it is seen, from its pixels."""
    frame = track.begin
    rows, columns = np.flatnonzero(track.mask[frame].any(axis=1)), np.flatnonzero(track.mask[frame].any(axis=0))
    vertical = "top" if rows[-1] < height / 2 else "bottom" if rows[0] >= height / 2 else "middle"
    horizontal = "left" if columns[-1] < width / 2 else "right" if columns[0] >= width / 2 else "middle"
    return vertical if vertical == horizontal else f"{vertical} {horizontal}"


@pytest.mark.parametrize("name", ["clips", "clips, wide"])
def test_clips_say_what_their_pixels_show(name):
    places = 0
    for task in first(name, 90, annotated=True):
        (media,) = task.media
        height, width = media.frames.shape[1:3]
        tracks = tracks_of(media.frames)
        kinds = [shape.split()[1] for shape in tracks]
        for fact in task.meta["visual_facts"]:
            shape = re.search(r"(\w+ (?:circle|square|triangle)) ", fact)
            assert shape, fact
            track = tracks[shape[1]]
            if place := re.search(r"first seen at the (.*)\.", fact):
                places += 1
                assert seen_at(track, height, width) == place[1], (task.id, fact)
            elif "first frame" in fact:
                assert bool(track.shown[0]) == ("is there" in fact), (task.id, fact)
            else:
                assert re.fullmatch(r"An? \w+ \w+ appears in the video\.", fact)
        for item in task.meta["checklist"]:
            words = item["question"]
            if found := re.fullmatch(r"How many (\w+)s appear in the video\?", words):
                assert item["answer"] == str(len(kinds) if found[1] == "shape" else kinds.count(found[1]))
            elif found := re.fullmatch(r"What colour is the (\w+)\?", words):
                assert [f"{item['answer']} {found[1]}"] == [shape for shape in tracks if shape.endswith(found[1])]
            else:
                found = re.fullmatch(r"Where is the (\w+ \w+) when it is first seen\?", words)
                assert found, words
                assert seen_at(tracks[found[1]], height, width) == item["answer"]
    assert places > 100


def test_clips_never_tell_what_is_asked():
    for task in first("clips", 180, annotated=True):
        kind, level, asked = (task.meta[key] for key in ("kind", "level", "asked"))
        told = " ".join([*task.meta["visual_facts"], *(item["question"] for item in task.meta["checklist"])])
        if kind == "counting":
            assert f"How many {asked[0]}s" not in told
            assert f"What colour is the {asked[0]}?" not in told
        else:
            assert not any(f"n {name} appears in" in told or f"A {name} appears in" in told for name in asked)  # the question names it
        if kind == "first_frame":
            assert "first frame" not in told
            if level > 1:
                assert f"{asked[0]} is first seen" not in told
                assert f"{asked[0]} when" not in told


def test_hardly_a_clip_has_nothing_to_tell():
    tasks = first("clips", 180, annotated=True)
    empty = [task.id for task in tasks if not task.meta["visual_facts"] or not task.meta["checklist"]]
    assert len(empty) <= len(tasks) // 10
    assert all("direction-1" in name or "first_frame" in name or "order" in name or "speed" in name for name in empty)
