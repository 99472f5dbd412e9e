import math

import pytest
import torch

from mmrl import ops


def test_token_logps_and_entropy_of_a_hand_worked_row():
    """p = (1/2, 1/4, 1/4): logits log p at temperature 1; p^2 normalised = (2/3, 1/6, 1/6) at temperature 1/2."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    torch.testing.assert_close(ops.token_logps(logits, torch.tensor([0]), temperature=1.0), torch.tensor([-math.log(2)]))
    torch.testing.assert_close(ops.token_logps(logits, torch.tensor([2]), temperature=0.5), torch.tensor([-math.log(6)]))
    torch.testing.assert_close(ops.entropy(logits, temperature=1.0), torch.tensor([1.5 * math.log(2)]))
    expected = 2 / 3 * math.log(1.5) + 1 / 3 * math.log(6)
    torch.testing.assert_close(ops.entropy(logits, temperature=0.5), torch.tensor([expected]))


def test_half_precision_logits_are_worked_in_float32():
    logits = torch.tensor([[3.0, -2.0, 0.5]])
    out = ops.token_logps(logits.bfloat16(), torch.tensor([0]), temperature=1.0)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, logits.log_softmax(-1)[:, 0])
    assert ops.entropy(logits.bfloat16(), temperature=1.0).dtype == torch.float32


def test_entropy_of_masked_vocabulary_is_finite_and_so_is_its_gradient():
    """Two equal logits and two banned ones: H = log 2, at its maximum, so the gradient is 0 everywhere."""
    logits = torch.tensor([[1.0, -math.inf, 1.0, -math.inf]], requires_grad=True)
    value = ops.entropy(logits, temperature=1.0)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([math.log(2)]))
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4))


def test_entropy_gradient_with_masked_vocabulary_equals_the_smaller_vocabulary():
    kept = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64, requires_grad=True)
    ops.entropy(kept, temperature=0.7).sum().backward()
    wide = torch.tensor([[0.3, -math.inf, -1.2, 2.0]], dtype=torch.float64, requires_grad=True)
    ops.entropy(wide, temperature=0.7).sum().backward()
    torch.testing.assert_close(wide.grad[:, [0, 2, 3]], kept.grad)
    assert wide.grad[0, 1] == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite; got"):
        ops.token_logps(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)


def test_kl_estimators_at_hand_worked_points():
    """x = ref - now = log 2: k1 = -log 2, k2 = (log 2)^2 / 2, k3 = 2 - log 2 - 1."""
    logps, ref = torch.tensor([-2.0]), torch.tensor([-2.0 + math.log(2)])
    torch.testing.assert_close(ops.kl_k1(logps, ref), torch.tensor([-math.log(2)]))
    torch.testing.assert_close(ops.kl_k2(logps, ref), torch.tensor([math.log(2) ** 2 / 2]))
    torch.testing.assert_close(ops.kl_k3(logps, ref), torch.tensor([1 - math.log(2)]))


def test_kl_estimators_hold_the_log_ratio_at_20_nats():
    logps, ref = torch.tensor([-100.0, -1.0]), torch.tensor([-1.0, -100.0])
    torch.testing.assert_close(ops.kl_k1(logps, ref), torch.tensor([-20.0, 20.0]))
    torch.testing.assert_close(ops.kl_k2(logps, ref), torch.tensor([200.0, 200.0]))
    torch.testing.assert_close(ops.kl_k3(logps, ref), torch.tensor([math.exp(20) - 21, math.exp(-20) + 19]))
    torch.testing.assert_close(ops.kl_k3(logps, ref, cap=10.0), torch.tensor([10.0, 10.0]))


def test_kl_k3_keeps_its_digits_for_policies_that_hardly_differ():
    """x = 1e-3: k3 = x^2/2 + x^3/6 = 5.001667e-7. exp(x) - x - 1 in float32 gives 4.768e-7 or 5.96e-7."""
    value = ops.kl_k3(torch.tensor([-1e-3]), torch.tensor([0.0])).item()
    assert value == pytest.approx(5.001667e-7, rel=1e-3)


def test_masked_mean_ignores_garbage_and_says_nan_when_nothing_counts():
    values = torch.tensor([[1.0, math.nan], [5.0, math.inf]], requires_grad=True)
    mean = ops.masked_mean(values, torch.tensor([[True, False], [True, False]]))
    mean.backward()
    assert mean.item() == 3.0
    torch.testing.assert_close(values.grad, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert ops.masked_mean(values.detach(), torch.zeros(2, 2, dtype=torch.bool)).isnan()


def test_log_ratio_is_zero_on_padding_and_held_at_20():
    now, old = torch.tensor([[-1.0, math.nan, -50.0]]), torch.tensor([[-1.5, math.inf, -1.0]])
    out = ops.log_ratio(now, old, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(out, torch.tensor([[0.5, 0.0, -20.0]]))
