import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl import head, ops

BANNED = torch.tensor([7, 8])  # the last two of nine, never a target in `_inputs`


def _inputs(n=7, d=4, v=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=dtype).requires_grad_()
    ids = torch.randint(0, v - 2, (n,), generator=generator)
    return hidden, weight, ids


def _logits(hidden, weight, banned_ids=None, softcap=None):
    """The plain form, before the temperature."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits if banned_ids is None else logits.index_fill(1, banned_ids, -math.inf)


def _both(logps, entropies):
    """A loss that uses both results with uneven weights."""
    return (logps * torch.linspace(-1, 2, len(logps)) + entropies * torch.linspace(3, -2, len(logps))).sum()


def test_hand_worked_rows():
    """p = (1/2, 1/4, 1/4). d logp_0 / d hidden = (1 - p_0) w_0 - p_1 w_1 - p_2 w_2; the entropy's gradient is -p (log p + H), and with
    w = identity both are the gradients of the logits. A banned third id leaves (2/3, 1/3)."""
    hidden = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    out = head.chunked_logps_entropy(hidden, torch.eye(3), torch.tensor([0]), temperature=1.0, with_entropy=True)
    torch.testing.assert_close(out, (torch.tensor([-math.log(2)]), torch.tensor([1.5 * math.log(2)])))
    torch.testing.assert_close(torch.autograd.grad(out[0].sum(), hidden, retain_graph=True)[0], torch.tensor([[0.5, -0.25, -0.25]]))
    expected = torch.tensor([[-0.25, 0.125, 0.125]]) * math.log(2)
    torch.testing.assert_close(torch.autograd.grad(out[1].sum(), hidden)[0], expected)
    out = head.chunked_logps_entropy(hidden, torch.eye(3), torch.tensor([1]), temperature=1.0, banned_ids=torch.tensor([2]))
    torch.testing.assert_close(out[0], torch.tensor([-math.log(3)]))


def test_softcap_of_a_hand_worked_row():
    """Cap 2, product 2 atanh(1/2) = log 3: logits (2 tanh(log 3 / 2), 0) = (1, 0); d logit / d product = 1 - 1/4."""
    hidden = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    logps, _ = head.chunked_logps_entropy(hidden, torch.eye(2), torch.tensor([0]), temperature=1.0, softcap=2.0)
    p = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(logps, torch.tensor([math.log(p)]))
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), hidden)[0], torch.tensor([[(1 - p) * 0.75, -(1 - p)]]))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("banned_ids", [None, BANNED])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_plain_form(chunk, banned_ids, softcap, dtype, tolerance):
    """Values and both gradients; 3 does not divide 7."""
    hidden, weight, ids = _inputs(dtype=dtype)
    logits = _logits(hidden, weight, banned_ids, softcap)
    plain = ops.token_logps(logits, ids, temperature=0.7), ops.entropy(logits, temperature=0.7)
    expected = torch.autograd.grad(_both(*plain), (hidden, weight))
    out = head.chunked_logps_entropy(
        hidden, weight, ids, temperature=0.7, banned_ids=banned_ids, chunk=chunk, with_entropy=True, softcap=softcap
    )
    actual = torch.autograd.grad(_both(*out), (hidden, weight))
    torch.testing.assert_close((*out, *actual), (*plain, *expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("chunk", [3, 7])
def test_gradcheck(with_entropy, chunk):
    hidden, weight, ids = _inputs()

    def run(h, w):
        out = head.chunked_logps_entropy(h, w, ids, temperature=1.3, banned_ids=BANNED, chunk=chunk, with_entropy=with_entropy, softcap=2.0)
        return out if with_entropy else out[0]

    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_cache_blocks_leave_the_result_alone(monkeypatch):
    """Blocks of two rows inside chunks of five."""
    hidden, weight, ids = _inputs()
    loss = lambda: _both(*head.chunked_logps_entropy(hidden, weight, ids, temperature=0.7, chunk=5, with_entropy=True, softcap=2.0))  # noqa: E731
    expected = torch.autograd.grad(loss(), (hidden, weight))
    monkeypatch.setattr(head.head_torch, "BLOCK", 2 * 9)
    torch.testing.assert_close(torch.autograd.grad(loss(), (hidden, weight)), expected, rtol=0, atol=1e-14)


def test_gradients_for_one_result_or_one_input_alone():
    hidden, weight, ids = _inputs()
    (expected,) = torch.autograd.grad(ops.entropy(_logits(hidden, weight), temperature=1.0).sum(), (hidden,))
    _, entropies = head.chunked_logps_entropy(hidden, weight.detach(), ids, temperature=1.0, chunk=2, with_entropy=True)
    torch.testing.assert_close(torch.autograd.grad(entropies.sum(), (hidden,))[0], expected)

    (expected,) = torch.autograd.grad(ops.token_logps(_logits(hidden, weight), ids, temperature=1.0).sum(), (weight,))
    logps, none = head.chunked_logps_entropy(hidden.detach(), weight, ids, temperature=1.0, chunk=2)
    assert none is None
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), (weight,))[0], expected)


@pytest.mark.parametrize("chunk", [3, 7])
def test_entropy_as_a_metric_costs_the_backward_nothing(chunk, monkeypatch):
    """The backward is not even told of it."""
    hidden, weight, ids = _inputs()
    (expected,) = torch.autograd.grad(ops.token_logps(_logits(hidden, weight), ids, temperature=1.0).sum(), (hidden,))
    told, gradient = [], head.head_torch.gradient

    def listen(*arguments):
        told.append(arguments[6])
        return gradient(*arguments)

    monkeypatch.setattr(head.head_torch, "gradient", listen)
    logps, entropies = head.chunked_logps_entropy(hidden, weight, ids, temperature=1.0, chunk=chunk, with_entropy=True)
    torch.testing.assert_close(torch.autograd.grad(logps.sum() + entropies.detach().sum(), (hidden,))[0], expected)
    assert set(told) == {None}


@pytest.mark.parametrize("chunk", [3, 7])
def test_a_second_backward_gives_the_same_gradient(chunk):
    """The first one overwrites the kept logits."""
    hidden, weight, ids = _inputs()
    loss = _both(*head.chunked_logps_entropy(hidden, weight, ids, temperature=0.7, chunk=chunk, with_entropy=True))
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), first, rtol=0, atol=0)


def test_no_tokens():
    hidden, weight, _ = _inputs()
    ids = torch.empty(0, dtype=torch.int64)
    logps, entropies = head.chunked_logps_entropy(hidden[:0], weight, ids, temperature=1.0, with_entropy=True)
    assert logps.shape == entropies.shape == (0,)
    assert torch.autograd.grad(logps.sum(), (weight,))[0].abs().sum() == 0


def test_banned_target_has_no_probability_and_does_not_spoil_the_gradient():
    hidden, weight, _ = _inputs(n=1)
    logps, _ = head.chunked_logps_entropy(hidden, weight, torch.tensor([8]), temperature=1.0, banned_ids=BANNED)
    assert logps.item() == -math.inf
    grad_hidden, grad_weight = torch.autograd.grad(logps.sum(), (hidden, weight))
    assert grad_hidden.isfinite().all()
    assert grad_weight.isfinite().all()
    assert not grad_weight[BANNED].any()


def test_a_banned_id_with_the_largest_logit_changes_nothing():
    """Its logit is 1e4 above the others, which would underflow beside it."""
    hidden = torch.ones(2, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)], [1e4]])
    out = head.chunked_logps_entropy(hidden, weight, torch.tensor([0, 1]), temperature=1.0, banned_ids=torch.tensor([2]), with_entropy=True)
    torch.testing.assert_close(out[0], torch.tensor([-math.log(4), math.log(0.75)]))
    torch.testing.assert_close(out[1], torch.full((2,), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    (out[0] + out[1]).sum().backward()
    assert hidden.grad.isfinite().all()


def test_weight_gradient_adds_up_in_float32():
    """1024 equal rows in chunks of 1: a bfloat16 running sum would stop growing at 256 times one row's share."""
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps, _ = head.chunked_logps_entropy(hidden, weight, torch.zeros(1024, dtype=torch.int64), temperature=1.0, chunk=1)
    assert logps.dtype == torch.float32
    (grad,) = torch.autograd.grad(logps.sum(), (weight,))
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), torch.tensor([[512.0], [-512.0]]))


