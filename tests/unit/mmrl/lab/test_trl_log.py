"""TRL's completions: what its GRPOTrainer writes is read, and what it does not write is missed by name.

`completions_00001.parquet` beside this file is one that TRL 1.16 wrote (rewards `brevity` and, with weight 0.5, `vowels`; the solution by
`log_extra`; questions with a picture); the others here are made with its columns.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl.errors import MmrlError, RecipeError, RewardError
from mmrl.lab.replay import open_log, replay_command
from mmrl.lab.trl_log import read_trl_log

FUNCTIONS = """
def brevity(prompts, completions, **columns):
    return [-len(c if isinstance(c, str) else c[0]["content"]) for c in completions]


def exact(completions, solution, **columns):
    return [float((c if isinstance(c, str) else c[0]["content"]) == s) for c, s in zip(completions, solution)]


def level(completions, level, **columns):
    return [float(l) for l in level]
"""


def conversation(text: str, role: str = "assistant"):
    return [{"role": role, "content": text}]


def write(folder: Path, step: int, prompts, completions, **columns) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"completions_{step:05d}.parquet"
    table = {"step": [step] * len(prompts), "prompt": prompts, "completion": completions, **columns}
    pq.write_table(pa.table(table), file)
    return file


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Two groups of three, prompts and completions as texts; `accuracy` and half as much `form` made the advantage (no scaling)."""
    (tmp_path / "trl_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    accuracy, form = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    totals = np.array(accuracy) + 0.5 * np.array(form)
    advantage = (totals.reshape(2, 3) - totals.reshape(2, 3).mean(1, keepdims=True)).ravel()
    write(
        tmp_path / "out" / "completions", 5, ["1 + 1 = "] * 3 + ["2 + 2 = "] * 3, ["2", "<answer>3</answer>", "22", "a", "b", "c"],
        accuracy=accuracy, form=form, advantage=advantage.tolist(),
    )  # fmt: skip
    return tmp_path / "out"


def call(path, *rewards, **options):
    defaults = {"advantage": None, "steps": None, "with_probes": False, "out": None, "num_generations": 3, "logged": ()}
    return replay_command(path, rewards, **(defaults | options))


def test_what_trl_itself_wrote_is_read(tmp_path):
    file = Path(__file__).with_name("completions_00001.parquet")
    call(file, "use=exact_match,answer=text", num_generations=4, logged=["brevity", "vowels=0.5"], out=tmp_path)
    made = json.loads((tmp_path / "table.json").read_text())
    assert (made["groups"], made["rollouts"], made["steps"]) == (2, 8, [1])
    assert made["reproduced"] < 1e-5
    (step,) = open_log(file, num_generations=4).steps
    first = step.groups[0].group
    assert first.task.messages == ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is 2 + 1?"}]},)
    assert (first.task.solution, first.rollouts[0].completion.text) == ("3", " re video\x01 tur")


def test_groups_rewards_and_advantages_are_read(texts):
    (step,) = read_trl_log(texts, 3, {"accuracy": 1.0, "form": 0.5})
    assert (step.step, len(step.groups)) == (5, 2)
    first, second = step.groups
    assert first.rewards.tolist() == [1.0, 0.5, 0.0]
    assert second.rewards.tolist() == [0.5, 0.5, 0.5]
    assert first.advantages.tolist() == pytest.approx([0.5, 0.0, -0.5])
    assert [r.completion.text for r in first.group.rollouts] == ["2", "<answer>3</answer>", "22"]
    assert first.group.rollouts[0].prompt.text == "1 + 1 = "
    assert first.parts["form"].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("path", ["out", "out/completions", "out/completions/completions_00005.parquet"])
def test_a_folder_or_a_file_may_be_named(texts, path):
    assert len(open_log(texts.parent / path, num_generations=3).steps) == 1


def test_texts_are_scored_again(texts):
    """Under `answer_format` the best of the first group is its second; both sides' second group is dead."""
    out = texts / "table"
    call(
        texts,
        "use=answer_format",
        "trl_functions:brevity",
        logged=["accuracy", "form=0.5"],
        advantage="use=grpo,scale_rewards=none",
        out=out,
    )
    made = json.loads((out / "table.json").read_text())
    assert made["reproduced"] < 1e-7
    assert made["logged"]["dead"] == 0.5
    form, brevity = made["candidates"].values()
    assert (form["mean"], form["winner_changes"], form["dead"]) == (pytest.approx(1 / 6), 1.0, 0.5)
    assert brevity["mean"] == pytest.approx(-(1 + 18 + 2 + 3) / 6)
    assert brevity["winner_changes"] == 0.0


def test_wrong_weights_show_in_the_advantages(texts):
    out = texts / "table"
    call(texts, "use=answer_format", advantage="use=grpo,scale_rewards=none", out=out)
    assert json.loads((out / "table.json").read_text())["reproduced"] == pytest.approx(1 / 3)  # of 1, 1, 0: 1/3, 1/3, -2/3


def test_a_conversation_and_columns_of_log_extra(tmp_path, texts):
    prompts = [conversation("Name it.", "user")] * 4
    write(
        tmp_path / "chat", 1, prompts, [conversation(text) for text in ("cat", "dog", "cow", "cat")], accuracy=[1.0, 0.0, None, 0.0],
        solution=["cat", "cat", "dog", "dog"], level=["3", "3", "4", "4"], advantage=[0.7, -0.7, 0.0, 0.0],
    )  # fmt: skip
    (step,) = open_log(tmp_path / "chat", num_generations=2, weights={"accuracy": 1.0}).steps
    assert [group.group.task.solution for group in step.groups] == ["cat", "dog"]
    assert step.groups[1].group.task.meta == {"level": "4"}
    assert np.isnan(step.groups[1].rewards[0])
    assert step.groups[0].group.task.messages == ({"role": "user", "content": "Name it."},)
    out = tmp_path / "table"
    rewards = ("use=exact_match,answer=text", "trl_functions:exact", "trl_functions:level")
    call(tmp_path / "chat", *rewards, num_generations=2, logged=["accuracy"], out=out)
    made = json.loads((out / "table.json").read_text())["candidates"]
    assert [row["mean"] for row in made.values()] == [0.25, 0.25, 3.5]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("use=exact_match,answer=text", "TRL's log has no column 'solution'"),
        ("trl_functions:exact", "TRL's log has no column 'solution'"),
        ("use=maze_reaches", "meta has no 'openings'"),
        ("use=temporal_iou", "meta span_s must be"),
        ("use=overlong,max_completion_length=9,cache=3", "TRL's log has no token ids"),
        ("trl_functions:level", "missing 1 required positional argument: 'level'"),
        ("use=trl,function='trl_functions:brevity'", "prompts are texts; give the function conversational=false"),
    ],
)
def test_what_the_log_lacks_is_named(texts, reward, said):
    with pytest.raises(RewardError, match=f"completions_00005.parquet(?s:.*){said}(?s:.*)log_extra"):
        call(texts, reward)


