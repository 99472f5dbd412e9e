"""Whole runs of a tiny untrained model: stopped and resumed, on two processes, with bad input, with gradients that blow up."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmrl import cli
from mmrl import trainer as module
from mmrl.errors import CheckpointError, MmrlError, TaskError
from mmrl.progress import Progressed
from mmrl.recipe import EarlyStopSection, PlateauSection, TrainerSection, load_recipe
from mmrl.trainer import Trainer, train

ROOT = Path(__file__).parents[3]
REWARDS = '''
import os
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Even:
    """1 where the sum of a completion's ids is even, else 0: about half of what a random model writes."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.ids.sum() % 2 == 0) for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Large:
    """The mean id, in thousandths."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([r.completion.ids.mean() / 1000 for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Nan:
    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.full(len(group.rollouts), np.nan, np.float32)


@dataclass(frozen=True)
class FailsOnOneRank:
    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        if os.environ.get("RANK") == "1":
            raise KeyError("the goal is missing")
        return np.zeros(len(group.rollouts), np.float32)


@dataclass(frozen=True)
class Worst:
    """Always 0: nothing is ever solved."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.zeros(len(group.rollouts), np.float32)
'''


@pytest.fixture
def recipe(tmp_path, tiny_folder, monkeypatch):
    """`recipe("trainer.max_steps=2", ...)`: a recipe of four tasks a step in tmp_path/run, with overrides; `recipe.path` is its file."""
    (tmp_path / "strange_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    maze = {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": ""}
    tree = {
        "model": {"path": str(tiny_folder)},
        "tasks": {"train": maze | {"split": "train"}, "eval": maze | {"split": "test"}},
        "rollout": {"num_generations": 4, "max_completion_length": 5},
        "rewards": [{"use": "strange_rewards:Even"}, {"use": "strange_rewards:Large", "weight": 0.5}],
        "optim": {"learning_rate": 3e-3},
        "trainer": {"name": "run", "output_dir": str(tmp_path), "max_steps": 2, "tasks_per_step": 4, "trackers": []},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))

    def load(*overrides):
        return load_recipe(tmp_path / "recipe.yaml", list(overrides))

    load.path = tmp_path / "recipe.yaml"
    return load


def lines(folder):
    """metrics.jsonl without times."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/") and k != "time_s"} for line in read]


def step_lines(folder):
    return [line for line in lines(folder) if "loss" in line]


def last_checkpoint(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def weights(folder, name="model.safetensors"):
    return load_file(last_checkpoint(folder) / name)


def state(folder):
    return json.loads((last_checkpoint(folder) / "trainer_state.json").read_text())


def same_tensors(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def assert_same_run(one, other):
    """Weights, optimizer, sampler, best, evaluations and metrics, bit for bit; times and paths aside."""
    assert last_checkpoint(one).name == last_checkpoint(other).name
    for file in ("model.safetensors", "optimizer.safetensors", "adapter/adapter_model.safetensors"):
        if (last_checkpoint(one) / file).exists():
            assert same_tensors(weights(one, file), weights(other, file)), file
    aside = {"seconds", "metrics_size", "recipe"}
    assert {k: v for k, v in state(one).items() if k not in aside} == {k: v for k, v in state(other).items() if k not in aside}
    assert lines(one) == lines(other)
    files = sorted(path.name for path in one.glob("eval/*"))
    assert files == sorted(path.name for path in other.glob("eval/*"))
    assert all((one / "eval" / name).read_text() == (other / "eval" / name).read_text() for name in files)
    for path in one.glob("rollouts/*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(other / "rollouts" / path.name))


# --- stop and resume --------------------------------------------------------------------------------------------------------------------

DROPOUT = "model.lora={r: 2, dropout: 0.1}"
EVALUATED = ("trainer.eval_steps=3", "trainer.eval_tasks=4", "trainer.save_steps=1")


@pytest.mark.trains
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("update.num_iterations=2", "update.num_mini_batches=2"),
        (DROPOUT, "losses=[{use: clipped_surrogate}, {use: kl, weight: 0.1}]", "trainer.log_completions_steps=2"),
        (*EVALUATED, "tasks.sampler={use: curriculum, threshold: 0.4, window: 4}"),
        (*EVALUATED, "trainer.early_stop={metric: eval/success, patience: 2}", "success={use: 'strange_rewards:Worst'}"),
        ("update.dynamic_sampling={}", "update.kl_in_reward=0.01", "advantage={use: reinforce_pp}"),
    ],
    ids=["plain", "several updates", "lora dropout kl", "curriculum eval", "early stop", "dynamic sampling kl in reward"],
)
def test_three_steps_and_three_more_are_six(recipe, tmp_path, overrides):
    six = train(recipe(*overrides, "trainer.max_steps=6", "trainer.name=six"))
    three = train(recipe(*overrides, "trainer.max_steps=3", "trainer.name=three"))
    assert state(three)["step"] == 3
    train(recipe(*overrides, "trainer.max_steps=6", "trainer.name=three"), resume=True)
    assert state(three)["step"] == 6
    assert len(step_lines(three)) == 6
    assert_same_run(six, three)


@pytest.mark.trains
def test_a_kill_leaves_the_checkpoint_before_it(recipe, tmp_path, monkeypatch):
    """Stopped while checkpoint-3 is being written: its folder is half there, lines of step 3 are in metrics.jsonl."""
    whole = train(recipe("trainer.max_steps=4", "trainer.save_steps=1", "trainer.name=whole"))

    class Killed(BaseException):
        pass

    written = module.ckpt.save_file

    def killed_at_three(tensors, path):
        if ".checkpoint-3.part" in str(path):
            raise Killed
        written(tensors, path)

    monkeypatch.setattr(module.ckpt, "save_file", killed_at_three)
    with pytest.raises(Killed):
        train(recipe("trainer.max_steps=4", "trainer.save_steps=1"))
    run = tmp_path / "run"
    assert (run / ".checkpoint-3.part").exists()
    assert last_checkpoint(run).name == "checkpoint-2"
    assert len(step_lines(run)) == 3
    (run / ".checkpoint-0.gone").mkdir()  # as if it had been killed while it deleted one
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    train(recipe("trainer.max_steps=4", "trainer.save_steps=1"), resume=True)
    assert not list(run.glob(".*"))
    assert_same_run(whole, run)


@pytest.mark.trains
def test_resume_without_a_checkpoint_starts_from_the_beginning(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    (tmp_path / "run" / "manifest.json").write_text('{"created": "then"}')
    run = train(recipe(), resume=True)
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert json.loads((run / "manifest.json").read_text())["created"] == "then"


@pytest.mark.trains
def test_a_finished_run_stays_as_it_is(recipe):
    """By max_steps; and one that early_stop ended does not go on because max_steps is not reached."""
    stop = "trainer.early_stop={metric: reward, patience: 9, threshold: 0.0}"
    run = train(recipe(stop, "trainer.max_steps=5"))
    assert state(run)["step"] == 1
    before = {p: p.read_bytes() for p in run.glob("checkpoint-*/*") if p.is_file()}
    train(recipe(stop, "trainer.max_steps=5"), resume=True)
    assert {p: p.read_bytes() for p in run.glob("checkpoint-*/*") if p.is_file()} == before
    train(recipe("trainer.max_steps=2"), resume=True)  # without the rule it goes on
    assert state(run)["step"] == 2


@pytest.mark.trains
def test_resume_refuses_another_recipe_a_shorter_run_and_damage(recipe):
    run = train(recipe())
    with pytest.raises(CheckpointError, match=r"trainer.seed: was 0, now 1"):
        train(recipe("trainer.seed=1"), resume=True)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: is past trainer.max_steps, which is 1; raise it to 2 or more"):
        train(recipe("trainer.max_steps=1"), resume=True)
    weights_file = last_checkpoint(run) / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        train(recipe(), resume=True)


@pytest.mark.trains
def test_checkpoints_best_and_last_are_kept(recipe, tmp_path, monkeypatch):
    """Success 0.1, 0.4, 0.9, 0.2, 0.3 at steps 0, 2, 4, 6, 8: best is step 4; of the others the newest one is kept."""
    found = {0: 0.1, 2: 0.4, 4: 0.9, 6: 0.2, 8: 0.3}

    def measured(self):
        return {"eval/success": found[self.state.step]}

    monkeypatch.setattr(Trainer, "_measured", measured)
    run = train(recipe("trainer.max_steps=8", "trainer.eval_steps=2", "trainer.eval_tasks=4", "trainer.save_steps=2",
                       "trainer.save_total_limit=1"))  # fmt: skip
    assert json.loads((run / "best.json").read_text()) == {"step": 4, "value": 0.9}
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.trains
def test_a_kill_right_after_the_last_checkpoint_leaves_nothing_undone(recipe, monkeypatch):
    changes = ("trainer.max_steps=3", "trainer.save_steps=1", "trainer.save_total_limit=1", "trainer.eval_steps=1", "trainer.eval_tasks=4")
    follow = Trainer._follow_checkpoint

    def killed_at_the_end(self):
        if self.state.step == 3:
            raise KeyboardInterrupt
        follow(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_follow_checkpoint", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(*changes))
    run = train(recipe(*changes), resume=True)
    best = json.loads((run / "best.json").read_text())["step"]
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (best, 3)}
    assert best == json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["best"]["step"]


@pytest.mark.trains
def test_killed_and_resumed_processes_end_as_the_one_left_alone(tmp_path):
    """The whole experiment of scripts/kill_test.py, with two kills."""
    out = tmp_path / "kills.json"
    command = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "2", "--steps", "4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["kills"], result["equal"]) == (2, True)


# --- two processes ----------------------------------------------------------------------------------------------------------------------


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


TWO = {
    "batch": (
        "advantage={use: grpo, scale_rewards: batch}",
        "update.num_mini_batches=2",
        "losses=[{use: clipped_surrogate}, {use: kl, weight: 0.1}]",
    ),
    "reinforce": (
        "advantage={use: reinforce_pp}",
        "update.kl_in_reward=0.05",
        "tasks.sampler={use: curriculum, threshold: 0.3, window: 4}",
    ),
    "dynamic": (
        "update.dynamic_sampling={low: 0.3, high: 0.7}",
        "trainer.eval_tasks=4",
        "trainer.eval_steps=2",
        "trainer.early_stop={metric: eval/success, patience: 9}",
    ),
    "views": (
        "views={masked: {use: patch_mask}, noisy: {use: vogue_view}}",
        "losses=[{use: clipped_surrogate}, {use: perception, weight: 0.05}, {use: sampled_nll, view: masked, weight: 0.05}]",
        "shaping=[{use: vogue, mode: released, view: noisy}]",
        "update.num_mini_batches=2",
        "trainer.collapse={term: perception, window: 1, max_growth: 0.5, factor: 0.5}",
    ),
    "arms": (
        "rollout.strategy={use: noisy_rollout, perturbation: {use: diffusion_noise, step: 500}, noisy_generations: 2}",
        "update.num_mini_batches=2",
        "trainer.arm_grad_norm_steps=2",
    ),
}
SMOOTH = "optim.adam_epsilon=1e-3"
"""With AdamW's usual 1e-8 a gradient that is 0 but for rounding moves a weight by the whole learning rate."""
WORKER = """
import json, sys
from accelerate import Accelerator
from mmrl.recipe import load_recipe
from mmrl.trainer import train

Accelerator.end_training = lambda self: None  # it would end the process group, which the next run needs
for overrides in json.loads(sys.argv[2]):
    train(load_recipe(sys.argv[1], overrides))
"""


def torchrun(tmp_path, *arguments, timeout=150):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun then ends its workers, which have sessions of their own
        process.wait(60)
        raise
    return process.returncode, out, err


@pytest.mark.trains
def test_two_processes_learn_what_one_does(recipe, tmp_path):
    """Weights within 1e-6, metrics within 1e-5 (their sums run in another order), for everything that looks at the whole batch."""
    (tmp_path / "worker.py").write_text(WORKER)
    common = ("trainer.max_steps=3", "rollout.max_completion_length=4", SMOOTH)
    pairs = json.dumps([[*overrides, *common, f"trainer.name=two-{name}"] for name, overrides in TWO.items()])
    code, _, err = torchrun(tmp_path, "worker.py", str(recipe.path), pairs)
    assert code == 0, err
    for name, overrides in TWO.items():
        one, two = train(recipe(*overrides, *common, f"trainer.name=one-{name}")), tmp_path / f"two-{name}"
        before, after = weights(one), weights(two)
        assert max(float((value - after[key]).abs().max()) for key, value in before.items()) < 1e-6, name
        assert state(one)["sampler"] == state(two)["sampler"]
        assert len(lines(one)) == len(lines(two))
        for a, b in zip(lines(one), lines(two), strict=True):
            assert a.keys() == b.keys()
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5, nan_ok=True), name


@pytest.mark.trains
def test_a_reward_that_fails_on_one_process_ends_all_of_them_with_its_message(recipe, tmp_path):
    start = "import sys; from mmrl import cli; sys.argv[0] = 'mmrl'; cli.main()"
    (tmp_path / "start.py").write_text(start)
    code, _, err = torchrun(
        tmp_path, "start.py", "train", str(recipe.path), "--set", "rewards=[{use: 'strange_rewards:FailsOnOneRank'}]", timeout=100
    )
    assert code != 0
    assert "KeyError: 'the goal is missing'" in err
    assert "mmrl: 4 of the step's 8 rollouts" in err  # its first group is enough to know
    assert "mmrl: process 1: 4 of the step's 8 rollouts" in err  # what the healthy process says


# --- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(recipe, tmp_path, monkeypatch, capsys):
    """`refused(message, *overrides)`: `mmrl train` ends with exit code 2 and this message, before the model is loaded."""

    def no_model(*arguments):
        raise AssertionError("the model was loaded")

    def run(message, *overrides, loads=False):
        if not loads:
            monkeypatch.setattr(module, "load_policy", no_model)
        arguments = [item for override in overrides for item in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["mmrl", "train", str(recipe.path), *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        assert message in err

    return run


def test_an_existing_run_is_not_overwritten(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    refused("a run is there already; go on with --resume")


def test_an_empty_data_set_is_refused(refused, tmp_path):
    (tmp_path / "tasks.jsonl").write_text("")
    refused("tasks.jsonl", f"tasks.train={{use: jsonl, path: {tmp_path}}}")


def test_tasks_that_cannot_be_dealt_evenly_are_refused(refused):
    refused("make it a multiple of 3", "update.num_mini_batches=3")


def test_a_broken_checkpoint_is_refused_on_the_command_line(recipe, refused, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "checksums.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["mmrl", "train", str(recipe.path), "--resume"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "checksums.json: cannot be read" in capsys.readouterr().err


def test_an_unknown_tracker_is_refused(refused):
    refused("trainer.trackers", "trainer.trackers=[tensorbord]")


@pytest.mark.trains
def test_a_reward_that_is_never_a_number_is_refused(refused):
    refused("gave NaN (not scored) for all", "rewards=[{use: 'strange_rewards:Nan'}]", loads=True)


@pytest.mark.trains
def test_a_misspelt_metric_of_early_stop_is_refused(refused):
    refused("no 'rewrad'; did you mean 'reward'?", "trainer.early_stop={metric: rewrad, patience: 1}", loads=True)


@pytest.mark.trains
def test_a_misspelt_metric_of_an_evaluation_is_refused_before_the_first_step(refused, tmp_path):
    refused("no 'eval/sucess'; did you mean 'eval/success'?", "trainer.early_stop={metric: eval/sucess, patience: 1}",
            "trainer.eval_tasks=2", "trainer.eval_steps=1", loads=True)  # fmt: skip
    assert step_lines(tmp_path / "run") == []


# --- gradients that are not finite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned({2, 5})`: the gradient of these updates (from 0) becomes NaN."""
    made = {"updates": 0}
    plain = module.accumulate

    def install(when):
        def accumulate(policy, *arguments):
            loss = plain(policy, *arguments)
            if made["updates"] in when:
                next(p for p in policy.parameters() if p.grad is not None).grad.fill_(math.nan)
            made["updates"] += 1
            return loss

        monkeypatch.setattr(module, "accumulate", accumulate)

    return install


@pytest.mark.trains
def test_an_update_whose_gradient_is_not_finite_is_left_out_and_counted(recipe, poisoned):
    """Update 1 of 0 1 2 is poisoned: the run goes on, and policy_version counts the two that were made."""
    poisoned({1})
    run = train(recipe("trainer.max_steps=3", "trainer.save_steps=1", "trainer.save_total_limit=9"))
    assert [line["skipped_updates"] for line in step_lines(run)] == [0, 1, 0]
    assert step_lines(run)[1]["grad_norm"] is None
    assert (state(run)["updates"], state(run)["skipped"]) == (2, 0)
    one, two, three = (load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3))
    assert same_tensors(one, two)
    assert not same_tensors(two, three)
    assert all(torch.isfinite(value).all() for value in three.values())


@pytest.mark.trains
def test_ten_in_a_row_end_the_run_with_a_way_out(recipe, poisoned, tmp_path):
    poisoned(range(2, 99))
    with pytest.raises(MmrlError, match=r"step 12: the gradient was not finite in 10 updates in a row.*lower optim.learning_rate"):
        train(recipe("trainer.max_steps=20", "trainer.tasks_per_step=1"))
    assert len(step_lines(tmp_path / "run")) == 11


# --- what a step does ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.trains
def test_parts_and_form_do_not_change_the_run(recipe):
    plain = train(recipe("trainer.name=plain", SMOOTH))
    for n, override in enumerate(("update.per_device_train_batch_size=3", "update.max_tokens_per_stream=20", "update.forward=naive")):
        other = train(recipe(override, f"trainer.name=other-{n}", SMOOTH))
        for key, value in weights(plain).items():
            torch.testing.assert_close(weights(other)[key], value, rtol=0, atol=1e-6)


@pytest.mark.trains
def test_two_mini_batches_are_two_updates_of_half_the_groups(recipe):
    one = train(recipe("trainer.max_steps=1", "trainer.name=one"))
    two = train(recipe("trainer.max_steps=1", "trainer.name=two", "update.num_mini_batches=2"))
    assert (state(one)["updates"], state(two)["updates"]) == (1, 2)
    assert not same_tensors(weights(one), weights(two))
    assert all(int(value) == 2 for name, value in weights(two, "optimizer.safetensors").items() if name.startswith("step/"))


@pytest.mark.trains
def test_a_second_pass_compares_with_the_policy_the_step_began_with(recipe):
    """The first pass has ratio 1 everywhere; in the second the policy has moved, and a narrow clip holds tokens."""
    narrow = ("losses=[{use: clipped_surrogate, epsilon: 1e-4, epsilon_high: 1e-4}]", "trainer.max_steps=1")
    once = train(recipe(*narrow, "trainer.name=once"))
    twice = train(recipe(*narrow, "trainer.name=twice", "update.num_iterations=2"))
    assert step_lines(once)[0]["clip_ratio/region_mean"] == 0
    assert step_lines(twice)[0]["clip_ratio/region_mean"] > 0.1


@pytest.mark.trains
def test_truncated_completions_can_be_left_out(recipe):
    """A random model never ends within one token: with all rows cut off, nothing is forwarded and the weights stay."""
    run = train(recipe("rollout.max_completion_length=1", "update.mask_truncated_completions=true", "trainer.max_steps=1"))
    (line,) = step_lines(run)
    assert line["completions/clipped_ratio"] == 1
    assert line["forwarded"] == 0
    assert line["grad_norm"] == 0


@pytest.mark.trains
def test_kl_in_the_reward_starts_at_zero_and_pulls_back(recipe):
    """Step 1: policy and reference are the same weights, so log(policy / reference) is 0; from step 2 on it is not."""
    run = train(recipe("update.kl_in_reward=0.5", "trainer.max_steps=3", "advantage={use: reinforce_pp}"))
    values = [line["kl_in_reward"] for line in step_lines(run)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert abs(values[2]) > 1e-4


@pytest.mark.trains
def test_the_adapter_switched_off_is_the_reference_model(recipe, tiny_folder):
    """KL against a second copy of the start, and against the same weights without the adapter: the same run."""
    kl = ("losses=[{use: clipped_surrogate}, {use: kl, weight: 0.5}]", "trainer.max_steps=3")
    off = train(recipe(*kl, "model.lora={r: 2}", "trainer.name=off"))
    copy = train(recipe(*kl, "model.lora={r: 2}", f"model.reference={tiny_folder}", "trainer.name=copy"))
    assert step_lines(off)[2]["kl"] > 1e-6
    for a, b in zip(step_lines(off), step_lines(copy), strict=True):
        assert a["kl"] == pytest.approx(b["kl"], rel=1e-3, abs=1e-6)
    for key, value in weights(off).items():
        torch.testing.assert_close(weights(copy)[key], value, rtol=0, atol=1e-5)


@pytest.mark.trains
def test_rollouts_carry_the_log_probabilities_they_were_sampled_with(recipe):
    """The trainer's own, of the policy before the update, so the gap to the engine's is rounding."""
    run = train(recipe("trainer.log_completions_steps=1", "optim.learning_rate=0.05", "trainer.max_steps=2"))
    rows = pq.read_table(run / "rollouts" / "step-000002.parquet").to_pylist()
    assert len(rows) == 16
    for row in rows:
        np.testing.assert_allclose(row["logps"], row["sampling_logps"], atol=1e-4)


@pytest.mark.trains
def test_max_minutes_ends_the_run_with_a_checkpoint(recipe):
    run = train(recipe("trainer.max_minutes=1e-9", "trainer.max_steps=50"))
    assert state(run)["step"] == 1
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


@pytest.mark.trains
def test_dynamic_sampling_draws_on(recipe):
    """Keeps groups with two of four solved only: more is drawn than the four tasks that are kept, and draws are counted."""
    run = train(recipe("update.dynamic_sampling={low: 0.3, high: 0.7}"))
    drawn = [line["dynamic_sampling/drawn"] for line in step_lines(run)]
    assert state(run)["draws"] == sum(drawn) / 4
    assert max(drawn) > 4
    assert all(line["success"] == 0.5 for line in step_lines(run))
    with pytest.raises(TaskError, match="gave only 0 groups"):
        train(recipe("update.dynamic_sampling={max_tries: 2}", "success={use: 'strange_rewards:Worst'}", "trainer.name=none"))


@pytest.mark.trains
def test_a_run_repeats_and_another_seed_is_another_run(recipe):
    one, again = train(recipe("trainer.name=one")), train(recipe("trainer.name=again"))
    other = train(recipe("trainer.name=other", "trainer.seed=1"))
    assert_same_run(one, again)
    assert not same_tensors(weights(one), weights(other))


# --- when a run is done -------------------------------------------------------------------------------------------------------------------


def stale_after(values, **rule):
    """Steps until done, watching `values`; None = never."""
    state, rule = Progressed(), EarlyStopSection("x", **rule)
    section = TrainerSection(max_steps=100, early_stop=rule)
    for step, value in enumerate(values, 1):
        state.watch(rule, value)
        if state.done(section):
            return step
    return None


@pytest.mark.parametrize(
    ("values", "rule", "done"),
    [
        ([1, 2, 3, 3, 3], {"patience": 2}, 5),  # two values without a new best
        ([1, 2, 1, 3, 1], {"patience": 2}, None),  # a new best starts the count again
        ([3, 2, 1, 1, 1], {"patience": 2, "mode": "min"}, 5),
        ([0.1, 0.9, 0.2], {"patience": 9, "threshold": 0.9}, 2),
        ([0.9, 0.5, 0.1], {"patience": 9, "threshold": 0.5, "mode": "min"}, 2),
        ([1, math.nan, math.nan], {"patience": 2}, 3),  # NaN is no new best
        ([math.nan, 1, 2], {"patience": 2}, None),
    ],
)
def test_early_stop_by_hand(values, rule, done):
    assert stale_after(values, **rule) == done


@pytest.mark.parametrize(
    ("rewards", "stds", "done"),
    [
        ([1.0] * 12, [0.5] * 12, 8),  # flat from the start: as soon as min_steps allows
        ([0.1 * n for n in range(12)], [0.5] * 12, None),  # the reward moves 0.1 a step
        ([1.0] * 12, [0.5 - 0.02 * n for n in range(12)], None),  # the spread moves 0.02 a step, 0.06 between the means
        ([0.12 * min(n, 5) for n in range(12)], [0.5] * 12, 10),  # steps 6 to 10 are equal: means of 6, 7 and of 9, 10
        ([1.0, 1.2] * 6, [0.5, 0.3] * 6, 8),  # swings inside a mean are no movement
        ([math.nan] * 12, [0.5] * 12, None),
    ],
)
def test_plateau_by_hand(rewards, stds, done):
    """Means of 2 steps, 3 steps apart, must differ by less than 0.05."""
    rule = PlateauSection(window=2, span=3, tolerance=0.05, min_steps=8)
    section, state, stopped = TrainerSection(max_steps=100, plateau=rule), Progressed(), None
    for step, (reward, std) in enumerate(zip(rewards, stds, strict=True), 1):
        state.step = step
        state.note(rule, {"reward": reward, "reward_std": std})
        assert len(state.recent) <= 5
        if stopped is None and state.done(section):
            stopped = step
    assert stopped == done


def test_a_run_on_a_plateau_stops_and_stays_stopped(recipe):
    """Every reward is 0: flat at once."""
    flat = ("rewards=[{use: 'strange_rewards:Worst'}]", "trainer.plateau={window: 1, span: 1, min_steps: 2}", "trainer.max_steps=5")
    run = train(recipe(*flat))
    steps = [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "reward" in line]
    assert steps == [1, 2]
    train(recipe(*flat), resume=True)
    assert steps == [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "reward" in line]


def test_tasks_that_never_passed_by_hand():
    """a and b are drawn, then b and c, then b: a passes first and then no more, b never, c at once."""
    state = Progressed()
    assert state.never_passed({"a": True, "b": False}) == 0.5
    assert state.never_passed({"b": False, "c": True}) == pytest.approx(1 / 3)
    assert Progressed(**json.loads(json.dumps(vars(state)))).never_passed({"a": False}) == pytest.approx(1 / 3)  # from a checkpoint
    assert state.never_passed({"b": True}) == 0


def test_done_by_steps_and_by_time():
    assert not Progressed(step=4).done(TrainerSection(max_steps=5))
    assert Progressed(step=5).done(TrainerSection(max_steps=5))
    assert Progressed(seconds=60.0).done(TrainerSection(max_steps=5, max_minutes=1.0))
    assert not Progressed(seconds=59.0).done(TrainerSection(max_steps=5, max_minutes=1.0))
