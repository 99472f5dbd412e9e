"""The command line: what it calls, with what, and how it fails. Commands are run against stand-ins for what they call."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from mmrl import cli
from mmrl.recipe import load_recipe, to_yaml

RECIPE = str(Path(__file__).parents[3] / "configs" / "base" / "maze_tiny.yaml")


@pytest.fixture
def mmrl(monkeypatch, capsys, tmp_path):
    """Runs `mmrl …` in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrl", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a function in the place of module:name; it notes its arguments and returns `answer`."""

    def install(module: str, name: str, answer: object) -> list:
        calls: list = []
        fake = ModuleType(module)
        setattr(fake, name, lambda *args, **kwargs: (calls.append((args, kwargs)), answer)[1])
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return install


def test_show_prints_the_resolved_recipe(mmrl):
    code, out, _ = mmrl("show", RECIPE, "--set", "trainer.seed=7")
    assert code == 0
    assert out == to_yaml(load_recipe(RECIPE, ["trainer.seed=7"]))


def test_train_hands_the_checked_recipe_over_and_prints_the_folder(mmrl, stand_in):
    calls = stand_in("mmrl.trainer", "train", Path("runs/x"))
    code, out, _ = mmrl("train", RECIPE, "--resume", "--max-steps", "2", "--output-dir", "1e3", "--set", "trainer.seed=3")
    assert (code, out) == (0, "runs/x\n")
    (((recipe,), options),) = calls
    assert (recipe.trainer.max_steps, recipe.trainer.output_dir, recipe.trainer.seed) == (2, "1e3", 3)
    assert options == {"resume": True}


def test_eval_hands_target_and_overrides_over(mmrl, stand_in):
    calls = stand_in("mmrl.evaluate", "evaluate_command", None)
    assert mmrl("eval", "runs/x", "--set", "eval.tasks=9")[0] == 0
    assert calls == [(("runs/x", ["eval.tasks=9"]), {})]


def test_report_prints_what_it_wrote(mmrl, stand_in):
    stand_in("mmrl.report", "write_report", Path("runs/x/report.html"))
    assert mmrl("report", "runs/x")[:2] == (0, "runs/x/report.html\n")


def test_tiny_writes_a_model_that_transformers_opens(mmrl, tmp_path):
    code, out, err = mmrl("tiny", "--out", "model", "--steps", "0")
    assert code == 0, err
    assert out.endswith("model\n")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "model").iterdir()}


def test_tasks_maze_and_look(mmrl, stand_in, tmp_path):
    code, out, err = mmrl("tasks", "maze", "--n", "3", "--split", "test", "--moves", "2", "--turns", "0-1", "--out", "mazes")
    assert (code, out) == (0, "mazes: 3 tasks\n"), err
    assert len((tmp_path / "mazes" / "tasks.jsonl").read_text().splitlines()) == 3
    assert mmrl("tasks", "look", "mazes")[:2] == (0, "mazes/contact_sheet.png: 3 tasks\n")
    assert (tmp_path / "mazes" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_tasks_perturb(mmrl, stand_in, tmp_path):
    calls = stand_in("data_pipelines.perturb.sheet", "draw_sheet", 19)
    assert mmrl("tasks", "perturb", "cat.png", "--out", "sheet.png", "--seed", "3")[:2] == (0, "sheet.png: 19 perturbations\n")
    assert calls == [((Path("cat.png"), Path("sheet.png"), 3), {})]


def test_tasks_video_names_what_it_cannot_use(mmrl, tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    for name, count in (("long", 20), ("short", 5)):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "timestamps.json").write_text('{"fps": 5}')
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 56, 56, 3), np.uint8)):
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{number}.png")
    small = ("--frames", "12", "--min-pixels", "3136", "--max-pixels", "3136", "--kinds", "jigsaw-3,counting-easy")
    code, out, error = mmrl("tasks", "video", "in", "--out", "made", *small)
    assert (code, out) == (0, "made: 2 tasks of 1 videos; 1 not used\n")
    assert error.startswith("not used: in/short: the middle 90 % of 5 frames cannot give 12")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video at all")
    code, _, error = mmrl("tasks", "video", "in", "--out", "again", *small)
    assert code == 2
    assert error.startswith("mmrl: in/bad.mp4: ")
    assert not (tmp_path / "again").exists()
    code, out, error = mmrl("tasks", "video", "in", "--out", "again", *small, "--n", "3", "--on-media-error", "skip")
    assert (code, out) == (0, "again: 3 tasks of 1 videos; 2 not used\n")
    assert error.startswith("not used: in/bad.mp4: ")
    assert len((tmp_path / "again" / "tasks.jsonl").read_text().splitlines()) == 3


def test_tasks_clips_and_what_it_refuses(mmrl, tmp_path):
    code, out, err = mmrl("tasks", "clips", "--n", "3", "--kinds", "order, speed", "--levels", "2", "--fps", "4", "--out", "clips")
    assert (code, out) == (0, "clips: 3 tasks\n"), err
    assert '"kind":"order"' in (tmp_path / "clips" / "tasks.jsonl").read_text()
    assert mmrl("tasks", "look", "clips")[:2] == (0, "clips/contact_sheet.png: 3 tasks\n")
    for option, value, said in (("--levels", "2,x", "levels='2,x': give whole numbers"), ("--fps", "3", "fps=3: give one of 1, 2")):
        code, out, err = mmrl("tasks", "clips", "--n", "3", option, value, "--out", "more")
        assert (code, out) == (2, "")
        assert said in err
    assert not (tmp_path / "more").exists()


def test_tasks_footage(mmrl, tmp_path):
    pytest.importorskip("av", reason="PyAV is optional")
    code, out, err = mmrl("tasks", "footage", "--n", "2", "--num-frames", "8", "--height", "56", "--out", "videos")
    assert (code, out) == (0, "videos: 2 videos\n"), err
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["0000000.mp4", "0000001.mp4"]


def test_what_a_user_can_mend_is_one_paragraph_and_exit_code_2(mmrl):
    code, out, err = mmrl("show", RECIPE, "--set", "trainer.max_step=3")
    assert (code, out) == (2, "")
    assert err == "mmrl: --set trainer.max_step=3: trainer.max_step: no such key; did you mean 'max_steps'?\n"


def test_a_bug_keeps_its_traceback(mmrl, monkeypatch):
    broken = ModuleType("mmrl.trainer")
    broken.train = lambda recipe, resume: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmrl.trainer", broken)
    with pytest.raises(ZeroDivisionError):
        mmrl("train", RECIPE)


def test_a_component_in_the_current_folder_is_found(mmrl, tmp_path):
    source = "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n    size: int = 1\n"
    (tmp_path / "my_rewards_here.py").write_text(source)
    code, out, err = mmrl("show", RECIPE, "--set", "success={use: 'my_rewards_here:Mine', size: 5}")
    assert code == 0, err
    assert "use: my_rewards_here:Mine\n  size: 5\n" in out
