"""Every `mmrl` and `torchrun` command that the documentation shows, run in order in a folder of its own, in small; and the demo."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.tasks.clips import synthetic_clip
from data_pipelines.video.encode import write_video

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/clips.md",
    "docs/grounding.md",
    "docs/judges.md",
    "docs/lab.md",
    "docs/mazes.md",
    "docs/performance.md",
    "docs/perturbations.md",
    "docs/videossr.md",
)
LESS = {"--n": "20", "--prompt": "64", "--completion": "4", "--num-generations": "2", "--tokens": "4", "--rounds": "1", "--seeds": "0"}
"""Options that say how much work there is, and what a test gives them."""
TWO_STEPS = (
    "trainer.max_steps=2", "trainer.tasks_per_step=4", "trainer.eval_tasks=2", "success={use: 'coin:Coin'}", "trainer.trackers=[]",
    "trainer.log_completions_steps=2",
)  # fmt: skip


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that run mmrl."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("mmrl ", "torchrun "))]


def files(page: str) -> dict[str, str]:
    """What the page says to write: a code block under a line that ends in the file's name and a colon, such as `my/events.txt`:"""
    return dict(re.findall(r"`([\w/.-]+)`:\n\n```\w*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))


def small(command: str, model: Path) -> list[str]:
    """The command's arguments with this interpreter's tools, and less work."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    else:
        words = [sys.executable, "-m", "mmrl.cli", *words[1:]]
    overrides = {"train": (*TWO_STEPS, f"model.path={model}"), "eval": ("eval.tasks=2",), "difficulty": (f"model.path={model}",)}
    overrides["ablate"] = overrides["train"]
    verb = words[words.index("mmrl.cli") + (2 if "tasks" in words else 1)]
    words = [LESS.get(words[n - 1], word) for n, word in enumerate(words)]
    return words + [argument for override in overrides.get(verb, ()) for argument in ("--set", override)]


@pytest.mark.trains
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    Image.effect_noise((90, 60), 50).convert("RGB").save(tmp_path / "photo.png")  # the reader's own, where a page asks for one
    for name in ("a.mp4", "b.mp4"):
        write_video(synthetic_clip("train", 0, 0).frames, tmp_path / name, 4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "recipes"))), "OMP_NUM_THREADS": "1"}
    environment["MMRL_CACHE"] = str(tmp_path / "cache")
    for name, content in files(page).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = commands(page)
    assert found
    for command in found:
        run = subprocess.run(small(command, random_model), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"


def test_no_page_with_commands_is_overlooked() -> None:
    pages = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    shown = [page for page in pages if any("<" not in command for command in commands(page))]  # <name> stands for the reader's own
    assert sorted(shown) == sorted(PAGES)
