"""Video tasks in the report: a run's folder written by the trainer's own functions, read by the report's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmrl.errors import MmrlError
from mmrl.metrics import save_media, write_rollouts
from mmrl.report import write_report
from mmrl.report.answers import read_answer, truth_of
from mmrl.report.films import end_s, films_of, thinned
from mmrl.types import Completion, Group, Media, Prompt, Rollout, ScoredGroup, Task
from tests.unit.mmrl.test_report import page_of


def clip(num_frames: int, size: int, fps: float, *, red: tuple[int, int] = (0, 0), hue: int = 0) -> Media:
    """A bright square on its way from left to right; the ground is red in the frames [red)."""
    frames = np.full((num_frames, size, size, 3), (30 + hue, 60, 90), np.uint8)
    frames[slice(*red)] = (150, 40, 40)
    side = size // 4
    for n in range(num_frames):
        left = n * (size - side) // max(1, num_frames - 1)
        frames[n, size // 2 : size // 2 + side, left : left + side] = (240, 220, 120)
    return Media(frames, np.arange(num_frames) / fps)


def picture(media: Media) -> Media:
    return Media(media.frames[:1])


def task(name: str, media: tuple[Media, ...], solution: str, meta: dict) -> Task:
    parts = [{"type": "video" if item.is_video else "image"} for item in media]
    return Task(name, ({"role": "user", "content": [*parts, {"type": "text", "text": "?"}]},), media, solution, meta)


GROUNDING = {"kind": "grounding", "span_s": [2.0, 3.5], "duration_s": 6.0}
SHUFFLED = tuple(clip(8, 48, 2, red=(0, 8) if n == 2 else (0, 0), hue=30 * n) for n in range(6))
UNEVEN = Media(clip(6, 48, 1).frames, np.array([1.0, 2.0, 3.0, 4.0, 8.0, 9.5]))
TASKS = {  # task -> its completions and what they earn
    task("clips/grounding-1/0", (clip(12, 56, 2, red=(4, 7)),), "2.0-3.5", GROUNDING): [
        ("2.0-3.5", 1.0), ("<think>early</think>1.0-2.5", 0.2), ("I do not know", 0.0), ("20-30", 0.0),
    ],
    task("count/0", (clip(48, 144, 4),), "4,3,5", {"kind": "counting", "counts": {"circle": 4, "square": 3, "triangle": 5}}): [
        ("4,3,5", 1.0), ("04, 2, 5", 0.8889), ("4,3", 0.0), ("<think>four", 0.0),
    ],
    task("jigsaw/0", SHUFFLED, "341562", {"kind": "jigsaw"}): [("341562", 1.0), ("431562", 0.8889), ("112345", 0.0), ("it is 341562", 0.0)],
    task("uneven/0", (UNEVEN,), "2-4", {"kind": "grounding", "spans_s": [[2.0, 4.0], [8.0, 9.0]]}): [("8-9", 1.0), ("3 - 5", 0.3333)],
    task("way/0", (clip(8, 48, 2), picture(SHUFFLED[2])), "right", {"kind": "direction"}): [("right", 1.0), ("left", 0.0)],
}  # fmt: skip


class Tokenizer:
    def decode(self, ids):
        return "".join(map(chr, ids))


def scored(problem: Task, answers: list[tuple[str, float]]) -> ScoredGroup:
    rollouts = []
    for text, _ in answers:
        prompt = Prompt(problem, "<video>?", np.array([0]), {})
        ids = np.array([ord(letter) for letter in text])
        rollouts.append(Rollout(prompt, Completion(ids, text, np.full(len(ids), -0.5, np.float32), "stop", 9), prompt))
    rewards = np.array([value for _, value in answers], np.float32)
    return ScoredGroup(Group(problem, tuple(rollouts)), rewards, {"reward": rewards})


def write_video_run(folder: Path, tasks: dict[Task, list[tuple[str, float]]] = TASKS) -> Path:
    """Two steps with the same tasks, and the first task as evaluation example before and after."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("trainer: {max_steps: 20}\n")
    (folder / "manifest.json").write_text('{"name": "video", "status": "finished"}')
    lines = [{"step": step, "time_s": step * 1.0, "reward": step / 20} for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = [scored(problem, answers) for problem, answers in tasks.items()]
    for step in (10, 20):
        success = [np.floor(group.rewards) for group in groups]
        write_rollouts(folder, step, groups, success, {}, {}, Tokenizer())
    (folder / "eval").mkdir()
    for step, n in ((0, 1), (20, 0)):
        examples = [
            {"task_id": problem.id, "meta": problem.meta, "solution": problem.solution, "completion": answers[n][0],
             "success": float(n == 0), **save_media(folder, problem.media)}
            for problem, answers in list(tasks.items())[:3]
        ]  # fmt: skip
        evaluation = {"step": step, "tasks": 3, "success": 1.0 - n, "interval": [0.0, 1.0], "table": [], "examples": examples}
        (folder / "eval" / f"step-{step:06d}.json").write_text(json.dumps(evaluation))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_video_run(tmp_path_factory.mktemp("video") / "run")


@pytest.fixture(scope="module")
def groups(run) -> list[dict]:
    """Of the first step."""
    return page_of(write_report(run))["groups"][: len(TASKS)]


# --- from the run folder to the page ------------------------------------------------------------------------------


def test_a_clip_is_shown_at_its_seconds_with_true_and_predicted_spans(groups):
    (film,) = groups[0]["films"]
    assert film["at"] == [n / 2 for n in range(12)]
    assert film["of"] == len(film["frames"]) == 12
    assert [n for n, inside in enumerate(film["inside"]) if inside] == [4, 5, 6]  # 2.0, 2.5, 3.0: the frame at 3.5 is after the end
    assert groups[0]["truth"] == {"kind": "grounding", "spans": [[2.0, 3.5]], "end": 6.0}
    assert [rollout["answer"] for rollout in groups[0]["rollouts"]] == [
        {"span": [2.0, 3.5], "tiou": 1.0},
        {"span": [1.0, 2.5], "tiou": 0.2},  # 0.5 s of 2.5 s
        {"invalid": "no span"},
        {"span": [20.0, 30.0], "tiou": 0.0},
    ]


def test_a_long_clip_is_thinned_evenly_and_says_so(groups):
    (film,) = groups[1]["films"]
    assert (len(film["frames"]), film["of"]) == (16, 48)
    assert film["at"] == [3 * n / 4 for n in range(16)]


def test_counts_and_orders_are_read_next_to_the_truth(groups):
    assert groups[1]["truth"] == {"kind": "counting", "counts": [4, 3, 5], "names": ["circle", "square", "triangle"]}
    assert [rollout["answer"] for rollout in groups[1]["rollouts"]] == [
        {"counts": [4, 3, 5]},
        {"counts": [4, 2, 5]},
        {"invalid": "2 numbers, not 3"},
        {"invalid": "cut off in its thought"},
    ]
    assert [len(film["frames"]) for film in groups[2]["films"]] == [4] * 6  # of 8
    assert groups[2]["truth"] == {"kind": "jigsaw", "order": "341562"}
    assert [rollout["answer"] for rollout in groups[2]["rollouts"]] == [
        {"order": "341562", "right": 6},
        {"order": "431562", "right": 4},
        {"invalid": "no order of 6 clips"},
        {"invalid": "no order of 6 clips"},
    ]


def test_several_true_spans_are_drawn_and_the_first_is_compared_with(groups):
    """As the rewards do: "8-9" is a true span, and earns nothing. 3-5 shares one second of three with 2-4."""
    assert groups[3]["truth"] == {"kind": "grounding", "spans": [[2.0, 4.0], [8.0, 9.0]], "end": 11.2}  # 9.5 + 8.5 / 5
    assert [rollout["answer"]["tiou"] for rollout in groups[3]["rollouts"]] == [0.0, 0.3333]
    assert groups[3]["films"][0]["inside"] == [False, True, True, False, True, False]


def test_a_task_of_another_kind_has_frames_and_no_axis(groups):
    assert "truth" not in groups[4]
    assert all("answer" not in rollout for rollout in groups[4]["rollouts"])
    assert (len(groups[4]["films"]), len(groups[4]["images"])) == (1, 1)


def test_frames_are_in_the_run_and_in_the_page_once(run):
    """Two steps and two evaluations show the same tasks, and the picture is a clip's frame."""
    page = page_of(write_report(run))
    assert page["groups"][0]["films"] == page["groups"][len(TASKS)]["films"] == page["examples"][0]["films"]
    every = {
        path for row in pq.read_table(run / "rollouts" / "step-000010.parquet").to_pylist() for v in row["videos"] for path in v["frames"]
    }
    assert {f"rollouts/media/{file.name}" for file in (run / "rollouts" / "media").iterdir()} == every
    assert len(page["pictures"]) == len(set(page["pictures"]))


def test_examples_show_clips_and_both_answers(run):
    example = page_of(write_report(run))["examples"][0]
    assert len(example["films"][0]["frames"]) == 12
    assert [attempt["answer"]["tiou"] for attempt in example["attempts"]] == [0.2, 1.0]


def test_an_arm_with_frames_of_its_own_shows_them(tmp_path):
    problem, answers = next(iter(TASKS.items()))
    group = scored(problem, answers[:2])
    media = problem.media[0]
    reversed_clip = Media(media.frames[::-1].copy(), media.timestamps_s)
    plain, other = group.group.rollouts
    other = replace(other, arm="reversed", prompt=replace(other.prompt, task=replace(problem, media=(reversed_clip,))))
    run = write_video_run(tmp_path / "run", {problem: answers})
    write_rollouts(run, 10, [replace(group, group=replace(group.group, rollouts=(plain, other)))], [np.ones(2)], {}, {}, Tokenizer())
    first = page_of(write_report(run))["groups"][0]
    assert "films" not in first["rollouts"][0]
    assert first["rollouts"][1]["films"][0]["frames"] == first["films"][0]["frames"][::-1]


def test_a_rollouts_file_without_clips_is_read(tmp_path):
    """A file of a run from before clips were logged has no such column."""
    run = write_video_run(tmp_path / "run")
    for file in run.glob("rollouts/*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["videos"]), file)
    first = page_of(write_report(run))["groups"][0]
    assert "films" not in first
    assert first["rollouts"][1]["answer"]["tiou"] == 0.2


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "limit", "kept"), [(3, 16, [0, 1, 2]), (6, 3, [0, 2, 4]), (7, 3, [0, 2, 4]), (48, 4, [0, 12, 24, 36])])
def test_thinned(count, limit, kept):
    assert thinned(count, limit) == kept