def test_probes_of_texts(texts):
    text = call(texts, "use=answer_format", with_probes=True)
    assert "judge words" in text
    assert "whole image" not in text
    assert "every option" not in text


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_generations": None}, RecipeError, "give --num-generations"),
        ({"num_generations": 4}, MmrlError, "6 rows are no whole groups of 4"),
        ({"num_generations": 6}, MmrlError, "rows 0 to 5 have different prompts"),
        ({"logged": ["accurate"]}, MmrlError, "no column of numbers 'accurate'; its columns are step, prompt"),
        ({"logged": ["form=half"]}, RecipeError, "--logged form=half"),
        ({"advantage": "use=reinforce_pp"}, RecipeError, "needs the lengths of completions"),
        ({"steps": "6-9"}, MmrlError, "holds a completion of the steps asked for"),
    ],
)
def test_options_that_do_not_fit(texts, options, error, said):
    with pytest.raises(error, match=said):
        call(texts, "use=answer_format", **options)


def test_the_own_rewards_of_trl_have_no_name(texts):
    with pytest.raises(RecipeError, match="does not name its reward functions"):
        call(texts)


def test_a_batch_that_trl_logged_twice_counts_once(texts):
    file = texts / "completions" / "completions_00005.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "step", pa.array([6] * 6)), texts / "completions" / "completions_00006.parquet")
    assert [step.step for step in read_trl_log(texts, 3)] == [5]


def test_a_completion_of_several_messages_is_refused(tmp_path):
    two = [*conversation("call"), *conversation("result", "tool")]
    write(tmp_path, 1, ["a", "a"], [two, two], accuracy=[0.0, 1.0], advantage=[0.0, 0.0])
    with pytest.raises(MmrlError, match="2 messages"):
        list(read_trl_log(tmp_path, 2))
