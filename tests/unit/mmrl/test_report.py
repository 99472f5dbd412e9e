"""The report of a small run, written here in the very format that the trainer writes."""

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from mmrl.errors import MediaError, MmrlError
from mmrl.report import write_report
from mmrl.report.charts import POINTS_PER_CURVE, build_charts, means_of_ends, thin
from mmrl.report.pictures import Album
from mmrl.report.rollouts import embed_groups
from mmrl.report.run_folder import read_run
from mmrl.report.signals import token_signals
from mmrl.report.summary import duration, heat_tables, tiles
from mmrl.report.walk import walk

STEPS = 30
ATTACK = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>&lt;b&gt;<!--"

# Two rows, three columns:  S . #   The route is right, down, right; between (0, 1) and (0, 2) is a wall.
#                           # . G
META = {
    "rows": 2,
    "cols": 3,
    "openings": [[[0, 0], [0, 1]], [[0, 1], [1, 1]], [[1, 1], [1, 2]], [[0, 2], [1, 2]], [[0, 0], [1, 0]]],
    "start": [0, 0],
    "goal": [1, 2],
    "moves": 3,
    "turns": 2,
}
SOLUTION = "<|right|><|down|><|right|>"
ROLLOUTS = (  # moves, success
    (("right", "down", "right"), 1.0),
    (("right", "right", "down"), 0.0),  # walks into the wall at its second step
    (("right", "down"), 0.0),  # stops before the goal
    (("down",), 0.0),
)


def write_run(folder: Path, *, steps: int = STEPS, groups_per_step: int = 2, seed: int = 0) -> Path:
    """A finished run: 2 evaluations, a rollouts file every 10 steps with maze groups and, at step 10, a picture question whose
    completion attacks the page."""
    rng = np.random.Generator(np.random.PCG64(seed))
    (folder / "rollouts" / "media").mkdir(parents=True)
    (folder / "eval" / "media").mkdir(parents=True)
    _maze_picture().save(folder / "rollouts" / "media" / "maze.png")
    _maze_picture().save(folder / "eval" / "media" / "maze.png")
    Image.new("RGB", (64, 48), (90, 140, 220)).save(folder / "rollouts" / "media" / "sky.png")
    (folder / "recipe.yaml").write_text(
        "model:\n  path: tiny\nrollout:\n  num_generations: 4\ntrainer:\n  max_steps: 30\n  tasks_per_step: 16  # <b>not bold</b>\n"
    )
    manifest = {
        "name": "grpo-maze",
        "created": "2026-05-01T10:00:00+00:00",
        "finished": "2026-05-01T10:09:30+00:00",
        "commit": "3f2a9c1d5b7e8f60a1b2c3d4e5f60718293a4b5c",
        "versions": {"mmrl": "0.1.0", "torch": "2.14.1", "transformers": "5.16.0"},
        "machine": {"cpu": "x86_64", "cores": 2},
        "seed": 0,
        "command": "mmrl train configs/methods/grpo.yaml --set trainer.max_steps=30",
        "model_parameters": 4213504,
        "status": "finished",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _metrics(rng, steps)))
    for step, success, half in ((0, 0.4, 0.04), (steps, 0.8, 0.03)):
        (folder / "eval" / f"step-{step:06d}.json").write_text(json.dumps(_evaluation(step, success, half, after=step > 0)))
    for step in range(10, steps + 1, 10):
        rows = [row for index in range(groups_per_step) for row in _group_rows(rng, step, index)]
        if step == 10:
            rows += _question_rows(rng, step)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "rollouts" / f"step-{step:06d}.parquet")
    return folder


SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("step", "policy_version")),
        ("task_id", pa.string()),
        ("rollout", pa.int64()),
        *((name, pa.string()) for name in ("arm", "prompt", "completion", "finish", "solution", "meta")),
        ("images", pa.list_(pa.string())),
        ("reward", pa.float64()),
        ("parts", pa.string()),
        ("advantage", pa.float64()),
        ("success", pa.float64()),
        ("tokens", pa.list_(pa.string())),
        *((name, pa.list_(pa.float64())) for name in ("sampling_logps", "logps", "entropy")),
    ]
)


