"""Views, perception and shaping through whole runs of a tiny untrained model on mazes."""

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from mmrl import trainer as module
from mmrl.errors import CheckpointError, RecipeError
from mmrl.loop.update import accumulate
from mmrl.recipe import load_recipe
from mmrl.trainer import Trainer, train

REWARDS = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.batch import TermOutput


@dataclass(frozen=True)
class Even:
    """1 where the sum of a completion's ids is even, else 0."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float(r.completion.ids.sum() % 2 == 0) for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Peeks:
    """Needs a view that no field of it names."""

    needs: ClassVar[frozenset[str]] = frozenset({"view:hidden"})

    def __call__(self, x):
        return TermOutput(x.logps)
'''
MASKED = "views={masked: {use: patch_mask, ratio: 0.6}}"
NOISY = "views={noisy: {use: vogue_view, geometric: false}}"
PAPO = "losses=[{use: clipped_surrogate}, {use: perception, weight: %s}, {use: sampled_nll, weight: %s}]"
VOGUE = (
    "rollout.strategy={use: vogue, perturbation: {use: vogue_view, geometric: false}, p_noisy: %s}",
    "advantage={use: per_arm}",
    "shaping=[{use: vogue, alpha_o: %s}]",
)
SEVERAL = ("update.num_mini_batches=2", "update.num_iterations=2")


@pytest.fixture
def recipe(tmp_path, tiny_folder, monkeypatch):
    """`recipe("trainer.max_steps=2", ...)`: a recipe of four mazes a step, in tmp_path/<name>."""
    (tmp_path / "own_parts.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    tree = {
        "model": {"path": str(tiny_folder)},
        "tasks": {"train": {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"}},
        "rollout": {"num_generations": 4, "max_completion_length": 5},
        "rewards": [{"use": "own_parts:Even"}],
        "optim": {"learning_rate": 3e-3},
        "trainer": {"output_dir": str(tmp_path), "max_steps": 2, "tasks_per_step": 4, "trackers": []},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return lambda name, *overrides: load_recipe(tmp_path / "recipe.yaml", [f"trainer.name={name}", *overrides])


def steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) / "model.safetensors")


def same(one, other):
    return all(np.array_equal(value, other[name]) for name, value in one.items())


# --- what a recipe may say --------------------------------------------------------------------------------------------------------------


def test_a_view_that_the_recipe_does_not_define(recipe):
    with pytest.raises(RecipeError, match=r"losses.1.view: got 'masked'; the recipe defines no such view; write it, e.g. views: {masked"):
        recipe("r", PAPO % (0.1, 0))
    with pytest.raises(RecipeError, match=r"losses.1.view: got 'masked'; the recipe defines no such view; did you mean 'maskd'"):
        recipe("r", PAPO % (0.1, 0), "views={maskd: {use: patch_mask}}")
    with pytest.raises(RecipeError, match=r"shaping.0.view: got 'raw'"):
        recipe("r", "shaping=[{use: vogue}]")
    assert recipe("r", *(VOGUE[0] % 1.0, VOGUE[1], VOGUE[2] % 0.4)).shaping[0].use == "vogue"


def test_views_are_checked_like_any_component(recipe):
    with pytest.raises(RecipeError, match=r"views.m.ratoi: patch_mask has no such field; did you mean 'ratio'"):
        recipe("r", "views={m: {use: patch_mask, ratoi: 1}}")
    with pytest.raises(RecipeError, match=r"views: got 3; expected a mapping name: {use: name, field: value}"):
        recipe("r", "views=3")
    with pytest.raises(RecipeError, match=r"views.raw: rollout.strategy vogue makes a view of that name"):
        recipe("r", VOGUE[0] % 1.0, "views={raw: {use: patch_mask}}")
    with pytest.raises(RecipeError, match=r"trainer.collapse.term: got 'perceptoin'; .* did you mean 'perception'"):
        recipe("r", MASKED, PAPO % (0.1, 0), "trainer.collapse={term: perceptoin}")


def test_a_need_that_no_field_names_is_found_before_the_model_loads(recipe, monkeypatch):
    monkeypatch.setattr(module, "load_policy", None)
    with pytest.raises(RecipeError, match=r"losses.0: needs the view 'hidden', which the recipe does not define; known: masked"):
        Trainer(recipe("r", MASKED, "losses=[{use: 'own_parts:Peeks'}]"), False)


# --- PAPO -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize("several", [(), SEVERAL], ids=["one update", "four updates"])
def test_weight_zero_is_plain_grpo_bit_for_bit(recipe, several):
    """And any other weight changes the weights: the perception term's gradient arrives."""
    plain = weights(train(recipe("plain", "trainer.max_steps=3", *several)))
    assert same(plain, weights(train(recipe("zero", MASKED, PAPO % (0, 0), "trainer.max_steps=3", *several))))
    assert not same(plain, weights(train(recipe("gamma", MASKED, PAPO % (0.02, 0), "trainer.max_steps=3", *several))))
    assert not same(plain, weights(train(recipe("eta", MASKED, PAPO % (0, 0.02), "trainer.max_steps=3", *several))))