def test_half_precision_head_adds_up_in_float32(monkeypatch):
    """The branch that keeps half-precision inputs (CUDA), with its one product that the CPU lacks written out."""
    addmm = torch.addmm

    def mixed(base, a, b, *, out_dtype, **kwargs):
        assert base.dtype == out_dtype == torch.float32
        return addmm(base, a.float(), b.float(), **kwargs)

    monkeypatch.setattr(torch, "addmm", mixed)
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps, _ = head._LogpsEntropy.apply(hidden, weight, torch.zeros(1024, dtype=torch.int64), head.LogitMap(1.0), 1, False)
    (grad,) = torch.autograd.grad(logps.sum(), (weight,))
    assert logps.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), torch.tensor([[512.0], [-512.0]]))


def test_autocast_does_not_lower_it():
    hidden, weight, ids = _inputs(dtype=torch.float32)
    expected, _ = head.chunked_logps_entropy(hidden, weight, ids, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = head.chunked_logps_entropy(hidden, weight, ids, temperature=1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize(("n", "chunk", "products"), [(64, 4, 4 * 16), (4, 4, 3)])
def test_no_tensor_of_tokens_by_vocabulary_is_made(n, chunk, products):
    """64 tokens, 50 words, chunks of 4: nothing larger than weight [50, 8] or hidden [64, 8], in either direction. Per chunk four
    matrix products, or three if there is only one."""
    hidden, weight, ids = _inputs(n=n, d=8, v=50)
    with _LargestTensor() as seen:
        _both(*head.chunked_logps_entropy(hidden, weight, ids, temperature=1.0, chunk=chunk, with_entropy=True)).backward()
    assert seen.numel == max(n, 50) * 8  # the gradients themselves; the plain form makes n * 50
    assert seen.products == products


P, Q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("direction", "value"),
    [("forward", 0.085123), ("reverse", 0.092033), ("symmetric", 2 * 0.088578)],  # 0.088578: half the sum, VOGUE's uncertainty
)
def test_kl_of_hand_worked_rows(direction, value):
    """.7 log(.7/.5) + .2 log(.2/.3) + .1 log(.1/.2) = .085123;  .5 log(.5/.7) + .3 log(.3/.2) + .2 log(.2/.1) = .092033."""
    eye = torch.eye(3, dtype=torch.float64)
    out = head.chunked_kl(P.log(), eye, Q.log(), eye, temperature=1.0, direction=direction)
    torch.testing.assert_close(out, torch.tensor([value], dtype=torch.float64), rtol=0, atol=1e-6)
    swapped = {"forward": "reverse", "reverse": "forward"}.get(direction, direction)
    torch.testing.assert_close(head.chunked_kl(Q.log(), eye, P.log(), eye, temperature=1.0, direction=swapped), out)
    assert head.chunked_kl(P.log(), eye, P.log(), eye, temperature=1.0, direction=direction).item() == 0


@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
def test_kl_of_views_that_hardly_differ_is_not_negative(direction):
    """True values near 1e-12, rounding near 1e-7, of either sign."""
    hidden, weight, _ = _inputs(n=50, dtype=torch.float32)
    kl = head.chunked_kl(hidden, weight, hidden + 1e-6, weight, temperature=1.0, direction=direction)
    assert (kl >= 0).all()
    assert (kl < 1e-6).all()


def test_kl_gradient_of_a_hand_worked_row():
    """Forward KL: q - p for the logits of q, p (log p - log q - KL) for those of p."""
    p, q = P.log().requires_grad_(), Q.log().requires_grad_()
    eye = torch.eye(3, dtype=torch.float64)
    kl = head.chunked_kl(p, eye, q, eye, temperature=1.0)
    grad_p, grad_q = torch.autograd.grad(kl.sum(), (p, q))
    torch.testing.assert_close(grad_q, torch.tensor([[-0.2, 0.1, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(grad_p, P * ((P / Q).log() - kl.detach()))


def _pair(dtype=torch.float64):
    """Two models of one vocabulary: widths 4 and 5."""
    (hidden_p, weight_p, _), (hidden_q, weight_q, _) = _inputs(dtype=dtype), _inputs(d=5, seed=1, dtype=dtype)
    return hidden_p, weight_p, hidden_q, weight_q


def _plain_kl(hidden_p, weight_p, hidden_q, weight_q, direction, banned_ids=None, softcap=None):
    logits = _logits(hidden_p, weight_p, None, softcap), _logits(hidden_q, weight_q, None, softcap)
    keep = [v for v in range(len(weight_p)) if banned_ids is None or v not in banned_ids]
    log_p, log_q = ((z[:, keep] / 0.7).log_softmax(1) for z in logits)
    forward, reverse = (log_p.exp() * (log_p - log_q)).sum(1), (log_q.exp() * (log_q - log_p)).sum(1)
    return {"forward": forward, "reverse": reverse, "symmetric": forward + reverse}[direction]


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.parametrize("banned_ids", [None, BANNED])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("direction", ["forward", "reverse", "symmetric"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_kl_equals_the_plain_form(chunk, banned_ids, softcap, direction, dtype, tolerance):
    """Values and all four gradients of an uneven sum."""
    inputs = _pair(dtype)
    coefs = torch.linspace(-1, 2, 7, dtype=dtype)
    plain = _plain_kl(*inputs, direction, banned_ids, softcap)
    expected = torch.autograd.grad((plain * coefs).sum(), inputs)
    out = head.chunked_kl(*inputs, temperature=0.7, banned_ids=banned_ids, chunk=chunk, direction=direction, softcap=softcap)
    actual = torch.autograd.grad((out * coefs).sum(), inputs)
    torch.testing.assert_close((out, *actual), (plain, *expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [3, 7])
def test_kl_gradcheck(chunk):
    def run(*inputs):
        return head.chunked_kl(*inputs, temperature=1.3, banned_ids=BANNED, chunk=chunk, direction="symmetric", softcap=2.0)

    assert torch.autograd.gradcheck(run, _pair())


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (1, 2)])
def test_kl_gradients_for_some_inputs_alone(wanted, chunk):
    inputs = [value if n in wanted else value.detach() for n, value in enumerate(_pair())]
    asked = [inputs[n] for n in wanted]
    expected = torch.autograd.grad(_plain_kl(*inputs, "symmetric").sum(), asked)
    out = head.chunked_kl(*inputs, temperature=0.7, chunk=chunk, direction="symmetric")
    torch.testing.assert_close(torch.autograd.grad(out.sum(), asked), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 7])
@pytest.mark.parametrize("detach", [(), (0,), (2,)])
def test_kl_of_two_views_of_one_model_adds_up_the_gradient_of_its_weight(detach, chunk):
    hidden_p, weight, _ = _inputs()
    views = [value.detach() if n in detach else value for n, value in enumerate((hidden_p, weight, _inputs(seed=1)[0]))]
    asked = [value for value in views if value.requires_grad]
    expected = torch.autograd.grad(_plain_kl(*views, views[1], "forward").sum(), asked)
    out = head.chunked_kl(*views, views[1], temperature=0.7, chunk=chunk)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), asked, retain_graph=True), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), asked), expected, rtol=0, atol=1e-12)  # the kept logits are gone