def _maze_picture() -> Image.Image:
    """28 pixels a cell, no margin; a wall is drawn in the cells on both of its sides."""
    image = Image.new("RGB", (META["cols"] * 28, META["rows"] * 28), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, 23, 23), fill="#b7e4c0")
    draw.rectangle((2 * 28 + 4, 28 + 4, 2 * 28 + 23, 28 + 23), fill="#f4b3a5")
    for row in range(META["rows"]):
        for column in range(META["cols"]):
            x, y = column * 28, row * 28
            for (down, right), edge in {
                (0, 1): (x + 27, y, x + 27, y + 27),
                (1, 0): (x, y + 27, x + 27, y + 27),
                (0, -1): (x, y, x, y + 27),
                (-1, 0): (x, y, x + 27, y),
            }.items():
                pair = sorted([[row, column], [row + down, column + right]])
                if pair not in META["openings"]:
                    draw.line(edge, fill="#222222")
    return image


def _metrics(rng: np.random.Generator, steps: int) -> list[dict]:
    lines: list[dict] = [{"step": 0, "time_s": 2.0, "eval/success": 0.4, "eval/success/moves=3": 0.2, "eval/success/moves=10": 0.1}]
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-3 * step / steps)
        noise = rng.normal(0, 0.04)
        lines.append(
            {
                "step": step,
                "time_s": 2.0 + 1.5 * step,
                "reward": 0.3 + 0.5 * rise + noise,
                "reward_std": 0.4 - 0.2 * rise,
                "rewards/maze_walker/mean": 0.2 + 0.6 * rise + noise,
                "rewards/action_format/mean": 0.5 + 0.5 * rise,
                "completions/mean_length": 10.0,
                "completions/clipped_ratio": 0.1 * (1 - rise),
                "entropy": 1.2 - rise + noise,
                "kl": None if step == 7 else 0.02 * rise,
                "clip_ratio/region_mean": 0.01,
                "grad_norm": 0.5 + abs(noise),
                "learning_rate": 1e-5,
                "frac_reward_zero_std": 0.3,
                "loss": noise,
                "success": 0.4 + 0.4 * rise + noise,
                "perf/tasks_s": 0.05,
                "perf/rollout_s": 0.6 + abs(noise),
                "perf/reward_s": 0.05,
                "perf/old_s": 0.1,
                "perf/ref_s": 0.1,
                "perf/update_s": 0.4,
                "perf/step_s": 1.5,
                "kl_term/<b>odd</b>": 1.0 + noise,
            }
        )
    last = {"eval/success": 0.8, "eval/success/moves=3": 0.7, "eval/success/moves=10": 0.5}
    return [*lines, {"step": steps, "time_s": 2.0 + 1.5 * steps + 3, **last}]


