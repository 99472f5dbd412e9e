"""What loads at once, and what must not load with it: each in a fresh process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = ("numba", "torch", "torchvision", "transformers", "accelerate", "peft", "vllm", "av", "decord", "torchcodec")
LIGHT = [
    f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}".removesuffix(".__init__")
    for package in ("rewards", "data_pipelines")
    for path in sorted((ROOT / package).rglob("*.py"))
] + [
    "mmrl",
    "mmrl.lab.ablate",
    "mmrl.lab.replay",
    "mmrl.catalog",
    "mmrl.cli",
    "mmrl.errors",
    "mmrl.protocols",
    "mmrl.recipe",
    "mmrl.schedules",
    "mmrl.seeding",
    "mmrl.types",
]


def heavy_after(code: str) -> set[str]:
    """Which heavy modules a fresh process has loaded after running `code`."""
    tail = f"\nimport sys; print('loaded:', *(m for m in {HEAVY} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("loaded:")[2].split())


def test_recipes_tasks_and_rewards_load_without_torch():
    assert heavy_after("\n".join(f"import {module}" for module in LIGHT)) == set()


def test_the_probe_sees_what_it_looks_for():
    assert {"torch", "numba"} <= heavy_after("import mmrl.ops, numba")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["show", "configs/base/maze_tiny.yaml"],
        ["train", "--help"],
        ["tasks", "maze", "--help"],
        ["ablate", "--help"],
        ["reward", "replay", "--help"],
    ],
)
def test_a_command_that_only_looks_loads_no_torch(arguments):
    call = f"import sys; sys.argv = ['mmrl', *{arguments!r}]\nfrom mmrl.cli import main\n"
    assert heavy_after(call + "try: main()\nexcept SystemExit as stop: assert not stop.code") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["show", "configs/base/maze_tiny.yaml"]])
def test_a_command_that_only_looks_takes_less_than_a_second(arguments):
    """Best of up to five, so that a busy machine does not fail it."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmrl.cli", *arguments], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 1:
            return
    pytest.fail(f"seconds: {seconds}")