@pytest.mark.parametrize(("n", "chunk"), [(64, 4), (4, 4)])
def test_kl_makes_no_tensor_of_tokens_by_vocabulary(n, chunk):
    hidden_p, weight, _ = _inputs(n=n, d=8, v=50)
    hidden_q, _, _ = _inputs(n=n, d=8, v=50, seed=1)
    with _LargestTensor() as seen:
        head.chunked_kl(hidden_p, weight, hidden_q, weight, temperature=1.0, chunk=chunk, direction="symmetric").sum().backward()
    assert seen.numel == max(n, 50) * 8
    assert seen.products == (8 * 16 if n > chunk else 6)


@pytest.mark.parametrize("chunk", [2, 7])
def test_topk_of_a_hand_worked_row_and_of_the_plain_form(chunk):
    """p = (1/2, 1/4, 1/8, 1/8); without the first id (1/2, 1/4, 1/4)."""
    row = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    logps, ids = head.chunked_topk(row, torch.eye(4), 2, temperature=1.0)
    torch.testing.assert_close(logps, torch.tensor([[0.5, 0.25]]).log())
    assert ids.tolist() == [[0, 1]]
    logps, ids = head.chunked_topk(row, torch.eye(4), 1, temperature=1.0, banned_ids=torch.tensor([0]))
    torch.testing.assert_close(logps, torch.tensor([[0.5]]).log())
    assert ids.tolist() == [[1]]

    hidden, weight, _ = _inputs()
    expected = (_logits(hidden, weight, BANNED, 1.5) / 0.7).log_softmax(1).topk(7)
    logps, ids = head.chunked_topk(hidden, weight, 7, temperature=0.7, banned_ids=BANNED, chunk=chunk, softcap=1.5)
    torch.testing.assert_close(logps, expected.values.detach(), rtol=0, atol=1e-12)
    assert ids.equal(expected.indices)
    assert not logps.requires_grad