@pytest.mark.trains
def test_metrics_of_perception(recipe):
    lines = steps(train(recipe("r", MASKED, PAPO % (0.02, 0.05))))
    for line in lines:
        assert line["perception/kl"] > 1e-4
        assert 0 <= line["perception/dependent"] <= 1
        assert 0 <= line["perception/capped"] < 0.1
        assert line["perception/nll"] > 0
        assert line["forwarded"] == 1
        assert np.isfinite(line["perception/gap"])


@pytest.mark.trains
def test_cached_and_live_passes_are_the_same_numbers_with_one_update(recipe):
    terms = "losses=[{use: clipped_surrogate}, {use: perception, weight: 1.0, masked_pass: %s}]"
    cached, live, gradient = (steps(train(recipe(kind, MASKED, terms % kind)))[0] for kind in ("cached", "live", "gradient"))
    for line in (live, gradient):
        assert line["loss"] == pytest.approx(cached["loss"], rel=1e-5)
        assert line["perception/kl"] == pytest.approx(cached["perception/kl"], rel=1e-4)
    assert live["grad_norm"] == pytest.approx(cached["grad_norm"], rel=1e-4)
    assert gradient["grad_norm"] != pytest.approx(cached["grad_norm"], rel=1e-2)


@pytest.mark.trains
def test_with_several_updates_the_cached_pass_stays_at_the_steps_start(recipe, monkeypatch):
    given = []

    def noted(policy, forward, samples, passes, *rest):
        given.append((passes, samples))
        return accumulate(policy, forward, samples, passes, *rest)

    monkeypatch.setattr(module, "accumulate", noted)
    train(recipe("r", MASKED, PAPO % (0.5, 0), *SEVERAL, "trainer.max_steps=1"))
    assert len(given) == 4
    for n in (0, 1):
        for first, again in zip(given[n][0].view_logps["masked"], given[n + 2][0].view_logps["masked"], strict=True):
            assert np.array_equal(first, again)
    given.clear()
    live = "losses=[{use: clipped_surrogate}, {use: perception, weight: 0.5, masked_pass: live}]"
    train(recipe("live", MASKED, live, *SEVERAL, "trainer.max_steps=1"))
    assert all(passes.view_logps == {} for passes, _ in given)


@pytest.mark.trains
def test_a_run_that_was_stopped_goes_on_bit_for_bit(recipe, monkeypatch):
    """Views, the perception term, shaping, and the alarm's memory; and as the shaper knows how long the run is, that may not change."""
    parts = (
        "views={masked: {use: patch_mask}, noisy: {use: vogue_view}}", PAPO % (0.1, 0.1),
        "shaping=[{use: vogue, mode: released, view: noisy}]",
        "trainer.collapse={term: perception, window: 2, max_growth: 0.9, factor: 0.5}", "trainer.save_steps=1", "trainer.max_steps=6",
    )  # fmt: skip
    six = train(recipe("six", *parts))
    whole = Trainer._step

    def killed_at_four(trainer):
        if trainer.state.step == 3:
            raise KeyboardInterrupt
        return whole(trainer)

    monkeypatch.setattr(Trainer, "_step", killed_at_four)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("three", *parts))
    monkeypatch.setattr(Trainer, "_step", whole)
    with pytest.raises(CheckpointError, match=r"trainer.max_steps: was 6, now 7"):
        train(recipe("three", *parts[:-1], "trainer.max_steps=7"), resume=True)
    three = train(recipe("three", *parts), resume=True)
    assert same(weights(six), weights(three))
    left = [line["collapse/factor"] for line in steps(six)]
    assert left == [line["collapse/factor"] for line in steps(three)]
    assert left == [1, 1, 1, 1, 0.5, 0.5]


@pytest.mark.trains
def test_the_alarm_turns_the_term_off_and_says_so(recipe, caplog):
    rule = "trainer.collapse={term: perception, window: 1, max_growth: 0.5}"
    with caplog.at_level(logging.WARNING):
        lines = steps(train(recipe("r", MASKED, PAPO % (0.1, 0), rule, "trainer.max_steps=4")))
    assert [line["collapse/factor"] for line in lines] == [1, 1, 0, 0]
    assert ["perception/kl" in line for line in lines] == [True, True, False, False]
    assert "step 2: collapse: entropy" in caplog.text


