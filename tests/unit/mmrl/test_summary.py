import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from mmrl.summary import print_summary


def write_evaluation(run: Path, step: int, success: float, table: list[dict[str, float]]) -> None:
    (run / "eval").mkdir(parents=True, exist_ok=True)
    value = {"step": step, "tasks": sum(int(cell["n"]) for cell in table), "success": success, "interval": [0.1, 0.2], "table": table}
    (run / "eval" / f"step-{step:06d}.json").write_text(json.dumps(value))


def printed(run: Path) -> str:
    console = Console(file=StringIO(), width=120)
    print_summary(run, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_rows_are_weighted_by_their_tasks(tmp_path: Path) -> None:
    """One move: 3 of 10 straight on, all 10 of 10 else: (10 * .3 + 10 * 1) / 20 = 65 %, 15 points above the 50 % before."""
    one = {"moves": 1, "turns": 0, "n": 10}
    other = {"moves": 1, "turns": 1, "n": 10}
    write_evaluation(tmp_path, 0, 0.5, [{**one, "success": 0.5}, {**other, "success": 0.5}])
    write_evaluation(tmp_path, 30, 0.65, [{**one, "success": 0.3}, {**other, "success": 1.0}])
    text = printed(tmp_path)
    assert "65.0%" in text
    assert "+15.0" in text
    assert "step 30" in text


def test_a_run_with_one_evaluation_prints_nothing(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 0, 0.5, [{"bucket": "", "n": 4, "success": 0.5}])
    assert printed(tmp_path) == ""
