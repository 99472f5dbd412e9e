"""What only a GPU can show: CUDA's kernels against plain products, and the group forward on them. Run by scripts/gpu_check.sh."""

import pytest
import torch

from mmrl.bench.shapes import random_policy, random_prompt, random_rows
from mmrl.head import chunked_logps_entropy
from mmrl.models import attention
from mmrl.models.attention import stream_attention
from mmrl.models.flex import flex_stream_attention
from mmrl.models.forward import GroupForward
from mmrl.models.spans import Spans, plain, spans_of
from mmrl.models.varlen import package_flash, torch_flash
from mmrl.ops import entropy, token_logps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
CUDA = torch.device("cuda")
LENGTHS, SEGMENTS = [37, 900, 64], [[11, 300, 20], [1, 64], [5]]


def attended(kernel, monkeypatch, dtype):
    monkeypatch.setattr(attention, "kernel_for", lambda q: kernel)
    monkeypatch.setattr(attention, "wants_flex", lambda q: False)
    generator = torch.Generator().manual_seed(0)
    tokens = [sum(group) for group in SEGMENTS]
    sizes = [(sum(tokens), 8, 128), *[(sum(tokens), 2, 128)] * 2, *[(sum(LENGTHS), 2, 128)] * 2]
    inputs = [torch.randn(*size, generator=generator).to(CUDA, dtype).requires_grad_() for size in sizes]
    own = Spans.causal([length for group in SEGMENTS for length in group], CUDA)
    cross = Spans(tuple(spans_of(tokens)), tuple(spans_of(LENGTHS)), False, CUDA)
    out = stream_attention(*inputs, own, cross, 128**-0.5)
    weights = torch.randn(out.shape, generator=generator).to(CUDA, dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("make", [torch_flash, package_flash])
def test_variable_length_kernels(make, monkeypatch):
    kernel = make()
    if kernel is None:
        pytest.skip("flash-attn is not installed")
    exact = attended(plain(), monkeypatch, torch.float32)
    rounded = attended(plain(), monkeypatch, torch.bfloat16)
    for came, other, true in zip(attended(kernel, monkeypatch, torch.bfloat16), rounded, exact, strict=True):
        assert (came.float() - true).norm() < 2 * (other.float() - true).norm() + 1e-3 * true.norm()


def test_flex_attention(monkeypatch):
    """What takes float32 on CUDA, compiled, with its backward."""
    expected = attended(plain(), monkeypatch, torch.float32)
    monkeypatch.setitem(globals(), "stream_attention", flex_stream_attention)
    for came, true in zip(attended(plain(), monkeypatch, torch.float32), expected, strict=True):
        assert (came - true).norm() < 5e-3 * true.norm()  # Triton's products of float32 may be TF32


def test_head_on_cuda_against_full_logits():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 256, generator=generator).to(CUDA, torch.bfloat16).requires_grad_()
    weight = (torch.randn(5003, 256, generator=generator) / 16).to(CUDA, torch.bfloat16).requires_grad_()
    ids = torch.randint(0, 5003, (700,), generator=generator).to(CUDA)
    logps, entropies = chunked_logps_entropy(hidden, weight, ids, temperature=0.7, chunk=256, with_entropy=True)
    came = [logps, entropies, *torch.autograd.grad((logps + 0.1 * entropies).sum(), (hidden, weight))]
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    logits = wide[0] @ wide[1].T
    logps, entropies = token_logps(logits, ids, temperature=0.7), entropy(logits, temperature=0.7)
    expected = [logps, entropies, *torch.autograd.grad((logps + 0.1 * entropies).sum(), wide)]
    for one, other in zip(came, expected, strict=True):
        assert (one.float() - other).norm() < 2e-2 * other.norm()


@pytest.mark.parametrize(("dtype", "nats"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_forms_agree(dtype, nats):
    policy = random_policy("small", "cuda", dtype)
    rows = [row for seed, size in ((1, 300), (2, 500)) for row in random_rows(policy, random_prompt(policy, size, seed), [40, 7, 64])]
    found = {form: GroupForward(1.0, 2, form).logps(policy, rows) for form in ("two_streams", "flat", "lines")}
    for form in ("two_streams", "flat"):
        gaps = [abs(a - b) for a, b in zip(found[form], found["lines"], strict=True)]
        assert sum(gap.mean() for gap in gaps) / len(gaps) < nats