@pytest.mark.trains
def test_logged_rollouts_hold_the_view(recipe, tmp_path):
    """Per token, with and without the picture; and the masked picture beside the clean one."""
    run = train(recipe("r", MASKED, PAPO % (0.02, 0), "trainer.log_completions_steps=1", "trainer.max_steps=1"))
    assert same(weights(run), weights(train(recipe("quiet", MASKED, PAPO % (0.02, 0), "trainer.max_steps=1"))))
    rows = pq.read_table(run / "rollouts" / "step-000001.parquet").to_pylist()
    assert len(rows) == 16
    for row in rows:
        assert row["view"] == "masked"
        assert len(row["view_logps"]) == len(row["logps"]) == len(row["entropy"]) == len(row["tokens"])
        assert row["view_images"] != row["images"]
        assert (run / row["view_images"][0]).is_file()
    gaps = np.concatenate([np.subtract(row["logps"], row["view_logps"]) for row in rows])
    assert gaps.mean() == pytest.approx(steps(run)[0]["perception/gap"], abs=1e-5)


# --- VOGUE ------------------------------------------------------------------------------------------------------------------------------


def vogue(p_noisy, alpha_o):
    return VOGUE[0] % p_noisy, VOGUE[1], VOGUE[2] % alpha_o


@pytest.mark.trains
@pytest.mark.parametrize("several", [(), SEVERAL], ids=["one update", "four updates"])
def test_without_noise_and_bonus_it_is_plain_grpo(recipe, several):
    """Check 5: p_noisy 0 and alpha_o 0."""
    plain = weights(train(recipe("plain", "trainer.max_steps=3", *several)))
    assert same(plain, weights(train(recipe("none", *vogue(0.0, 0.0), "trainer.max_steps=3", *several))))
    assert not same(plain, weights(train(recipe("bonus", *vogue(0.0, 0.4), "trainer.max_steps=3", *several))))
    assert not same(plain, weights(train(recipe("noisy", *vogue(1.0, 0.0), "trainer.max_steps=3", *several))))


@pytest.mark.trains
def test_the_first_ratio_is_one_and_unselected_rows_count_nowhere(recipe, monkeypatch):
    """Old log-probabilities are of the prompt trained; half of the 32 completions share the whole loss."""
    seen = []

    def noted(policy, forward, samples, passes, *rest):
        seen.append((samples, passes))
        return accumulate(policy, forward, samples, passes, *rest)

    monkeypatch.setattr(module, "accumulate", noted)
    run = train(recipe("r", *vogue(0.5, 0.4), "update.num_iterations=2", "trainer.max_steps=1"))
    samples, passes = seen[0]
    assert len(samples) == 16
    assert {s.rollout.arm for s in samples} == {"raw", "noisy"}
    assert sum(s.token_weights.sum() for s in samples) == pytest.approx(1)
    for sample, old in zip(samples, passes.old_logps, strict=True):
        np.testing.assert_allclose(np.exp(old - sample.rollout.completion.sampling_logps), 1, atol=1e-3)
    line = steps(run)[0]
    assert line["vogue/view_uncertainty"] > 0
    assert line["vogue/bonus"] >= 0
    assert line["sampling/sampling_logp_difference/max"] < 1e-3


@pytest.mark.trains
def test_released_form_samples_one_set(recipe):
    released = "shaping=[{use: vogue, mode: released, view: noisy}]"
    line = steps(train(recipe("r", NOISY, released, "trainer.max_steps=1")))[0]
    assert line["vogue/view_uncertainty"] > 0
    assert line["vogue/bonus"] > 0
    assert line["num_tokens"] < 16 * 40


@pytest.mark.trains
def test_a_bonus_is_a_number_not_a_graph(recipe):
    """Check 8: what shapers see has no graph, and taking it leaves no gradient. (That it changes the update is tested above.)"""
    trainer = Trainer(recipe("r", *vogue(1.0, 0.4)), False)
    trainer.engine.load_policy(trainer.policy, 0)
    collected = trainer.collector(0, 4, trainer._sampling())
    signals = trainer._known(trainer._asked(), collected, {}).signals
    assert all(isinstance(values, np.ndarray) for found in signals.values() for values in found.values())
    assert all(p.grad is None or not p.grad.any() for p in trainer.policy.parameters())


@pytest.mark.trains
@pytest.mark.parametrize("forward", ["naive", "shared"])
def test_every_form_of_the_forward_takes_views(recipe, forward):
    parts = (
        "views={masked: {use: patch_mask}, noisy: {use: vogue_view, geometric: false}}", PAPO % (0.1, 0.1),
        "shaping=[{use: vogue, mode: released, view: noisy}]", f"update.forward={forward}", "trainer.max_steps=1",
    )  # fmt: skip
    line = steps(train(recipe(forward, *parts)))[0]
    other = steps(train(recipe("auto", *parts[:-2], "update.forward=auto", "trainer.max_steps=1")))[0]
    for name in ("loss", "perception/kl", "vogue/view_uncertainty", "vogue/bonus"):
        assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)
