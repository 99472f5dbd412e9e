import math

import pytest
import torch

from mmrl.batch import LossInputs
from mmrl.losses.kl import KLToReference

PI = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REF = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
TRUE_GRADIENT = [0.263080, -0.175387, -0.087693]  # of KL(pi || ref) with respect to pi's logits
OTHER_DIRECTION = [0.3, -0.2, -0.1]  # of KL(ref || pi): pi - ref


def enumerated(estimator):
    """(expected value, gradient by logits) over the three outcomes: each is one token, its loss weighted by its probability."""
    logits = PI.log().requires_grad_()
    logps = logits.log_softmax(-1)
    x = LossInputs(
        logps=logps[None],
        old_logps=logps.detach()[None],
        advantages=torch.zeros(1, 3),
        mask=torch.ones(1, 3, dtype=torch.bool),
        ref_logps=REF.log()[None],
    )
    loss = (KLToReference(estimator)(x).per_token[0] * PI).sum()
    return loss.item(), torch.autograd.grad(loss, logits)[0].tolist()


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", 0.183787, [0.0, 0.0, 0.0]),
        ("k2", 0.181677, TRUE_GRADIENT),
        ("k3", 0.183787, OTHER_DIRECTION),
        ("k3_unbiased", 0.183787, TRUE_GRADIENT),
        ("k3_plus", 0.183787, TRUE_GRADIENT),
    ],
)
def test_expected_value_and_gradient(estimator, value, gradient):
    assert enumerated(estimator)[0] == pytest.approx(value, abs=1e-5)
    assert enumerated(estimator)[1] == pytest.approx(gradient, abs=1e-5)


def test_true_gradient_is_what_autograd_says():
    logits = PI.log().requires_grad_()
    logps = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad((logps.exp() * (logps - REF.log())).sum(), logits)
    assert gradient.tolist() == pytest.approx(TRUE_GRADIENT, abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_unbiased", "k3_plus"])
def test_equals_a_scalar_reference(random_inputs, scalar_reference, estimator, seed):
    def token_loss(t, row):
        x = row["ref_logps"][t] - row["logps"][t]
        k3 = math.exp(x) - x - 1
        ratio = math.exp(row["logps"][t] - row["old_logps"][t])
        return {"k1": -x, "k2": x * x / 2, "k3": k3, "k3_unbiased": ratio * k3, "k3_plus": k3}[estimator]

    scalar_reference(KLToReference(estimator), random_inputs(seed), token_loss)


def test_cap_holds_k3_and_stops_its_gradient(loss_inputs):
    """x = 3: k3 = e^3 - 4 = 16.09 > 10; x = 1: k3 = e - 2, gradient 1 - e."""
    x = loss_inputs(logps=[[-4.0, -2.0]], ref_logps=[[-1.0, -1.0]])
    out = KLToReference(cap=10.0)(x)
    out.per_token.sum().backward()
    torch.testing.assert_close(out.per_token.detach(), torch.tensor([[10.0, math.e - 2]]))
    torch.testing.assert_close(x.logps.grad, torch.tensor([[0.0, 1 - math.e]]))
    assert not out.metrics["kl"].requires_grad


def test_needs_follow_the_estimator():
    assert KLToReference().needs == {"ref_logps"}
    assert KLToReference("k3_unbiased").needs == {"ref_logps", "old_logps"}


def test_missing_reference_is_an_error(loss_inputs):
    with pytest.raises(ValueError, match="this term needs ref_logps, which LossInputs does not carry"):
        KLToReference()(loss_inputs(logps=[[-1.0]]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"estimator": "k4"}, "estimator must be one of k1, k2, k3, k3_unbiased, k3_plus; got 'k4'"),
        ({"cap": 0.0}, "cap must be > 0 or null; got 0.0"),
        ({"estimator": "k2", "cap": 10.0}, "cap bounds the k3 forms only; got cap 10.0 with estimator 'k2': leave it out"),
    ],
)
def test_ranges(fields, message):
    with pytest.raises(ValueError, match=message):
        KLToReference(**fields)
