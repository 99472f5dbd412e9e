"""VOGUE's acceptance numbers (absolute tolerance 1e-5), its rollouts, and the released form."""

import math

import numpy as np
import pytest
import torch

from data_pipelines.perturb.compose import VogueView
from data_pipelines.perturb.noise import GaussianNoise
from mmrl.engines.hf import HFEngine
from mmrl.errors import TaskError
from mmrl.head import chunked_kl
from mmrl.methods.vogue import Vogue, VogueShaping, sampled_entropy, sampled_uncertainty
from mmrl.models.forward import GroupForward
from mmrl.ops import entropy
from mmrl.protocols import Sampling
from mmrl.schedules import Linear
from mmrl.seeding import stream
from mmrl.types import Media, ShaperInputs

P, Q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]


def shaped(advantage, per, out, shaper=None, arm="noisy", step=0, max_steps=200, seed=0):
    signals = {"view_kl:raw": np.float32([per]), "old_entropy": np.float32([out])}
    values, metrics = (shaper or VogueShaping())(ShaperInputs(np.float32([advantage]), signals, arm, step, max_steps, seed))
    assert values.dtype == np.float32
    return float(values[0]), {name: float(value[0]) for name, value in metrics.items()}


# --- uncertainty ------------------------------------------------------------------------------------------------------------------------


def kl(p, q, direction):
    """By the chunked head: logits = log p of a head that is the identity."""
    weight = torch.eye(3)
    return chunked_kl(torch.tensor([p]).log(), weight, torch.tensor([q]).log(), weight, temperature=1.0, direction=direction).item()


def test_uncertainty_of_two_distributions():
    """Check 1."""
    assert kl(P, Q, "forward") == pytest.approx(0.085123, abs=1e-5)
    assert kl(Q, P, "forward") == pytest.approx(0.092033, abs=1e-5)
    assert kl(P, Q, "symmetric") / 2 == pytest.approx(0.088578, abs=1e-5)
    assert kl(Q, P, "symmetric") == pytest.approx(kl(P, Q, "symmetric"), abs=1e-6)
    assert kl(P, P, "symmetric") == 0


def test_uncertainty_of_the_sampled_token():
    """Check 2; the forward form of the same two numbers is negative, .3 log(.3 / .6) = -.207944."""
    logs = np.log(np.float32([[0.7, 0.3], [0.5, 0.6]]))
    np.testing.assert_allclose(sampled_uncertainty(*logs), [0.033647, 0.103972], atol=1e-5)
    assert 0.3 * math.log(0.5) == pytest.approx(-0.207944, abs=1e-5)
    np.testing.assert_allclose(sampled_entropy(np.float32([-1.0])), [0.367879], atol=1e-5)  # the most it can be, 1 / e


def test_entropy_of_four_equal_tokens():
    """Check 6: alpha_o u_out = .554518, so at |A| = 1 the cap of .5 binds."""
    even = float(entropy(torch.zeros(1, 4), temperature=1.0))
    assert even == pytest.approx(1.386294, abs=1e-5)
    assert 0.4 * even == pytest.approx(0.554518, abs=1e-5)
    value, metrics = shaped(1.0, 0.0, even, arm="raw")
    assert value == pytest.approx(1.5, abs=1e-5)
    assert metrics["vogue/entropy_capped"] == 1


# --- the shaper -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "per", "out", "expected"),
    [
        (1, 0.8, 0.6, 1.74),
        (-1, 0.8, 0.6, -0.26),
        (0.5, 0.1, 0.2, 0.68),
        (-1, 0.1, 0.5, -0.70),
        (0, 5, 5, 0),
        (1, 5, 5, 2.0),
        (-1, 5, 5, 0.0),
    ],
)
def test_shaped_advantages(advantage, per, out, expected):
    """Checks 3 and 4."""
    assert shaped(advantage, per, out)[0] == pytest.approx(expected, abs=1e-5)


def test_the_raw_arm_has_no_bonus_for_uncertainty():
    assert shaped(1, 0.8, 0.6, arm="raw")[0] == pytest.approx(1.24, abs=1e-5)


def test_the_bonus_is_bounded_and_the_sign_stays():
    rng = np.random.default_rng(0)
    advantages, per, out = (rng.normal(size=500), *(rng.exponential(2, (2, 500))))
    for a, p, o in zip(advantages, per, out, strict=True):
        value, _ = shaped(a, p, o)
        assert 0 <= value - np.float32(a) <= abs(a) + 1e-6
        assert value * a >= -1e-6