@pytest.mark.parametrize(
    ("stamps", "duration", "end"),
    [([0.0, 0.5, 1.0], None, 1.5), ([0.0, 0.5], 3, 3.0), ([0.0, 9.0], 3.0, 18.0), ([2.0], None, 3.0), ([], None, 1.0)],
)
def test_the_axis_ends_after_the_last_frame(stamps, duration, end):
    films = [{"at": stamps}] if stamps else []
    assert end_s(films, {"duration_s": duration}) == end


@pytest.mark.parametrize(
    ("text", "span"),
    [("2-3.5", [2, 3.5]), ("from 00:01 to 00:03", [1, 3]), ("</think> It is 1 - 2 seconds.", [1, 2]), ("3-2", None), ("3-3", [3, 3])],
)
def test_spans_are_read_from_numbers_and_clock_times(text, span):
    truth = truth_of(GROUNDING, "", 6.0, "here")
    assert read_answer(truth, text)["answer"].get("span") == span


def test_a_single_count_takes_its_name_from_what_was_asked():
    meta = {"kind": "counting", "asked": ["square"], "counts": {"circle": 4, "square": 3, "triangle": 5}}
    assert truth_of(meta, "3", 6.0, "here") == {"kind": "counting", "counts": [3], "names": ["square"]}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"span_s": [3.0]}, r"here: meta: span_s must be .*; got \[3\.0\]"),
        ({"span_s": [3.0, 2.0]}, r"got \[3\.0, 2\.0\]"),
        ({"span_s": [0.0, "end"]}, r"here: meta: span: expected a number or null, got 'end'"),
        ({"spans_s": []}, r"here: meta: spans_s is empty"),
        ({"spans_s": "2-3"}, r"got '2-3'"),
    ],
)
def test_a_broken_span_is_named(meta, message):
    with pytest.raises(MmrlError, match=message):
        truth_of({"kind": "grounding", **meta}, "", 6.0, "here")


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"frames": ["a.png"], "timestamps_s": []}, r"here: videos\.0 has 1 frames and 0 timestamps"),
        ({"frames": ["a.png"], "timestamps_s": [float("nan")]}, r"here: videos\.0: its timestamps must be finite seconds; got nan"),
    ],
)
def test_broken_clips_are_named(video, message):
    with pytest.raises(MmrlError, match=message):
        films_of([video], "here")


