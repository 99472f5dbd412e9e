import math

import pytest
import torch

from mmrl.losses.correction import TruncatedImportance
from mmrl.losses.gspo import GSPO

LOG_RATIOS = [[0.1, -0.2, 0.4]]  # mean 0.1, s = exp(0.1) = 1.105171; the product of the ratios would be 1.349859


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, -1.0004), (-1.0, 1.105171)])
def test_hand_worked_sequence_ratio(loss_inputs, advantage, expected):
    out = GSPO()(loss_inputs(log_ratio=LOG_RATIOS, advantages=[[advantage] * 3]))
    torch.testing.assert_close(out.per_token.detach(), torch.full((1, 3), expected), atol=1e-5, rtol=0)
    assert out.metrics["clip_ratio/high_mean"].tolist() == [[float(advantage > 0)] * 3]


def test_padding_is_not_in_the_mean(loss_inputs):
    """The same three tokens and two of garbage behind them."""
    x = loss_inputs(
        logps=[[-1.0, -1.0, -1.0, math.nan, math.inf]],
        old_logps=[[-1.1, -0.8, -1.4, 0.0, math.nan]],
        advantages=[[-1.0, -1.0, -1.0, math.nan, 7.0]],
        mask=[[True, True, True, False, False]],
    )
    out = GSPO()(x)
    torch.testing.assert_close(out.per_token.detach(), torch.tensor([[1.105171] * 3 + [0.0, 0.0]]), atol=1e-5, rtol=0)


def test_gradient_is_that_of_the_sequence_form(random_inputs):
    """Under sequence_mean weights: d/dlogps of mean_i max(-s_i A_i, -clip(s_i) A_i) with s_i differentiated as a whole."""
    term = GSPO(epsilon=0.05, epsilon_high=0.05)
    x = random_inputs(seed=3)
    x = type(x)(x.logps, x.old_logps, x.advantages[:, :1].expand(3, 5), x.mask)
    lengths = x.mask.sum(-1, keepdim=True)
    weights = x.mask / (3 * lengths)
    (actual,) = torch.autograd.grad((term(x).per_token * weights).sum(), x.logps)

    s = (torch.where(x.mask, x.logps - x.old_logps, 0.0).sum(-1) / lengths[:, 0]).exp()
    a = x.advantages[:, 0]
    (expected,) = torch.autograd.grad(torch.maximum(-s * a, -s.clamp(0.95, 1.05) * a).mean(), x.logps)
    assert expected.any(-1).any()
    assert not expected.any(-1).all()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_scalar_reference(random_inputs, scalar_reference, seed):
    def token_loss(t, row):
        gaps = [now - old for now, old in zip(row["logps"], row["old_logps"], strict=True)]
        s = math.exp(sum(gaps) / len(gaps))
        a = row["advantages"][t]
        return max(-a * s, -a * min(max(s, 0.9), 1.2))

    scalar_reference(GSPO(0.1, 0.2), random_inputs(seed), token_loss)


def test_row_without_counted_tokens_is_zero(loss_inputs):
    x = loss_inputs(log_ratio=[[0.5, 0.5]], mask=[[False, False]])
    out = GSPO()(x)
    out.per_token.sum().backward()
    assert not out.per_token.any()
    assert not x.logps.grad.any()


def test_correction_and_ranges(random_inputs):
    x = random_inputs()
    correction = TruncatedImportance(1.1, level="sequence")
    torch.testing.assert_close(GSPO(correction=correction)(x).per_token, GSPO()(x).per_token * correction(x))
    assert GSPO(correction=correction).needs == {"old_logps", "sampling_logps"}
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\]"):
        GSPO(epsilon=-3e-4)
