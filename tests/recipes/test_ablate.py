"""`mmrl ablate` for real: two variants x two seeds on a model with random weights, stopped and gone on, and with a run that fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl.report import write_report

ROOT = Path(__file__).parents[2]
RECIPE = "configs/methods/demo.yaml"
pytestmark = [pytest.mark.trains, pytest.mark.timeout(600)]


@pytest.fixture
def ablate(random_model, tmp_path):
    """`ablate(*options)` -> the finished process; runs are of two steps, in tmp_path/out."""
    small = (
        f"model.path={random_model}", "trainer.max_steps=2", "trainer.tasks_per_step=4", "trainer.eval_tasks=2", "trainer.eval_steps=0",
        "success={use: 'coin:Coin'}", "trainer.trackers=[]", "trainer.save_steps=1", "trainer.log_completions_steps=1",
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "recipes"))), "OMP_NUM_THREADS": "1"}
    options = [word for override in small for word in ("--set", override)]
    command = [sys.executable, "-m", "mmrl.cli", "ablate", RECIPE, *options, "--out", str(tmp_path / "out")]

    def call(*more: str, wait: bool = True):
        if not wait:
            return subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return call


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without times."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/") and key != "time_s"} for line in read]


def test_two_variants_two_seeds_and_again(ablate, tmp_path):
    out = tmp_path / "out"
    grid = ("--vary", "losses.0.epsilon_high=0.2,0.28", "--seeds", "0,1", "--processes", "2", "--metric", "reward")
    first = ablate(*grid)
    assert first.returncode == 0, first.stderr
    table = json.loads((out / "table.json").read_text())
    assert list(table["variants"]) == ["epsilon_high=0.2", "epsilon_high=0.28"]
    for variant in table["variants"].values():
        assert variant["seeds"] == [0, 1]
        assert variant["metrics"].keys() == {"eval/success", "reward"}
        assert variant["step_s"] > 0
    assert {"commit", "command", "machine", "versions", "run_commits"} <= table.keys()
    assert (out / "table.md").read_text().strip() == first.stdout.strip()
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["eval_success.svg", "reward.svg"]
    runs = sorted(path.name for path in (out / "runs").iterdir())
    assert runs == ["epsilon_high=0.2-seed0", "epsilon_high=0.2-seed1", "epsilon_high=0.28-seed0", "epsilon_high=0.28-seed1"]
    assert write_report(out / "runs" / runs[0]).is_file()

    # One run as a kill in its second step leaves it: its first checkpoint, one more line, not finished.
    half = out / "runs" / runs[2]
    before, kept = lines(half), (out / "runs" / runs[3] / "metrics.jsonl").stat().st_mtime
    shutil.rmtree(half / "checkpoint-2")
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    again = ablate(*grid)
    assert again.returncode == 0, again.stderr
    assert again.stderr.splitlines()[0] == "3 of 4 runs are finished already"
    assert [line for line in again.stderr.splitlines() if line.startswith("started")] == [f"started {runs[2]}"]
    assert lines(half) == before
    assert (out / "runs" / runs[3] / "metrics.jsonl").stat().st_mtime == kept
    repeated = json.loads((out / "table.json").read_text())
    assert [v["metrics"] for v in repeated["variants"].values()] == [v["metrics"] for v in table["variants"].values()]

    other = ablate(*grid, "--set", "optim.learning_rate=0.5")
    assert other.returncode == 2
    assert "holds a run of another recipe: optim.learning_rate was 0.0003, now 0.5" in other.stderr
    unknown = ablate(*grid, "--metric", "rewrd")
    assert unknown.returncode == 2
    assert "--metric rewrd: no run has it; did you mean 'reward'?" in unknown.stderr


def test_a_run_that_fails_is_told_and_the_others_go_on(ablate, tmp_path):
    variants = tmp_path / "variants.yaml"
    variants.write_text("broken: [\"rewards=[{use: 'coin:Broken'}]\"]\n")
    run = ablate("--variants", str(variants), "--seeds", "0")
    assert run.returncode == 2
    assert "mmrl: 1 of the runs failed" in run.stderr
    assert f"broken-seed0: exit code 2, log {tmp_path / 'out' / 'logs' / 'broken-seed0.log'}" in run.stderr
    assert "ZeroDivisionError" in run.stderr.rpartition("broken-seed0: exit code 2")[2]
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["failed"] == ["broken-seed0"]
    assert (table["variants"]["base"]["seeds"], table["variants"]["broken"]["seeds"]) == ([0], [])


def test_a_killed_grid_goes_on(ablate, tmp_path):
    """Killed outright while its first run trains: what it started holds the lock, and once that is gone too the rest is trained."""
    going = ablate("--seeds", "0", "--set", "trainer.max_steps=40", wait=False)
    run = tmp_path / "out" / "runs" / "base-seed0"
    while not (run / "checkpoint-1").exists():
        assert going.poll() is None
        time.sleep(0.1)
    (child,) = Path(f"/proc/{going.pid}/task/{going.pid}/children").read_text().split()
    going.kill()
    going.communicate()
    refused = ablate("--seeds", "0", "--set", "trainer.max_steps=40")
    assert "another mmrl ablate is at work here" in refused.stderr
    os.kill(int(child), signal.SIGKILL)
    reached = max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
    assert reached >= 1
    stat = Path(f"/proc/{child}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie may stay where nobody waits for orphans
        time.sleep(0.1)
    after = ablate("--seeds", "0", "--set", "trainer.max_steps=40")
    assert after.returncode == 0, after.stderr
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
    assert [line["step"] for line in lines(run) if "loss" in line] == list(range(1, 41))
