"""`mmrl bench step`: its arguments, its gate, its arithmetic, and both sides at sixteen visual tokens."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrl.bench import step
from mmrl.bench.step import find_trl, picture_size, prepare, require_agreement, summary
from mmrl.errors import BenchError


def test_only_trl_is_known():
    with pytest.raises(BenchError, match=r"--against: got 'verl'; known: trl"):
        step.command("verl", 16, 2, 4, 2, 1, None, None)


@pytest.mark.parametrize(("tokens", "size"), [(16, (112, 112)), (64, (224, 224)), (2048, (64 * 28, 32 * 28)), (12, (112, 84))])
def test_the_picture_has_that_many_visual_tokens(tokens, size):
    assert picture_size(tokens) == size


def test_a_number_without_close_factors_is_refused():
    with pytest.raises(BenchError, match="2039 makes a picture of 2039 by 1 tokens"):
        picture_size(2039)


def test_without_trl_the_error_says_how_to_make_an_environment(monkeypatch):
    monkeypatch.delenv("MMRL_TRL_PYTHON", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"python -m venv trl-env\n  trl-env/bin/pip install trl==1.16.0 datasets torch=="):
        find_trl(None)


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BenchError, match=r"no-python' cannot be run \(No such file or directory\)"):
        find_trl(tmp_path / "no-python")


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="this interpreter has TRL")
def test_an_interpreter_without_trl_is_named(monkeypatch):
    monkeypatch.setenv("MMRL_TRL_PYTHON", sys.executable)
    with pytest.raises(BenchError, match="has no TRL; make an environment"):
        find_trl(None)


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    own = {
        "prompt": np.arange(3), "completions": np.ones((2, 2), int), "logps": np.full((2, 2), -1.0), "advantages": np.array([1.0, -1.0]),
        "grad/a": np.array([2.0, -4.0]), "grad/b": np.array([1e-5]),
    }  # fmt: skip
    return own | {name.replace("grad_", "grad/"): value for name, value in changed.items()}


def test_agreement_is_the_largest_difference():
    """grad/a: 0.002 of its largest entry 4; grad/b: 1e-6 of the floor, a thousandth of the largest gradient."""
    theirs = arrays(logps=np.array([[-1.0, -1.00005], [-1.0, -1.0]]), grad_a=np.array([2.0, -4.002]), grad_b=np.array([1.1e-5]))
    gaps = require_agreement(arrays(), theirs)
    assert gaps == pytest.approx({"logps": 5e-5, "advantages": 0.0, "grad": 0.002 / 4.002}, rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": np.arange(4)}, r"different token ids \(prompt"),
        ({"completions": np.zeros((2, 2), int)}, r"different token ids \(completions"),
        ({"logps": np.full((2, 2), -1.0002)}, "the same logps: they differ by 0.0002, the limit is 0.0001"),
        ({"logps": np.full((2, 2), np.nan)}, "the same logps"),
        ({"advantages": np.array([1.0, -0.99])}, "the same advantages"),
        ({"grad_a": np.array([2.0, -4.1])}, "the same grad"),
        ({"grad_c": np.array([1.0])}, "only one side has a gradient of 1 parameters, for example grad/c"),
    ],
)
def test_other_work_voids_the_run(changed, message):
    with pytest.raises(BenchError, match=f"^void: .*{message}"):
        require_agreement(arrays(), arrays(**changed))


def a_round(scale: float, concatenated: float | None = None) -> dict:
    """Three steps, the first a hundred times as long: only the others count."""
    record = {"step": 10 * scale, "generate": 3 * scale, "update": 6 * scale, "logps_forward": 2 * scale}
    result = {"steps": [{k: 100 * v for k, v in record.items()}, record, record], "resident_mb": 100.0, "peak_mb": 100.0 + 50 * scale}
    return result | ({} if concatenated is None else {"concatenated": {"update": [9.0, concatenated], "peak_above_start_mb": 7.0}})


def test_the_summary_in_numbers():
    """Steps of 10 s against 40 and 60 s: TRL's median is 50, the rounds' ratios 4 and 6."""
    got = summary([a_round(1, 12.0), a_round(1, 12.0)], [a_round(4), a_round(6)], a_round(8))
    assert got["seconds"]["mmrl"] == {"step": 10, "generate": 3, "logps_forward": 2, "backward_optimizer": 4, "update": 6, "other": 1}
    assert (got["speedup_step"], got["speedup_step_range"], got["speedup"]["generate"]) == (5.0, [4.0, 6.0], 5.0)
    assert (got["speedup_update_over_concatenated"], got["speedup_step_over_trl_as_shipped"]) == (2.0, 8.0)
    assert got["peak_mb"]["trl"] == {"peak": 400, "above_start": 300}
    assert got["memory_ratio"] == pytest.approx(50 / 300, abs=1e-3)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench-step")
    pictures = prepare(folder, *picture_size(16), 2)
    return step._Work(folder, pictures, 2, 4, os.environ.get("MMRL_TRL_PYTHON", sys.executable))


@pytest.mark.trains
def test_mmrls_side_gives_finite_phases(work):
    result = work.mmrl("steps", work="steps", steps=2)
    assert result["lengths"] == [4]
    assert result["forwarded"] == 1.0
    assert len(result["steps"]) == len(result["concatenated"]["update"]) == 2
    for record in result["steps"]:
        assert 0 < record["logps_forward"] < record["update"]
        assert 0 < record["generate"] < record["step"] - record["update"]


@pytest.mark.trains
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None and "MMRL_TRL_PYTHON" not in os.environ,
    reason="TRL is not installed here, and MMRL_TRL_PYTHON names no interpreter that has it",
)
def test_trls_side_does_the_same_work_and_gives_finite_phases(work):
    mine, theirs = (Path(work.folder) / name for name in ("mmrl.npz", "trl.npz"))
    work.mmrl("check", work="check", steps=2, arrays=str(mine))
    work.trl("check", work="check", steps=2, arrays=str(theirs), completions=str(mine))
    gaps = require_agreement(np.load(mine), np.load(theirs))
    assert max(gaps.values()) < 1e-4
    result = work.trl("steps", work="steps", steps=2)
    assert result["lengths"] == [4]
    for record in result["steps"]:
        assert 0 < record["logps_forward"] < record["update"] < record["step"]


@pytest.mark.trains
def test_a_side_that_fails_shows_its_last_lines(work):
    with pytest.raises(BenchError, match=r"ended with 1; its last lines:\n(.|\n)*KeyError: 'work'"):
        work.mmrl("broken", steps=2)