@pytest.mark.parametrize("k", [0, 8])
def test_topk_refuses_more_ids_than_there_are(k):
    hidden, weight, _ = _inputs()
    with pytest.raises(ValueError, match=f"k must be from 1 to the 7 ids that are not banned; got {k}"):
        head.chunked_topk(hidden, weight, k, temperature=1.0, banned_ids=BANNED)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 4), (9, 4), (2, 4), (9, 4)), {}, r"need hidden_p \[n, d\].*; got \[\(3, 4\), \(9, 4\), \(2, 4\), \(9, 4\)\]"),
        (((3, 4), (9, 4), (3, 4), (8, 4)), {}, "need hidden_p"),
        (((3, 4), (9, 4), (3, 4), (9, 5)), {}, r"need hidden \[n, d\], weight \[v, d\]; got \(3, 4\), \(9, 5\)"),
        (((3, 4), (9, 4), (3, 4), (9, 4)), {"direction": "both"}, "direction must be one of forward, reverse, symmetric; got 'both'"),
    ],
)
def test_kl_refuses_arguments_that_do_not_fit(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        head.chunked_kl(*map(torch.zeros, shapes), temperature=1.0, **options)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 4), (9, 5), (3,)), {}, r"need hidden \[n, d\], weight \[v, d\]; got \(3, 4\), \(9, 5\)"),
        (((3, 4), (9, 4), (2,)), {}, r"need ids \[n\], hidden \[n, d\]; got \(2,\), \(3, 4\)"),
        (((1, 3, 4), (9, 4), (1,)), {}, "need hidden"),
        (((3, 4), (9, 4), (3,)), {"chunk": 0}, "chunk must be >= 1 row; got 0"),
        (((3, 4), (9, 4), (3,)), {"temperature": 0.0}, "temperature must be > 0 and finite; got 0.0"),
        (((3, 4), (9, 4), (3,)), {"softcap": 0.0}, "softcap must be > 0 and finite, or None; got 0.0"),
    ],
)
def test_refuses_arguments_that_do_not_fit(shapes, options, message):
    hidden, weight, ids = torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(shapes[2], dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        head.chunked_logps_entropy(hidden, weight, ids, **{"temperature": 1.0, **options})


def test_the_kernels_are_chosen_by_device_or_by_name(monkeypatch):
    hidden = torch.zeros(1, 1)
    monkeypatch.delenv(head.CHOICE, raising=False)
    assert head._kernels(hidden) is head.head_torch
    monkeypatch.setenv(head.CHOICE, "cuda")
    with pytest.raises(ValueError, match="MMRL_HEAD_KERNELS must be torch or triton, or not set; got 'cuda'"):
        head._kernels(hidden)


def test_without_triton_plain_torch_takes_its_place_and_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mmrl.head_triton", None)  # importing it raises ImportError
    choose = head._choose.__wrapped__
    assert choose("cuda", "") is head.head_torch
    assert "Triton does not import" in caplog.text
    with pytest.raises(ImportError):
        choose("cuda", "triton")
