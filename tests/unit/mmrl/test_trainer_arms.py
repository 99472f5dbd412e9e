"""Whole runs of strategies with several arms on a tiny untrained model: switched off, a method is plain GRPO bit for bit; switched on,
it is seen in the metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmrl.errors import RecipeError, TaskError
from mmrl.recipe import load_recipe
from mmrl.trainer import train

REWARDS = '''
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mmrl.protocols import TaskSource


@dataclass(frozen=True)
class Even:
    """1 where the sum of a completion's ids is even, else 0: about half of what a random model writes. A label earns 1."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.ids.sum() % 2 == 0 or r.arm == "label") for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Seen(Even):
    """The same in halves and wholes, as a checklist of two."""

    def __call__(self, group):
        return np.array([r.completion.ids.sum() % 3 / 2 for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Blind(Even):
    def __call__(self, group):
        return np.zeros(len(group.rollouts), np.float32)


@dataclass(frozen=True)
class Six:
    """The first three tasks of each of two buckets of a source."""

    of: TaskSource

    @property
    def buckets(self):
        return self.of.buckets[:2]

    def size(self, bucket):
        return 3

    def task(self, key):
        return self.of.task(key)


@dataclass(frozen=True)
class Unsolved:
    """The tasks of a source without their solutions."""

    of: TaskSource

    @property
    def buckets(self):
        return self.of.buckets

    def size(self, bucket):
        return self.of.size(bucket)

    def key(self, index):
        return self.of.key(index)

    def task(self, key):
        return replace(self.of.task(key), solution="")
'''


@pytest.fixture
def recipe(tmp_path, tiny_folder, monkeypatch):
    """`recipe("name", {...})`: a recipe of two steps of four mazes, or clips, with a tree laid over it."""
    (tmp_path / "arm_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def load(name, over=None, clips=False, **trainer):
        maze = {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"}
        clip = {"use": "clips", "split": "train", "kinds": ["order"], "levels": [1], "num_frames": 8, "system": ""}
        tree = {
            "model": {"path": str(tiny_folder)},
            "tasks": {"train": clip if clips else maze},
            "rollout": {"num_generations": 4, "max_completion_length": 6},
            "rewards": [{"use": "arm_rewards:Even", "name": "even"}],
            "advantage": {"use": "grpo", "epsilon": 1e-6},
            "optim": {"learning_rate": 3e-3},
            "update": {"num_mini_batches": 2},
        }
        for section, values in (over or {}).items():
            tree[section] = {**tree[section], **values} if isinstance(values, dict) and "use" not in values else values
        tree["trainer"] = {"name": name, "output_dir": str(tmp_path), "max_steps": 2, "tasks_per_step": 4, "trackers": []} | trainer
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load_recipe(path)

    return load


def steps(folder):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def weights(folder):
    return load_file(folder / "checkpoint-2" / "model.safetensors")


def same_weights(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NOISE = {"use": "diffusion_noise", "step": 500}
ORDER = {"use": "t_grpo", "perturbation": {"use": "frame_shuffle"}}
PEARL = {"use": "pearl", "checklist": {"use": "arm_rewards:Seen"}, "max_answer_length": 6}
PEARL_REWARDS = [
    {"use": "arm_rewards:Even", "name": "even", "arms": ["plain"]},
    {"use": "arm_rewards:Seen", "name": "checklist", "arms": ["perception"]},
]
BONUS = {"use": "temporal_bonus", "accuracy": {"use": "arm_rewards:Even"}}
GRPO = {"use": "grpo", "epsilon": 1e-6}


@pytest.mark.trains
@pytest.mark.parametrize(
    ("over", "clips"),
    [
        ({"rollout": {"strategy": {"use": "noisy_rollout", "perturbation": NOISE, "noisy_generations": 0}}}, False),
        (
            {
                "rollout": {"strategy": ORDER},
                "rewards": [{"use": "arm_rewards:Even", "name": "even"}, {**BONUS, "alpha": 0.0}],
                "advantage": {"use": "per_arm", "arms": ["plain"], "of": GRPO},
            },
            True,
        ),
        (
            {
                "rollout": {"strategy": {**PEARL, "gate": None}},
                "rewards": PEARL_REWARDS,
                "advantage": {"use": "pearl", "cap": None, "of": GRPO},
                "update": {"arm_weights": {"perception": 0.0}},
            },
            False,
        ),
        ({"rollout": {"strategy": {"use": "ttrv", "trained": 4}}, "advantage": {"use": "per_arm", "arms": ["plain"], "of": GRPO}}, False),
    ],
    ids=["noisy_rollout", "t_grpo", "pearl", "ttrv"],
)
def test_switched_off_it_is_plain_grpo_bit_for_bit(recipe, over, clips):
    off, plain = train(recipe("off", over, clips)), train(recipe("plain", clips=clips))
    assert same_weights(off, plain)
    for mine, own in zip(steps(off), steps(plain), strict=True):
        assert {name: mine[name] for name in ("loss", "reward", "success", "grad_norm")} == {
            name: own[name] for name in ("loss", "reward", "success", "grad_norm")
        }


@pytest.mark.trains
def test_noisy_rollout_trains_both_arms(recipe):
    strategy = {"use": "noisy_rollout", "perturbation": NOISE, "strength": {"use": "sigmoid", "start": 1.0, "middle": 1, "num_steps": 2}}
    on, plain = train(recipe("on", {"rollout": {"strategy": strategy}})), train(recipe("plain"))
    assert not same_weights(on, plain)
    for line in steps(on):
        assert line["arm/noisy/completions/mean_length"] > 0
        assert {"arm/noisy/reward", "arm/plain/reward", "arm/noisy/logps", "arm/noisy/clip_ratio/region_mean"} <= line.keys()
        assert line["sampling/sampling_logp_difference/max"] < 1e-3 or line is not steps(on)[0]  # of the clean arm alone


@pytest.mark.trains
def test_measuring_the_gradient_of_each_arm_changes_nothing(recipe, tiny_folder):
    """At every second step; with dropout, whose masks must stay those of a run that does not measure."""
    over = {
        "model": {"path": str(tiny_folder), "lora": {"r": 2, "dropout": 0.3}},
        "rollout": {"strategy": {"use": "noisy_rollout", "perturbation": NOISE}},
        "losses": [{"use": "clipped_surrogate"}, {"use": "kl", "weight": 0.1}],
    }
    on, off = train(recipe("on", over, arm_grad_norm_steps=2)), train(recipe("off", over))
    assert same_weights(on, off)
    first, second = steps(on)
    found = {name: second.pop(name) for name in ("arm/noisy/grad_norm", "arm/plain/grad_norm")}
    assert all(norm > 0 for norm in found.values())
    for mine, own in zip((first, second), steps(off), strict=True):
        for line in (mine, own):
            assert not any(name.endswith("/grad_norm") for name in line)
        assert {k: v for k, v in mine.items() if "perf/" not in k and k != "time_s"} == {
            k: v for k, v in own.items() if "perf/" not in k and k != "time_s"
        }


@pytest.mark.trains
def test_one_arm_is_not_measured_by_itself(recipe):
    assert not any(name.startswith("arm/") for line in steps(train(recipe("on", arm_grad_norm_steps=1))) for name in line)


@pytest.mark.trains
def test_t_grpos_bonus_is_seen_and_changes_the_update(recipe):
    over = {
        "rollout": {"strategy": ORDER},
        "rewards": [{"use": "arm_rewards:Even", "name": "even"}, BONUS | {"mu": 0.0}],
        "advantage": {"use": "per_arm", "arms": ["plain"], "of": {"use": "grpo", "scale_rewards": "none"}},
    }
    on = train(recipe("on", over, clips=True))
    off = train(recipe("off", over | {"rewards": [over["rewards"][0], {**BONUS, "alpha": 0.0}]}, clips=True))
    line = steps(on)[0]
    assert line["rewards/temporal_bonus/mean"] == pytest.approx(0.3 * line["rewards/even/mean"])  # mu 0: every right one has it
    assert line["arm/shuffled/rewards/temporal_bonus/mean"] == 0.0
    assert line["success"] == line["arm/plain/success"]
    assert "arm/shuffled/logps" not in line  # compared with, never forwarded
    assert not same_weights(on, off)


@pytest.mark.trains
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_visurf_trains_labels_and_its_correction_leaves_them_alone(recipe, mini_batches):
    correction = {"use": "label_floor", "floor": -50, "of": {"use": "truncated_importance"}}
    over = {
        "rollout": {"strategy": {"use": "visurf"}, "num_generations": 3},
        "advantage": {"use": "visurf", "smooth_on": None, "of": GRPO},
        "losses": [{"use": "clipped_surrogate", "correction": correction}],
        "update": {"num_mini_batches": mini_batches},
    }
    lines = steps(train(recipe("on", over)))
    for line in lines:
        assert np.isfinite(line["loss"])
        assert line["arm/label/success"] == 1.0
        assert line["success"] == line["arm/plain/success"] < 1.0
        assert line["arm/label/sampling/importance_sampling_ratio/mean"] == 1.0
        assert "arm/label/clip_ratio/region_mean" in line
        assert line["visurf/smoothed"] == 0.0
    assert lines[1]["arm/label/logps"] > lines[0]["arm/label/logps"]


@pytest.mark.trains
def test_ttrv_needs_no_labels(recipe):
    over = {
        "tasks": {
            "train": {
                "use": "arm_rewards:Unsolved",
                "of": {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"},
            }
        },
        "rollout": {"strategy": {"use": "ttrv", "trained": 2}, "num_generations": 6},
        "rewards": [
            {"use": "votes", "answers": "text", "entropy": "self"},
            {"use": "majority", "answers": "text", "weight": 0},
            {"use": "vote_entropy", "answers": "text", "weight": 0},
        ],
        "advantage": {"use": "batch_baseline"},
    }
    for line in steps(train(recipe("on", over, log_completions_steps=2))):
        assert 1 / 6 <= line["rewards/majority/mean"] <= 1
        assert 0 <= line["rewards/vote_entropy/mean"] <= 1
        assert np.isfinite(line["loss"])


@pytest.mark.trains
def test_pearl_weighs_and_gates(recipe):
    over = {
        "rollout": {"strategy": PEARL},
        "rewards": PEARL_REWARDS,
        "advantage": {"use": "pearl", "of": GRPO},
        "update": {"arm_weights": {"perception": 0.1}, "dynamic_sampling": {"also": ["checklist"]}},
    }
    folder = train(recipe("on", over, log_completions_steps=2))
    for line in steps(folder):
        assert {"arm/perception/rewards/checklist/mean", "arm/plain/rewards/even/mean", "gated", "arm/perception/logps"} <= line.keys()
        assert "rewards/checklist/mean" not in line  # the policy's tries at the tasks are not scored by it
    assert (folder / "rollouts" / "step-000002.parquet").is_file()
    blind = {"rollout": {"strategy": {**PEARL, "checklist": {"use": "arm_rewards:Blind"}}}, "update": {"arm_weights": {"perception": 0.1}}}
    rewards = [PEARL_REWARDS[0], {"use": "arm_rewards:Blind", "name": "checklist", "arms": ["perception"]}]
    for line in steps(train(recipe("blind", over | blind | {"rewards": rewards}))):
        assert line["gated"] == 1.0
        assert line["loss"] == 0.0
        assert line["success"] is None
        assert "arm/plain/reward" not in line


@pytest.mark.trains
def test_tasks_that_the_gate_never_lets_through_are_counted(recipe):
    """Six tasks, four a step: after two steps all have been drawn, by a run that goes on from its first too. Nothing is said of an endless
    source, nor where nothing gates."""
    six = {"use": "arm_rewards:Six", "of": {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"}}
    pearl = {"rollout": {"strategy": {**PEARL, "gate": 0.5}}, "rewards": PEARL_REWARDS, "advantage": {"use": "pearl", "of": GRPO}}
    over = pearl | {"tasks": {"train": six}}
    whole = train(recipe("whole", over, save_steps=1))
    first, last = steps(whole)
    assert first["never_passed"] == first["gated"]
    state = json.loads((whole / "checkpoint-2" / "trainer_state.json").read_text())
    assert len(state["tried"]) == 6
    assert last["never_passed"] == 1 - sum(state["tried"].values()) / 6
    assert 0 < last["never_passed"] < 1
    train(recipe("halves", over, max_steps=1))
    assert steps(train(recipe("halves", over), resume=True))[1]["never_passed"] == last["never_passed"]
    assert "never_passed" not in steps(train(recipe("endless", pearl)))[0]
    assert "never_passed" not in steps(train(recipe("plain", {"tasks": {"train": six}})))[0]


def test_what_a_strategy_cannot_use_is_said_before_the_model_is_loaded(recipe, monkeypatch):
    monkeypatch.setattr("mmrl.trainer.load_policy", None)
    with pytest.raises(RecipeError, match=r"rollout.strategy.trained: got 16; only rollout.num_generations, which is 4"):
        train(recipe("ttrv", {"rollout": {"strategy": {"use": "ttrv"}}}))
    unsolved = {"use": "arm_rewards:Unsolved", "of": {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"}}
    with pytest.raises(TaskError, match="visurf trains on solutions, and the task has none"):
        train(recipe("visurf", {"tasks": {"train": unsolved}, "rollout": {"strategy": {"use": "visurf"}}}))
    assert not Path("ttrv/manifest.json").exists()


CLASH = "the arms of rollout.strategy {} must not share a baseline: use per_arm, with it inside"


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (
            {"rollout": {"strategy": ORDER}, "advantage": {"use": "per_arm"}},
            "rollout.strategy.use: t_grpo needs videos, and tasks.train maze has none",
        ),
        ({"rollout": {"strategy": ORDER}}, "advantage.use: got grpo; " + CLASH.format("t_grpo")),
        ({"rollout": {"strategy": PEARL}}, "advantage.use: got grpo; " + CLASH.format("pearl")),
        ({"rollout": {"strategy": {"use": "vogue"}}}, "advantage.use: got grpo; " + CLASH.format("vogue")),
        (
            {"advantage": {"use": "visurf"}},
            "advantage.use: visurf needs rollouts of the arm 'label', which rollout.strategy plain does not make",
        ),
        ({"advantage": {"use": "pearl"}}, "advantage.use: pearl needs rollouts of the arm 'perception', which rollout.strategy plain"),
        ({"advantage": {"use": "pearl"}}, "advantage.fidelity: got 'checklist'; no reward of this recipe has that name"),
        (
            {"rewards": [BONUS]},
            "rewards.0.use: temporal_bonus needs rollouts of the arm 'shuffled', which rollout.strategy plain does not make",
        ),
        ({"rewards": [{"use": "votes", "arms": ["plane"]}]}, "rewards.0.arms: plain has no arm 'plane'; did you mean 'plain'?"),
        ({"update": {"arm_weights": {"label": 1.0}}}, "update.arm_weights: plain has no arm 'label'"),
        ({"advantage": {"use": "per_arm", "arms": ["vote"]}}, "advantage.arms: plain has no arm 'vote'"),
        (
            {"update": {"dynamic_sampling": {"also": ["evne"]}}},
            "update.dynamic_sampling.also: got 'evne'; no reward of this recipe has that name",
        ),
        (
            {"rollout": {"num_generations": 1}, "advantage": {"use": "per_arm"}},
            "rollout.num_generations: got 1; the advantage per_arm compares",
        ),
        ({"update": {"arm_weights": {"plain": -1.0}}}, "update.arm_weights"),
    ],
)
def test_combinations_that_make_no_sense_are_problems_of_the_recipe(recipe, over, problem):
    with pytest.raises(RecipeError) as error:
        recipe("bad", over)
    assert problem in str(error.value)


def test_a_strategy_inside_another_brings_its_arms(recipe):
    noisy = {"use": "noisy_rollout", "perturbation": NOISE}
    over = {"rollout": {"strategy": {"use": "visurf", "of": noisy}}, "update": {"arm_weights": {"noisy": 0.5, "label": 0.5}}}
    assert recipe("both", over).update.arm_weights == {"noisy": 0.5, "label": 0.5}
