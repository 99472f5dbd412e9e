"""NoisyRollout: what is sampled under noise is trained under the clean picture, in one group."""

import numpy as np
import pytest

from data_pipelines.perturb.noise import DiffusionNoise
from data_pipelines.perturb.temporal import FrameShuffle
from mmrl.errors import TaskError
from mmrl.models.forward import GroupForward
from mmrl.protocols import Sampling
from mmrl.schedules import Sigmoid
from mmrl.strategies.noisy import NoisyRollout
from mmrl.strategies.plain import Plain

SAMPLING = Sampling(max_completion_length=4, seed=3, step=2, schedule_step=1)


def same(one, other):
    return all(np.array_equal(a.completion.ids, b.completion.ids) for a, b in zip(one, other, strict=True))


def test_clean_and_noisy_completions_share_a_group_and_the_clean_prompt(engine, make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84)), picture_task("b", (56, 56))]
    groups = NoisyRollout(DiffusionNoise(500))(tasks, engine, make_prompts, 3, SAMPLING)
    plain = Plain()(tasks, engine, make_prompts, 3, SAMPLING)
    for task, group, own in zip(tasks, groups, plain, strict=True):
        assert [r.arm for r in group.rollouts] == ["plain"] * 3 + ["noisy"] * 3
        assert group.task is task
        assert all(r.attempt for r in group.rollouts)
        assert len({id(r.train_prompt) for r in group.rollouts}) == 1  # one object, so that the update packs the group
        clean, noisy = group.rollouts[0].prompt, group.rollouts[3].prompt
        assert group.rollouts[3].train_prompt is clean
        np.testing.assert_array_equal(clean.ids, noisy.ids)
        np.testing.assert_array_equal(clean.mm_inputs["pixel_values"], own.rollouts[0].prompt.mm_inputs["pixel_values"])
        assert np.abs(clean.mm_inputs["pixel_values"] - noisy.mm_inputs["pixel_values"]).mean() > 0.1
        assert same(group.rollouts[:3], own.rollouts)


def test_sampling_logps_of_noisy_completions_are_of_the_noisy_prompt(engine, make_prompts, picture_task, shared_policy):
    """Which is why the ratio starts from the trainer's own forward under the clean one."""
    (group,) = NoisyRollout(DiffusionNoise(500))([picture_task("a", (56, 84))], engine, make_prompts, 4, SAMPLING)
    noisy = [r for r in group.rollouts if r.arm == "noisy"]
    forward = GroupForward(1.0, 0)
    under_noise = forward.logps(shared_policy, [(r.prompt, r.completion.ids) for r in noisy])
    under_clean = forward.logps(shared_policy, [(r.train_prompt, r.completion.ids) for r in noisy])
    for rollout, noise, clean in zip(noisy, under_noise, under_clean, strict=True):
        np.testing.assert_allclose(rollout.completion.sampling_logps, noise, atol=2e-5)
        assert np.abs(rollout.completion.sampling_logps - clean).max() > 1e-3


def test_without_strength_the_noisy_arm_is_more_draws_of_the_clean_prompt(engine, make_prompts, picture_task):
    """Not the same draws again, which would count every completion twice."""
    (group,) = NoisyRollout(DiffusionNoise(500), strength=0.0)([picture_task("a", (56, 84))], engine, make_prompts, 4, SAMPLING)
    clean, noisy = group.rollouts[:4], group.rollouts[4:]
    np.testing.assert_array_equal(clean[0].prompt.mm_inputs["pixel_values"], noisy[0].prompt.mm_inputs["pixel_values"])
    assert not same(clean, noisy)


def test_no_noisy_generations_is_plain(engine, make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84))]
    (group,) = NoisyRollout(DiffusionNoise(), noisy_generations=0)(tasks, engine, make_prompts, 3, SAMPLING)
    (own,) = Plain()(tasks, engine, make_prompts, 3, SAMPLING)
    assert [r.arm for r in group.rollouts] == ["plain"] * 3
    assert same(group.rollouts, own.rollouts)


def test_the_strength_follows_the_runs_step():
    """The authors' Geometry3K setting: 60 steps, slope 30, half at step 40; t = int(500 * strength)."""
    strategy = NoisyRollout(DiffusionNoise(500), strength=Sigmoid(start=1.0, middle=40, num_steps=60, slope=30))
    strengths = [strategy.at(step).strength for step in (0, 40, 50, 60)]  # type: ignore[attr-defined]
    assert strengths == pytest.approx([1.0, 0.5, 1 / (1 + np.exp(5)), 1 / (1 + np.exp(10))], abs=1e-8)
    assert NoisyRollout(DiffusionNoise(500, strength=0.5), strength=0.5).at(7).strength == 0.25  # type: ignore[attr-defined]


def test_noise_depends_on_the_step_and_on_nothing_else(engine, make_prompts, picture_task):
    def pixels(*tasks, sampling=SAMPLING):
        groups = NoisyRollout(DiffusionNoise(500))(tasks, engine, make_prompts, 1, sampling)
        return groups[-1].rollouts[1].prompt.mm_inputs["pixel_values"]

    a, b = picture_task("a", (56, 84)), picture_task("b", (56, 56))
    np.testing.assert_array_equal(pixels(a), pixels(b, a))
    assert not np.array_equal(pixels(a), pixels(a, sampling=Sampling(max_completion_length=4, seed=3, step=3)))


def test_what_cannot_be_made_noisy_is_refused(engine, make_prompts, picture_task):
    with pytest.raises(ValueError, match="FrameShuffle has no strength to anneal"):
        NoisyRollout(FrameShuffle())
    with pytest.raises(ValueError, match="noisy_generations must be 0 or more"):
        NoisyRollout(DiffusionNoise(), noisy_generations=-1)
    with pytest.raises(TaskError, match="task words: noisy_rollout perturbs pictures or videos, and the task has none"):
        NoisyRollout(DiffusionNoise())([picture_task("words")], engine, make_prompts, 2, SAMPLING)
