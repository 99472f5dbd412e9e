import math

import pytest
import torch

from mmrl.losses.cispo import CappedISPolicy, ClippedISPolicy
from mmrl.losses.correction import TruncatedImportance


@pytest.mark.parametrize(
    ("term", "ratio", "weight"),
    [
        (ClippedISPolicy(epsilon_high=0.2), 1.1, 1.1),
        (ClippedISPolicy(epsilon_high=0.2), 9.0, 1.2),
        (ClippedISPolicy(epsilon_high=0.2), 0.01, 0.01),  # no lower bound
        (ClippedISPolicy(epsilon=0.3, epsilon_high=0.2), 0.01, 0.7),
        (ClippedISPolicy(epsilon_high=5.0), 9.0, 6.0),  # "5" is 6 here ...
        (CappedISPolicy(epsilon_max=5.0), 9.0, 5.0),  # ... and 5 here
        (CappedISPolicy(epsilon_max=5.0), 0.01, 0.01),
    ],
)
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_weight_is_held_and_the_gradient_never_vanishes(loss_inputs, term, ratio, weight, advantage):
    x = loss_inputs(logps=[[-2.0]], log_ratio=[[math.log(ratio)]], advantages=[[advantage]])
    out = term(x)
    out.per_token.sum().backward()
    assert out.per_token.item() == pytest.approx(2.0 * weight * advantage, rel=1e-5)
    assert x.logps.grad.item() == pytest.approx(-weight * advantage, rel=1e-5)


def test_metrics_say_which_weights_are_held(loss_inputs):
    x = loss_inputs(log_ratio=[[math.log(r) for r in (0.5, 1.0, 8.0, 8.0)]], advantages=[[1.0, 1.0, 1.0, -1.0]])
    clipped = ClippedISPolicy(epsilon=0.3, epsilon_high=0.2)(x).metrics
    assert clipped["clip_ratio/low_mean"].tolist() == [[1, 0, 0, 0]]
    assert clipped["clip_ratio/high_mean"].tolist() == [[0, 0, 1, 1]]
    assert CappedISPolicy()(x).metrics["cispo_clip_ratio"].tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("seed", range(2))
def test_equals_a_scalar_reference(random_inputs, scalar_reference, seed):
    def loss_with(hold):
        return lambda t, row: -hold(math.exp(row["logps"][t] - row["old_logps"][t])) * row["advantages"][t] * row["logps"][t]

    scalar_reference(ClippedISPolicy(0.4, 0.2), random_inputs(seed), loss_with(lambda r: min(max(r, 0.6), 1.2)))
    scalar_reference(CappedISPolicy(1.3), random_inputs(seed), loss_with(lambda r: min(r, 1.3)))


@pytest.mark.parametrize("term", [ClippedISPolicy, CappedISPolicy])
def test_correction_multiplies_the_loss(random_inputs, term):
    x = random_inputs()
    correction = TruncatedImportance(1.1)
    torch.testing.assert_close(term(correction=correction)(x).per_token, term()(x).per_token * correction(x))
    assert term(correction=correction).needs == {"old_logps", "sampling_logps"}


def test_ranges():
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\], 1 meaning no lower bound; got 10.0"):
        ClippedISPolicy(epsilon=10.0)
    with pytest.raises(ValueError, match="epsilon_high must be > 0; got 0"):
        ClippedISPolicy(epsilon_high=0.0)
    with pytest.raises(ValueError, match="epsilon_max must be > 0; got 0"):
        CappedISPolicy(epsilon_max=0.0)
