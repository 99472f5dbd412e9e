import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def _head(n=7, d=4, v=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=dtype).requires_grad_()
    ids = torch.randint(0, v - 2, (n,), generator=generator)
    return hidden, weight, ids


BANNED = torch.tensor([7, 8])  # the last two of nine, never a target in `_head`


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("banned_ids", [None, BANNED])
def test_chunked_head_equals_the_plain_form(chunk, banned_ids):
    """Values and both gradients, for a loss that uses both results with uneven weights; 3 does not divide 7."""
    hidden, weight, ids = _head()
    logits = hidden @ weight.T
    if banned_ids is not None:
        logits = logits.index_fill(1, banned_ids, -math.inf)
    plain = ops.token_logps(logits, ids, temperature=0.7), ops.entropy(logits, temperature=0.7)
    coefs = torch.linspace(-1, 2, 7, dtype=torch.float64), torch.linspace(3, -2, 7, dtype=torch.float64)
    expected = torch.autograd.grad((plain[0] * coefs[0] + plain[1] * coefs[1]).sum(), (hidden, weight))

    out = ops.chunked_logps_entropy(hidden, weight, ids, temperature=0.7, banned_ids=banned_ids, chunk=chunk, with_entropy=True)
    actual = torch.autograd.grad((out[0] * coefs[0] + out[1] * coefs[1]).sum(), (hidden, weight))
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_chunked_head_gradcheck(with_entropy):
    hidden, weight, ids = _head()

    def head(h, w):
        out = ops.chunked_logps_entropy(h, w, ids, temperature=1.3, banned_ids=BANNED, chunk=3, with_entropy=with_entropy)
        return out if with_entropy else out[0]

    assert torch.autograd.gradcheck(head, (hidden, weight))


def test_chunked_head_gives_gradients_for_one_result_or_one_input_alone():
    hidden, weight, ids = _head()
    logits = hidden @ weight.T
    (expected,) = torch.autograd.grad(ops.entropy(logits, temperature=1.0).sum(), (hidden,))
    _, entropies = ops.chunked_logps_entropy(hidden, weight.detach(), ids, temperature=1.0, chunk=2, with_entropy=True)
    torch.testing.assert_close(torch.autograd.grad(entropies.sum(), (hidden,))[0], expected)

    (expected,) = torch.autograd.grad(ops.token_logps(hidden @ weight.T, ids, temperature=1.0).sum(), (weight,))
    logps, none = ops.chunked_logps_entropy(hidden.detach(), weight, ids, temperature=1.0, chunk=2)
    assert none is None
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), (weight,))[0], expected)


def test_chunked_head_of_no_tokens():
    hidden, weight, _ = _head()
    logps, entropies = ops.chunked_logps_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.int64), temperature=1.0, with_entropy=True)
    assert logps.shape == entropies.shape == (0,)
    assert torch.autograd.grad(logps.sum(), (weight,))[0].abs().sum() == 0


def test_banned_target_has_no_probability_and_does_not_spoil_the_gradient():
    hidden, weight, _ = _head(n=1)
    logps, _ = ops.chunked_logps_entropy(hidden, weight, torch.tensor([8]), temperature=1.0, banned_ids=BANNED)
    assert logps.item() == -math.inf
    grad_hidden, grad_weight = torch.autograd.grad(logps.sum(), (hidden, weight))
    assert grad_hidden.isfinite().all()
    assert grad_weight.isfinite().all()
    assert not grad_weight[BANNED].any()


def test_weight_gradient_adds_up_in_float32():
    """1024 equal rows in chunks of 1: a bfloat16 running sum would stop growing at 256 times one row's share."""
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps, _ = ops.chunked_logps_entropy(hidden, weight, torch.zeros(1024, dtype=torch.int64), temperature=1.0, chunk=1)
    assert logps.dtype == torch.float32
    (grad,) = torch.autograd.grad(logps.sum(), (weight,))
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), torch.tensor([[512.0], [-512.0]]))


def test_half_precision_head_adds_up_in_float32(monkeypatch):
    """The branch that keeps half-precision inputs (CUDA), with its one product that the CPU lacks written out."""
    monkeypatch.setattr(ops, "_matmul", lambda a, b: a.float() @ b.float())
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps, _ = ops._ChunkedHead.apply(hidden, weight, torch.zeros(1024, dtype=torch.int64), 1.0, None, 1, False)
    (grad,) = torch.autograd.grad(logps.sum(), (weight,))
    assert logps.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), torch.tensor([[512.0], [-512.0]]))


def test_chunked_head_is_not_lowered_by_autocast():
    hidden, weight, ids = _head(dtype=torch.float32)
    expected, _ = ops.chunked_logps_entropy(hidden, weight, ids, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = ops.chunked_logps_entropy(hidden, weight, ids, temperature=1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_is_made():
    """64 tokens, 50 words, chunks of 4: nothing larger than weight [50, 8] and a chunk [4, 50], in either direction."""
    hidden, weight, ids = _head(n=64, d=8, v=50)
    with _LargestTensor() as largest:
        logps, entropies = ops.chunked_logps_entropy(hidden, weight, ids, temperature=1.0, chunk=4, with_entropy=True)
        (logps.sum() + entropies.sum()).backward()
    assert largest.numel == 64 * 8  # hidden's own gradient; the plain form makes 64 * 50


@pytest.mark.parametrize(
    ("shapes", "chunk", "message"),
    [
        (((3, 4), (9, 5), (3,)), 2, r"need hidden \[n, d\], weight \[v, d\], ids \[n\]; got \[\(3, 4\), \(9, 5\), \(3,\)\]"),
        (((3, 4), (9, 4), (2,)), 2, r"need hidden"),
        (((3, 4), (9, 4), (3,)), 0, "chunk must be >= 1 row; got 0"),
    ],
)
def test_chunked_head_refuses_shapes_that_do_not_fit(shapes, chunk, message):
    hidden, weight, ids = torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(shapes[2], dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        ops.chunked_logps_entropy(hidden, weight, ids, temperature=1.0, chunk=chunk)