def released(advantage, raw, noisy, step, max_steps=4, seed=0):
    signals = {"old_logps": np.float32([raw]), "view:noisy": np.float32([noisy])}
    shaper = VogueShaping("released", "noisy")
    values, metrics = shaper(ShaperInputs(np.float32([advantage]), signals, "plain", step, max_steps, seed))
    return float(values[0]), {name: float(value[0]) for name, value in metrics.items()}


def test_released_form_by_hand():
    """P = .7, Q = .5. Raw: 1 + .4 * .249672 = 1.099869. Noisy: g_per .033647, then .4 * .346574 = .138629: 1.172276. The last step's coin
    is 1 - 4 / 4 = 0."""
    seen = {round(released(1, math.log(0.7), math.log(0.5), 1, seed=seed)[0], 6) for seed in range(20)}
    assert sorted(seen) == pytest.approx([1.099869, 1.172276], abs=1e-5)
    last = {round(released(1, math.log(0.7), math.log(0.5), 3, seed=seed)[0], 6) for seed in range(20)}
    assert last == {1.099869}


def test_released_order_of_the_caps():
    """Check 4, the code's order: 1 -> 1.5 -> 2.25 and -1 -> -.5 -> -.25, with both bonuses beyond their caps."""
    shaper = VogueShaping("released", "noisy", alpha_p=1e6, alpha_o=1e6)
    for advantage, expected in ((1.0, 2.25), (-1.0, -0.25)):
        signals = {"old_logps": np.float32([-0.4]), "view:noisy": np.float32([-2.0])}
        values, _ = shaper(ShaperInputs(np.float32([advantage]), signals, "plain", 0, 10**6, 0))
        assert values[0] == pytest.approx(expected, abs=1e-5)


def test_released_coin_is_one_a_step_and_falls():
    noisy = [[released(1, -0.4, -2.0, step, 100, seed)[1]["vogue/bonus"] > 0.3 for step in range(100)] for seed in range(40)]
    shares = np.mean(noisy, 0)
    assert shares[:10].mean() == pytest.approx(0.945, abs=0.05)
    assert shares[45:55].mean() == pytest.approx(0.5, abs=0.1)
    assert shares[90:].mean() == pytest.approx(0.045, abs=0.05)


