import math

import pytest
import torch

from mmrl.losses.clipped_surrogate import ClippedSurrogate
from mmrl.losses.correction import MaskedImportance, TruncatedImportance


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.5, +1.0, -1.28, "high"),  # good token: gain held at 1 + epsilon_high
        (0.5, +1.0, -0.5, None),  # good token made rarer: no clip, full gradient
        (1.5, -1.0, +1.5, None),  # bad token made likelier: no clip
        (0.5, -1.0, +0.8, "low"),  # bad token made rarer: held at 1 - epsilon
        (5.0, -1.0, +3.0, "dual"),  # bad token made much likelier: held at c
        (5.0, +1.0, -1.28, "high"),  # c is for bad tokens only
    ],
)
def test_ppo_eq7_with_dual_clip(loss_inputs, ratio, advantage, expected, clipped):
    x = loss_inputs(log_ratio=[[math.log(ratio)]], advantages=[[advantage]])
    out = ClippedSurrogate(epsilon=0.2, epsilon_high=0.28, dual_clip=3.0)(x)
    out.per_token.sum().backward()
    assert out.per_token.item() == pytest.approx(expected, abs=1e-5)
    assert out.metrics["clip_ratio/low_mean"].item() == (clipped == "low")
    assert out.metrics["clip_ratio/high_mean"].item() == (clipped == "high")
    assert out.metrics["clip_ratio/region_mean"].item() == (clipped in ("low", "high"))
    assert out.metrics["clip_ratio/dual_mean"].item() == (clipped == "dual")
    gradient = 0.0 if clipped else -ratio * advantage
    assert x.logps.grad.item() == pytest.approx(gradient, abs=1e-5)


def test_without_dual_clip_a_bad_token_is_unbounded(loss_inputs):
    out = ClippedSurrogate(epsilon_high=0.28)(loss_inputs(log_ratio=[[math.log(5.0)]], advantages=[[-1.0]]))
    assert out.per_token.item() == pytest.approx(5.0, abs=1e-5)
    assert "clip_ratio/dual_mean" not in out.metrics


def test_full_gradient_at_ratio_one(loss_inputs):
    """One update per step: the value is -A, the gradient that of plain policy gradient."""
    x = loss_inputs(logps=[[-0.3, -2.0]], advantages=[[0.7, -0.4]])
    out = ClippedSurrogate(dual_clip=3.0)(x)
    out.per_token.sum().backward()
    torch.testing.assert_close(out.per_token.detach(), torch.tensor([[-0.7, 0.4]]))
    torch.testing.assert_close(x.logps.grad, torch.tensor([[-0.7, 0.4]]))


def test_log_ratio_is_held_at_20(loss_inputs):
    x = loss_inputs(log_ratio=[[90.0]], advantages=[[-1.0]])
    out = ClippedSurrogate()(x)
    out.per_token.sum().backward()
    assert out.per_token.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert x.logps.grad.item() == 0.0


def test_epsilon_one_and_infinite_epsilon_high_never_clip(loss_inputs):
    x = loss_inputs(log_ratio=[[5.0, -5.0]], advantages=[[1.0, -1.0]])
    out = ClippedSurrogate(epsilon=1.0, epsilon_high=math.inf)(x)
    torch.testing.assert_close(out.per_token.detach(), torch.tensor([[-math.exp(5), math.exp(-5)]]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_equals_a_scalar_reference(random_inputs, scalar_reference, seed, dual_clip):
    def token_loss(t, row):
        r = math.exp(row["logps"][t] - row["old_logps"][t])
        a = row["advantages"][t]
        loss = max(-a * r, -a * min(max(r, 0.8), 1.28))
        return min(loss, -a * dual_clip) if dual_clip and a < 0 else loss

    scalar_reference(ClippedSurrogate(0.2, 0.28, dual_clip), random_inputs(seed), token_loss)


def test_correction_multiplies_the_clipped_loss(random_inputs):
    x = random_inputs()
    plain, truncated = ClippedSurrogate(dual_clip=3.0), ClippedSurrogate(dual_clip=3.0, correction=TruncatedImportance(1.2))
    out = truncated(x)
    torch.testing.assert_close(out.per_token, plain(x).per_token * TruncatedImportance(1.2)(x))
    assert out.metrics["clip_ratio/low_mean"].equal(plain(x).metrics["clip_ratio/low_mean"])
    assert not out.metrics["sampling/importance_sampling_ratio/mean"].requires_grad


def test_needs_follow_the_correction():
    assert ClippedSurrogate().needs == {"old_logps"}
    assert ClippedSurrogate(correction=MaskedImportance()).needs == {"old_logps", "sampling_logps"}
    assert ClippedSurrogate.needs == {"old_logps"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon must lie in \(0, 1\], 1 meaning no lower bound; got 0.0"),
        ({"epsilon": 1.2}, r"epsilon must lie in \(0, 1\].*got 1.2"),
        ({"epsilon_high": -0.1}, "epsilon_high must be > 0; got -0.1"),
        ({"epsilon_high": math.nan}, "epsilon_high must be > 0; got nan"),
        ({"dual_clip": 1.0}, "dual_clip must be > 1 or null; got 1.0"),
    ],
)
def test_ranges(fields, message):
    with pytest.raises(ValueError, match=message):
        ClippedSurrogate(**fields)