def test_a_view_stands_beside_the_task_and_colours_the_text(tmp_path):
    """The pictures that completions were scored under too, and per token by how much they were likelier with the clean ones."""
    problem, answers = next(iter(TASKS.items()))
    group = scored(problem, answers[:2])
    media = problem.media[0]
    black = replace(problem, media=(Media(np.zeros_like(media.frames), media.timestamps_s),))
    masked = Prompt(black, "<video>?", np.array([0]), {})
    rollouts = tuple(replace(r, views={"masked": masked}) for r in group.group.rollouts)
    lengths = [len(r.completion.ids) for r in rollouts]
    signals = {
        id(r): {
            "old_logps": np.full(n, -1.0, np.float32),
            "old_entropy": np.ones(n, np.float32),
            "view:masked": np.full(n, -3.5, np.float32),
        }
        for r, n in zip(rollouts, lengths, strict=True)
    }
    run = write_video_run(tmp_path / "run", {problem: answers})
    group = replace(group, group=replace(group.group, rollouts=rollouts))
    write_rollouts(run, 10, [group], [np.ones(2)], {}, signals, Tokenizer(), "masked")
    page = page_of(write_report(run))
    first = page["groups"][0]
    assert first["view"]["name"] == "masked"
    (film,) = first["view"]["films"]
    assert len(film["frames"]) == 12
    assert set(film["frames"]).isdisjoint(first["films"][0]["frames"])
    assert all("view" not in rollout for rollout in first["rollouts"])
    assert first["rollouts"][0]["signals"]["dependence"] == [2.5] * lengths[0]
    assert "view" not in page["groups"][1]