def _evaluation(step: int, success: float, half: float, *, after: bool) -> dict:
    table = [
        {"moves": moves, "turns": turns, "n": 100 // moves, "success": max(0.0, success + 0.3 - 0.1 * moves - 0.05 * turns)}
        for moves in range(1, 6)
        for turns in range(min(moves, 3))
    ]
    example = {
        "task_id": "maze-v1/test/0/2x3/moves=3/0",
        "meta": META,
        "solution": SOLUTION,
        "completion": SOLUTION if after else "<think>up?</think><|right|><|right|>",
        "success": float(after),
        "images": ["media/maze.png"],
    }
    return {
        "step": step,
        "tasks": 500,
        "sampling": {"temperature": 0.0},
        "success": success,
        "interval": [success - half, success + half],
        "table": table,
        "examples": [example],
    }


def _row(rng: np.random.Generator, tokens: list[str], **fields) -> dict:
    sampling_logps = -rng.exponential(0.5, len(tokens))
    row = {
        "policy_version": fields["step"] - 1,
        "arm": "plain",
        "finish": "stop",
        "completion": "".join(tokens[:-1]),  # without the end token
        "parts": json.dumps({"maze_walker": fields["success"], "action_format": 1.0}),
        "tokens": tokens,
        "sampling_logps": sampling_logps.tolist(),
        "logps": (sampling_logps + rng.normal(0, 0.01, len(tokens))).tolist(),
        "entropy": None if fields["step"] == 30 else rng.exponential(0.4, len(tokens)).tolist(),
    }
    return row | fields


def _group_rows(rng: np.random.Generator, step: int, index: int) -> list[dict]:
    """Group 0 has the four ROLLOUTS, group 1 solves it four times; at step 30 one reward failed (NaN)."""
    rows = []
    for rollout in range(4):
        moves, success = ROLLOUTS[0] if index == 1 else ROLLOUTS[rollout]
        failed = step == 30 and rollout == 3
        tokens = ["<think>", "\nlook", " right", "\n", "</think>", *(f"<|{move}|>" for move in moves), "<|im_end|>"]
        rows.append(
            _row(
                rng,
                tokens,
                step=step,
                task_id=f"maze-v1/train/0/2x3/moves=3/{step}{index}",
                rollout=rollout,
                prompt="system\nYou solve mazes.\nuser\n<image>Find the way.",
                solution=SOLUTION,
                meta=json.dumps(META),
                images=["rollouts/media/maze.png"],
                reward=math.nan if failed else success,
                advantage=0.0 if index == 1 or failed else success - 0.25,
                success=success,
            )
        )
    return rows


def _question_rows(rng: np.random.Generator, step: int) -> list[dict]:
    return [
        _row(
            rng,
            [ATTACK, " It is", " blue", "<|im_end|>"],
            step=step,
            task_id="sky-7",
            rollout=rollout,
            prompt=f"What colour is it? {ATTACK}",
            solution="blue",
            meta="{}",
            images=["rollouts/media/sky.png"] * 2,
            reward=0.5,
            advantage=0.0,
            success=0.0,
            arm=f"noisy {ATTACK}" if rollout else "plain",
            finish="length" if rollout else "stop",
        )
        for rollout in range(2)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def own_run(tmp_path) -> Path:
    """A run that the test may damage."""
    return write_run(tmp_path / "run")


def page_of(report: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="page">(.*?)</script>', report.read_text(), re.DOTALL)[1])


# --- the page -----------------------------------------------------------------------------------------------------


def test_report_is_one_file_in_the_run_folder_and_may_be_written_again(own_run):
    before = set(own_run.iterdir())
    report = write_report(own_run)
    first = report.read_bytes()
    assert write_report(own_run).read_bytes() == first
    assert set(own_run.iterdir()) - before == {own_run / "report.html"}


def test_page_holds_no_address_and_its_policy_names_the_one_script_by_hash(run):
    text = write_report(run).read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)""", text.replace(ATTACK, "")) == []
    assert "@import" not in text
    assert "url(" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy.replace("&#39;", "'")
    assert "default-src &#39;none&#39;" in policy


def test_text_of_a_model_is_never_markup(run):
    text = write_report(run).read_text()
    assert ATTACK not in text
    assert "<img src=x" not in text
    assert "<b>not bold</b>" not in text  # the recipe's comment
    assert "<b>odd</b>" not in text  # a metric's name
    assert text.count("</script>") == 2
    assert page_of(write_report(run))["groups"][2]["rollouts"][0]["tokens"][0] == ATTACK


def test_groups_carry_paths_signals_and_null_for_nan(run):
    groups = page_of(write_report(run))["groups"]
    assert [(group["step"], len(group["rollouts"])) for group in groups] == [(10, 4), (10, 4), (10, 2), (20, 4), (20, 4), (30, 4), (30, 4)]
    first = groups[0]
    assert first["maze"]["on_picture"] is True
    assert [(rollout["path"][-1], rollout["bump"]) for rollout in first["rollouts"]] == [
        ([1, 2], None),
        ([0, 1], "right"),
        ([1, 1], None),
        ([1, 0], None),
    ]
    assert set(first["rollouts"][0]["signals"]) == {"sampling_logps", "logps", "gap", "entropy"}
    assert set(groups[-1]["rollouts"][0]["signals"]) == {"sampling_logps", "logps", "gap"}  # entropy is null at step 30
    assert groups[-1]["rollouts"][3]["reward"] is None
    assert "maze" not in groups[2]
    assert len(groups[2]["images"]) == 2
    assert groups[2]["images"][0] == groups[2]["images"][1]


def test_a_maze_picture_of_another_size_gets_no_path(own_run):
    """With a margin, or another scale, cells cannot be found on the picture: the page draws the maze itself."""
    Image.new("RGB", (300, 300), "white").save(own_run / "rollouts" / "media" / "maze.png")
    assert page_of(write_report(own_run))["groups"][0]["maze"]["on_picture"] is False


def test_evaluation_examples_are_paired_before_and_after(run):
    (example,) = page_of(write_report(run))["examples"]
    attempts = [(attempt["step"], attempt["success"], attempt["bump"]) for attempt in example["attempts"]]
    assert attempts == [
        (0, 0.0, "right"),
        (30, 1.0, None),
    ]


def test_importing_and_writing_loads_no_torch(own_run):
    code = f"""
import sys
from pathlib import Path
from mmrl.report import write_report
write_report(Path({str(own_run)!r}))
assert not {{"torch", "transformers"}} & set(sys.modules), "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_report_of_a_run_that_has_just_begun(own_run):
    """No line in metrics.jsonl, no evaluation, no rollouts: a page that says so."""
    (own_run / "metrics.jsonl").write_text("")
    for file in [*own_run.glob("eval/*.json"), *own_run.glob("rollouts/*.parquet")]:
        file.unlink()
    manifest = json.loads((own_run / "manifest.json").read_text())
    (own_run / "manifest.json").write_text(json.dumps(manifest | {"status": "running", "finished": None}))
    text = write_report(own_run).read_text()
    assert "status is “running”" in text
    assert "No training step is logged yet." in text
    assert "no evaluation" in text
    assert "No rollouts were logged" in text


def test_a_manifest_may_be_empty(own_run):
    (own_run / "manifest.json").write_text("{}")
    text = write_report(own_run).read_text()
    assert "<h1>run</h1>" in text  # the folder's name
    assert "status is “not recorded”" in text


# --- budgets ------------------------------------------------------------------------------------------------------


def test_groups_that_do_not_fit_are_cut_evenly_and_the_page_says_so(own_run, monkeypatch):
    """Half of what all groups need: every file keeps one, first and last step are there."""
    everything = embed_groups(read_run(own_run).rollout_files, Album(own_run), 10**9)
    need = len(json.dumps(everything.groups))
    monkeypatch.setattr("mmrl.report.page.GROUP_BYTES", need // 2)
    report = write_report(own_run)
    groups = page_of(report)["groups"]
    assert {group["step"] for group in groups} == {10, 20, 30}
    assert len(json.dumps(groups)) <= need // 2
    assert f"{len(groups)} of 7 logged groups are in this page" in report.read_text()


def test_a_group_larger_than_the_budget_is_left_out_and_counted(own_run):
    logged = embed_groups(read_run(own_run).rollout_files, Album(own_run), 100)
    assert (logged.groups, logged.total, logged.rollouts_total) == ([], 7, 26)


def test_a_large_picture_becomes_a_small_jpeg(tmp_path):
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    _, picture = Album(tmp_path).look("noise.png", "here")
    mime, content = picture.uri.split(";base64,")
    assert mime == "data:image/jpeg"
    assert (picture.width, picture.height) == (900, 600)
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (448, 299)


def test_long_curves_become_means_with_gaps_kept():
    series = {step: (None if step < 4 else float(step)) for step in range(2 * POINTS_PER_CURVE)}
    points = thin(series, spread=dict.fromkeys(series, 1.0))
    assert len(points["steps"]) == POINTS_PER_CURVE
    assert points["steps"][:4] == [1, 3, 5, 7]
    assert points["values"][:4] == [None, None, 4.5, 6.5]
    assert points["low"][:4] == [None, None, 3.5, 5.5]


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "cells", "bump"),
    [
        (SOLUTION, ((0, 0), (0, 1), (1, 1), (1, 2)), None),
        ("<|up|><|right|>", ((0, 0),), "up"),  # out of the maze; what follows is not walked
        ("<|right|><|right|>", ((0, 0), (0, 1)), "right"),
        ("<think><|down|></think>\n<|right|>", ((0, 0), (0, 1)), None),  # moves inside the thought do not count
        ("I do not know", ((0, 0),), None),
        ("<think>never ended <|right|>", ((0, 0),), None),
    ],
)
def test_walk(completion, cells, bump):
    found = walk(META, completion)
    assert (found.cells, found.bump) == (cells, bump)


def test_token_signals_by_hand():
    row = {"tokens": ["a", "b"], "sampling_logps": [-1.0, -2.0], "logps": [-1.5, math.nan], "entropy": None}
    assert token_signals(row, "here") == {"sampling_logps": [-1.0, -2.0], "logps": [-1.5, None], "gap": [-0.5, None]}
    with pytest.raises(MmrlError, match=r"here: logps has 1 values for 2 tokens"):
        token_signals(row | {"logps": [-1.5]}, "here")


def test_headline_numbers(run):
    """30 steps of 1.5 s; 30 · 16 tasks · 4 rollouts · 10 tokens = 19,200."""
    by_label = {tile.label: tile.value for tile in tiles(read_run(run))}
    assert by_label["Training time"] == "45 s"
    assert by_label["Steps"] == "30"
    assert by_label["Completion tokens"] == "≈ 19.2 k"
    text = write_report(run).read_text()
    assert "40.0 %" in text
    assert "36.0–44.0 %" in text
    assert "80.0 %" in text
    assert "+40.0 points" in text


def test_means_of_ends_and_duration():
    assert means_of_ends({step: float(step) for step in range(20)}) == (0.5, 18.5)
    assert means_of_ends({1: None, 2: 3.0}) is None
    assert [duration(seconds) for seconds in (45.2, 59.6, 725, 11220)] == ["45 s", "1 min 0 s", "12 min 5 s", "3 h 7 min"]


def test_heat_tables_before_after_and_change(run):
    before, after, change = heat_tables(read_run(run).evaluations)
    assert (before.row_key, before.column_key, before.columns) == ("moves", "turns", ("0", "1", "2"))
    assert [label for label, _ in before.rows] == ["1", "2", "3", "4", "5"]
    one_move = before.rows[0][1]
    assert (one_move[0].text, one_move[0].count, one_move[1]) == ("60", 100, None)  # 0.4 + 0.3 - 0.1; a single move has no turn
    assert after.rows[0][1][0].text == "100"
    assert (change.rows[0][1][0].text, change.rows[0][1][0].shade) == ("+40", "d2")


def test_every_metric_is_drawn_once_and_difficulties_are_in_order(run):
    read = read_run(run)
    named, rest = build_charts(read)
    keys = [curve["key"] for chart in (*named, *rest) for curve in chart["curves"]]
    assert sorted(keys) == sorted(set(read.metrics) - {"time_s", "perf/step_s", "reward_std"})
    by_difficulty = next(chart for chart in named if chart["title"] == "Evaluation by difficulty")
    assert [curve["label"] for curve in by_difficulty["curves"]] == ["moves=3", "moves=10"]
    (success,) = [chart for chart in named if chart["title"] == "Success"]
    assert success["curves"][1]["low"] == [pytest.approx(0.36), pytest.approx(0.77)]


def test_a_resumed_run_keeps_the_later_value(own_run):
    with (own_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time_s": 99.0, "loss": 7.5}) + "\n")
    assert read_run(own_run).metrics["loss"][5] == 7.5


def test_a_task_drawn_twice_in_a_step_stays_two_groups(own_run):
    file = own_run / "rollouts" / "step-000010.parquet"
    table = pq.read_table(file).slice(0, 4)
    pq.write_table(pa.concat_tables([table, table]), file)
    groups = [group for group in page_of(write_report(own_run))["groups"] if group["step"] == 10]
    assert [[rollout["index"] for rollout in group["rollouts"]] for group in groups] == [[0, 1, 2, 3], [0, 1, 2, 3]]


# --- errors -------------------------------------------------------------------------------------------------------


def test_no_run_folder(tmp_path):
    with pytest.raises(MmrlError, match=r"nothing: no such run folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.json", "recipe.yaml"])
def test_missing_file(own_run, name):
    (own_run / name).unlink()
    with pytest.raises(MmrlError, match=rf"{name}: missing"):
        write_report(own_run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "loss": ', r"metrics\.jsonl:2: broken JSON"),
        ("[1]", r"metrics\.jsonl:2: expected a JSON object, got list"),
        ('{"loss": 1}', r'metrics\.jsonl:2: "step" must be an integer, got None'),
        ('{"step": 3, "loss": "high"}', r"metrics\.jsonl:2: loss: expected a number or null, got 'high'"),
    ],
)
def test_broken_metrics_line_is_named(own_run, line, message):
    file = own_run / "metrics.jsonl"
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(MmrlError, match=message):
        write_report(own_run)


