"""`mmrl ablate` for real, on a model with random weights: two variants x two seeds, killed outright and gone on, past a run that
fails. Starting a process takes longer than what it trains, so one grid serves all tests."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrl.cli import app
from mmrl.recipe import load_recipe
from mmrl.report import write_report
from mmrl.trainer import train

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs" / "methods" / "demo.yaml")
GRID = ("--vary", "losses.0.epsilon_high=0.2,0.28", "--seeds", "0,1", "--metric", "reward")
RUNS = ["epsilon_high=0.2-seed0", "epsilon_high=0.2-seed1", "epsilon_high=0.28-seed0", "epsilon_high=0.28-seed1"]
COMMAND = [sys.executable, "-m", "mmrl.cli"]
pytestmark = [pytest.mark.trains, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def small(random_model):
    """Overrides for runs of two small steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests" / "recipes")
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests" / "recipes"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield [
            f"model.path={random_model}", "trainer.max_steps=2", "trainer.tasks_per_step=2", "trainer.eval_tasks=2", "trainer.eval_steps=0",
            "success={use: 'coin:Coin'}", "trainer.trackers=[]", "trainer.save_steps=1", "trainer.log_completions_steps=1",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def words(small):
    """`words(out, *options)`: the command's arguments."""
    overrides = [word for override in small for word in ("--set", override)]
    return lambda out, *options: ["ablate", RECIPE, *overrides, "--out", str(out), *options]


@pytest.fixture(scope="module")
def ablate(words):
    """`ablate(out, *options)`: the command in this process; its runs have their own."""
    return lambda out, *options: CliRunner().invoke(app, words(out, *options))


@pytest.fixture(scope="module")
def killed(words, ablate, tmp_path_factory):
    """(the folder of a grid killed outright while its first run was in its second step, what a call said while that run still was)."""
    out = tmp_path_factory.mktemp("grid")
    held = out / "runs" / RUNS[0]
    environment = {**os.environ, "COIN_HOLD": str(held)}
    going = subprocess.Popen([*COMMAND, *words(out, *GRID)], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (held / "checkpoint-1").exists():
            assert going.poll() is None
            time.sleep(0.05)
        going.kill()
        going.wait()
        refused = ablate(out, *GRID)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(going.pid, signal.SIGKILL)  # what it had started
    while is_locked(out):
        time.sleep(0.05)
    return out, refused


@pytest.fixture(scope="module")
def gone_on(killed, ablate):
    """(folder, result): then that run alone is gone on with, after one that fails."""
    out, _ = killed
    (out / "variants.yaml").write_text("base: [\"rewards=[{use: 'coin:Broken'}]\"]\nepsilon_high=0.2: [losses.0.epsilon_high=0.2]\n")
    assert status(out / "runs" / RUNS[0]) == "running"
    return out, ablate(out, "--variants", str(out / "variants.yaml"), "--seeds", "0")


@pytest.fixture(scope="module")
def table(gone_on):
    """table.json as it was then."""
    return json.loads((gone_on[0] / "table.json").read_text())


@pytest.fixture(scope="module")
def grid(gone_on, table, words):
    """(folder, finished process, when the one finished run was written): then the whole grid, two runs at a time."""
    out, _ = gone_on
    written = (out / "runs" / RUNS[0] / "metrics.jsonl").stat().st_mtime
    done = subprocess.run([*COMMAND, *words(out, *GRID, "--processes", "2")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done, written


def status(run: Path) -> str:
    manifest = run / "manifest.json"
    return json.loads(manifest.read_text())["status"] if manifest.exists() else ""


def is_locked(out: Path) -> bool:
    with (out / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without times."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/") and key != "time_s"} for line in read]


def test_what_a_killed_grid_started_keeps_others_out(killed):
    _, refused = killed
    assert "another mmrl ablate is at work here" in str(refused.exception)


def test_a_run_that_fails_is_told_and_the_others_go_on(gone_on, table):
    out, result = gone_on
    told = str(result.exception)
    assert told.startswith(f"1 of the runs failed; {out}/table.md is of the others")
    assert f"base-seed0: exit code 2, log {out / 'logs' / 'base-seed0.log'}" in told
    assert "ZeroDivisionError" in told.rpartition("base-seed0: exit code 2")[2]
    said = [line.partition(" (")[0] for line in result.stderr.splitlines()]
    assert said == ["started base-seed0", "FAILED base-seed0", f"started {RUNS[0]}", f"finished {RUNS[0]}"]
    assert table["failed"] == ["base-seed0"]
    assert {name: variant["seeds"] for name, variant in table["variants"].items()} == {"base": [], "epsilon_high=0.2": [0]}


def test_a_killed_run_goes_on_bit_for_bit(gone_on, small, tmp_path):
    out, _ = gone_on
    one = ["losses.0.epsilon_high=0.2", "trainer.seed=0", f"trainer.output_dir={tmp_path}", "trainer.name=whole"]
    whole, run = train(load_recipe(RECIPE, [*small, *one])), out / "runs" / RUNS[0]
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2]
    assert lines(run) == lines(whole)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (run / "checkpoint-2" / file).read_bytes() == (whole / "checkpoint-2" / file).read_bytes()


def test_two_variants_two_seeds(grid):
    """The one run that is finished is not touched; the others are trained."""
    out, done, written = grid
    said = done.stderr.splitlines()
    assert said[0] == "1 of 4 runs are finished already"
    assert sorted(line for line in said if line.startswith("started")) == [f"started {name}" for name in RUNS[1:]]
    assert (out / "runs" / RUNS[0] / "metrics.jsonl").stat().st_mtime == written
    table = json.loads((out / "table.json").read_text())
    assert list(table["variants"]) == ["epsilon_high=0.2", "epsilon_high=0.28"]
    for variant in table["variants"].values():
        assert variant["seeds"] == [0, 1]
        assert variant["metrics"].keys() == {"eval/success", "reward"}
        assert variant["step_s"] > 0
    assert {"commit", "command", "machine", "versions", "run_commits"} <= table.keys()
    assert (out / "table.md").read_text().strip() == done.stdout.strip()
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["eval_success.svg", "reward.svg"]
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["base-seed0", *RUNS]
    assert {status(out / "runs" / name) for name in RUNS} == {"finished"}
    assert write_report(out / "runs" / RUNS[1]).is_file()


def test_a_finished_grid_is_read_again_and_another_recipe_refused(grid, ablate):
    out, _, _ = grid
    table = json.loads((out / "table.json").read_text())
    again = ablate(out, *GRID)
    assert again.stderr.splitlines() == ["4 of 4 runs are finished already"]
    assert json.loads((out / "table.json").read_text())["variants"] == table["variants"]
    other = ablate(out, *GRID, "--set", "optim.learning_rate=0.5")
    assert "holds a run of another recipe: optim.learning_rate was 0.0003, now 0.5" in str(other.exception)
    unknown = ablate(out, *GRID, "--metric", "rewrd")
    assert "--metric rewrd: no run has it; did you mean 'reward'?" in str(unknown.exception)