def test_shares_at_the_caps():
    _, metrics = shaped(1, 0.8, 0.6)
    assert (metrics["vogue/view_capped"], metrics["vogue/entropy_capped"]) == (1, 0)
    assert metrics["vogue/bonus"] == pytest.approx(0.74, abs=1e-5)
    assert shaped(0, 5, 5)[1]["vogue/view_capped"] == 0  # no advantage, nothing to cap


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "both"}, "mode must be one of paper, released; got 'both'"),
        ({"alpha_o": -1.0}, "alpha_o must be >= 0"),
        ({"beta_p": 0.5}, "beta_p must be >= 1"),
        ({"beta_p": 1.0}, "allow bonuses larger than the advantage"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VogueShaping(**fields)


def test_needs():
    assert VogueShaping().needs == {"old_entropy", "view_kl:raw"}
    assert VogueShaping("released", "noisy").needs == {"old_logps", "view:noisy"}


# --- the noise --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "share", "std"), [(0.4, 0.2113, 0.3255), (0.2, 0.0124, None), (0.8, 0.532, None)])
def test_noise_on_grey(sigma, share, std):
    """Check 7: values that saturate, and the spread after clipping (uint8: to half a level, and 127.5 is no level)."""
    values = GaussianNoise(sigma)(Media(np.full((1, 600, 600, 3), 128, np.uint8)), stream(0)).frames / 255
    assert np.mean((values == 0) | (values == 1)) == pytest.approx(share, abs=4e-3)
    if std is not None:
        assert values.std() == pytest.approx(std, abs=2e-3)


# --- the strategy -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sampled(shared_policy, processor, make_prompts):
    def run(strategy, tasks, step=0, num_generations=6, seed=0, schedule_step=0):
        engine = HFEngine()
        engine.attach(processor)
        engine.load_policy(shared_policy, 0)
        sampling = Sampling(max_completion_length=5, seed=seed, step=step, schedule_step=schedule_step)
        return strategy(tasks, engine, make_prompts, num_generations, sampling)

    return run


NOISE = VogueView(geometric=False)


def test_both_arms_are_sampled_and_one_of_each_pair_is_trained(sampled, maze_tasks):
    tasks = [maze_tasks.task(maze_tasks.key(n)) for n in range(8)]
    groups = sampled(Vogue(NOISE, 0.5), tasks)
    chosen = []
    for task, group in zip(tasks, groups, strict=True):
        assert group.task is task
        assert [r.arm for r in group.rollouts] == ["raw"] * 6 + ["noisy"] * 6
        raw, noisy = group.rollouts[0].prompt, group.rollouts[6].prompt
        assert raw.task is task
        assert not np.array_equal(raw.mm_inputs["pixel_values"], noisy.mm_inputs["pixel_values"])
        for one, other in zip(group.rollouts[:6], group.rollouts[6:], strict=True):
            assert (one.prompt, other.prompt) == (raw, noisy)
            assert [one.train_prompt, other.train_prompt] in ([raw, None], [None, noisy])
            assert one.views == other.views == {"raw": raw, "noisy": noisy}
            chosen.append(one.train_prompt is None)
        assert any(
            not np.array_equal(a.completion.ids, b.completion.ids) for a, b in zip(group.rollouts[:6], group.rollouts[6:], strict=True)
        )
    assert 0.25 < np.mean(chosen) < 0.75  # 48 tosses of a fair coin: outside once in 2,000


def test_the_share_of_the_noisy_arm_falls_to_none():
    """Check 5."""
    share = Linear(1, 0, 200)
    assert [share(s) for s in (0, 50, 100, 150, 200, 250)] == [1, 0.75, 0.5, 0.25, 0, 0]


@pytest.mark.parametrize(("step", "arm"), [(0, "noisy"), (200, "raw"), (250, "raw")])
@pytest.mark.parametrize("draw", [0, 300])
def test_the_schedule_goes_by_the_runs_step(sampled, maze_tasks, step, arm, draw):
    """Not by the draw's number, which runs ahead under dynamic sampling."""
    (group,) = sampled(Vogue(NOISE, Linear(1, 0, 200)), [maze_tasks.task(maze_tasks.key(0))], draw, schedule_step=step)
    assert {r.arm for r in group.rollouts if r.train_prompt is not None} == {arm}


def test_the_draw_is_keyed(sampled, maze_tasks):
    tasks = [maze_tasks.task(maze_tasks.key(0))]

    def picture(**key):
        return sampled(Vogue(NOISE), tasks, num_generations=1, **key)[0].rollouts[1].prompt.mm_inputs["pixel_values"]

    assert np.array_equal(picture(), picture())
    assert not np.array_equal(picture(), picture(step=1))
    assert not np.array_equal(picture(), picture(seed=1))


def test_a_task_without_pictures_is_trained_on_its_raw_arm(sampled, picture_task):
    (group,) = sampled(Vogue(NOISE), [picture_task("words")])
    assert {r.arm for r in group.rollouts if r.train_prompt is not None} == {"raw"}
    assert all(r.views["noisy"] is r.views["raw"] for r in group.rollouts)


def test_arms_that_would_be_one(sampled, maze_tasks):
    with pytest.raises(TaskError, match=r"task maze-.* left a picture as it is, so both arms would be one"):
        sampled(Vogue(GaussianNoise(0.0)), [maze_tasks.task(maze_tasks.key(0))])
    with pytest.raises(ValueError, match=r"p_noisy must lie in \[0, 1\]; got 2.0 at step 0"):
        sampled(Vogue(NOISE, 2.0), [maze_tasks.task(maze_tasks.key(0))])


def test_the_first_ratio_is_one_under_the_prompt_trained(shared_policy, sampled, maze_tasks):
    """Log-probabilities under the prompt trained are those that the engine sampled with; under the other picture they are not."""
    (group,) = sampled(Vogue(NOISE, 0.5), [maze_tasks.task(maze_tasks.key(0))])
    forward = GroupForward(1.0, 0)
    for name, expected in (("own", True), ("other", False)):
        rollouts = [r for r in group.rollouts if r.train_prompt is not None]
        prompts = [r.train_prompt if name == "own" else r.views["noisy" if r.arm == "raw" else "raw"] for r in rollouts]
        logps = forward.logps(shared_policy, [(p, r.completion.ids) for p, r in zip(prompts, rollouts, strict=True)])
        ratios = np.concatenate([np.exp(v - r.completion.sampling_logps) for v, r in zip(logps, rollouts, strict=True)])
        assert (np.abs(ratios - 1) < 1e-3).all() == expected