def test_a_last_line_cut_off_by_a_kill_is_left_out_and_said(own_run):
    with (own_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')
    assert "Line 33, the last of metrics.jsonl, was cut off" in write_report(own_run).read_text()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": ["rollouts/media/gone.png"]}, MediaError, r"step-000010\.parquet: row 0: picture 'rollouts/media/gone.png' is missing"),
        ({"images": ["../../secret.png"]}, MediaError, r"row 0: picture '\.\./\.\./secret\.png' lies outside the run folder"),
        ({"images": ["recipe.yaml"]}, MediaError, r"recipe\.yaml is no picture"),
        ({"meta": "{"}, MmrlError, r"row 0: meta: broken JSON"),
        ({"parts": "[]"}, MmrlError, r"row 0, rollout 0: parts: expected a JSON object"),
        ({"logps": [0.0]}, MmrlError, r"row 0, rollout 0: logps has 1 values for 9 tokens"),
    ],
)
def test_broken_rollout_is_named(own_run, change, error, message):
    file = own_run / "rollouts" / "step-000010.parquet"
    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | change, *rows[1:]], schema=SCHEMA), file)
    with pytest.raises(error, match=message):
        write_report(own_run)


def test_broken_rollouts_file_is_named(own_run):
    file = own_run / "rollouts" / "step-000020.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["reward", "meta"]), file)
    with pytest.raises(MmrlError, match=r"step-000020\.parquet: no column meta, reward; it has step,"):
        write_report(own_run)
    file.write_bytes(b"PAR1 cut off")
    with pytest.raises(MmrlError, match=r"step-000020\.parquet: no parquet file that can be read"):
        write_report(own_run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": [0.1]}, r"step-000000\.json: interval: expected \[low, high\], got \[0\.1\]"),
        ({"table": [{"moves": 1, "success": 1.0}]}, r'step-000000\.json: table\.0: needs an integer "n"'),
        ({"step": "zero"}, r'"step" and "tasks" must be integers'),
    ],
)
def test_broken_evaluation_is_named(own_run, change, message):
    file = own_run / "eval" / "step-000000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MmrlError, match=message):
        write_report(own_run)
