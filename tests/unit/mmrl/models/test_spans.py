"""Attention of packed spans against a plain softmax with one dense mask."""

import gc
from itertools import pairwise

import pytest
import torch

from mmrl.errors import RecipeError
from mmrl.models import attention, flex
from mmrl.models.attention import stream_attention
from mmrl.models.flex import flex_stream_attention
from mmrl.models.spans import BlockKernel, Spans, flash_on_cpu, plain, spans_of
from mmrl.models.varlen import VarlenKernel

CPU = torch.device("cpu")
CASES = {  # prefix lengths, segment lengths of each, heads, key heads, width
    "two groups, ragged": ([37, 90], [[11, 3, 20], [1, 64]], 4, 2, 32),
    "equal everything": ([40, 40, 40], [[8] * 4] * 3, 4, 2, 16),
    "a prefix without tokens": ([0, 5], [[3, 2], [1]], 4, 4, 16),
    "a prefix without segments": ([6, 7, 9], [[3, 2], [], [4]], 2, 1, 16),
    "one long prefix": ([600], [[70, 200, 30, 31]], 4, 1, 16),
    "equal prefixes, unequal groups": ([50] * 6, [[5, 6, 7], [4], [5, 5], [9, 9], [6], [7]], 6, 2, 16),
    "prefixes of one length apart": ([8, 9, 8, 9], [[2], [3, 1], [5], [2]], 4, 2, 16),
}


def tensors(case, dtype):
    lengths, segments, heads, key_heads, width = CASES[case]
    generator = torch.Generator().manual_seed(0)
    sizes = [(sum(map(sum, segments)), h) for h in (heads, key_heads, key_heads)] + [(sum(lengths), key_heads)] * 2
    return [torch.randn(*size, width, dtype=dtype, generator=generator, requires_grad=True) for size in sizes]


def spans(case):
    lengths, segments, *_ = CASES[case]
    own = Spans.causal([length for group in segments for length in group], CPU)
    return own, Spans(tuple(spans_of([sum(group) for group in segments])), tuple(spans_of(lengths)), False, CPU)


def dense(case, q, k, v, prefix_k, prefix_v, scale):
    """One softmax over [prefixes | segments] with a mask written out span by span."""
    lengths, segments, heads, key_heads, _ = CASES[case]
    before, at = sum(lengths), 0
    mask = torch.zeros(len(q), before + len(q), dtype=torch.bool)
    for n, group in enumerate(segments):
        start = sum(lengths[:n])
        for length in group:
            mask[at : at + length, start : start + lengths[n]] = True
            mask[at : at + length, before + at : before + at + length] = torch.ones(length, length, dtype=torch.bool).tril()
            at += length
    keys, values = (torch.cat(pair).transpose(0, 1).repeat_interleave(heads // key_heads, 0) for pair in ((prefix_k, k), (prefix_v, v)))
    scores = (q.transpose(0, 1) @ keys.mT * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(0, 1)


def with_gradients(out, inputs):
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def written_out():
    """The variable-length kernel's contract in plain products: what CUDA's kernels are asked for, and in which shapes."""

    def scores(q, k, b, is_causal, scale):
        for (q0, q1), (k0, k1) in zip(pairwise(b.queries.tolist()), pairwise(b.keys.tolist()), strict=True):
            assert q1 - q0 <= b.longest_query
            assert k1 - k0 <= b.longest_key
            some = q[q0:q1].transpose(0, 1) @ k[k0:k1].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0).mT * scale
            if is_causal:
                some = some.masked_fill(~torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(), -torch.inf)
            yield slice(q0, q1), slice(k0, k1), some

    def heads(x, repeat):
        return x.transpose(0, 1).repeat_interleave(repeat, 0)

    def forward(q, k, v, b, is_causal, scale):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
        assert b.queries.dtype == b.keys.dtype == torch.int32
        for rows, keys, some in scores(q, k, b, is_causal, scale):
            lse[:, rows] = some.logsumexp(-1)
            out[rows] = (some.softmax(-1) @ heads(v[keys], q.shape[1] // k.shape[1])).transpose(0, 1)
        return out, lse

    def backward(grad, q, k, v, out, lse, b, is_causal, scale):
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        repeat = q.shape[1] // k.shape[1]
        for rows, keys, some in scores(q, k, b, is_causal, scale):
            p = (some - lse[:, rows, None]).exp()
            g, o = grad[rows].transpose(0, 1), out[rows].transpose(0, 1)
            ds = p * (g @ heads(v[keys], repeat).mT - (g * o).sum(-1, keepdim=True)) * scale
            dq[rows] += (ds @ heads(k[keys], repeat)).transpose(0, 1)
            dk[keys] += (ds.mT @ q[rows].transpose(0, 1)).unflatten(0, (-1, repeat)).sum(1).transpose(0, 1)
            dv[keys] += (p.mT @ g).unflatten(0, (-1, repeat)).sum(1).transpose(0, 1)
        return dq, dk, dv

    return VarlenKernel(forward, backward)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", [flash_on_cpu(), plain(), written_out()], ids=["flash", "plain", "varlen"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_two_calls_merged_are_one_softmax(monkeypatch, case, kernel, dtype, tolerance):
    monkeypatch.setattr(attention, "kernel_for", lambda q: kernel)
    inputs, scale = tensors(case, dtype), 0.3
    came = with_gradients(stream_attention(*inputs, *spans(case), scale), inputs)
    for one, other in zip(came, with_gradients(dense(case, *inputs, scale), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_flex_attention_is_one_softmax(case):
    """Forward only: it has no backward on a CPU. tests/gpu has both."""
    inputs, scale = [x.detach() for x in tensors(case, torch.float64)], 0.3
    came = flex_stream_attention(*inputs, *spans(case), scale)
    torch.testing.assert_close(came, dense(case, *inputs, scale), atol=1e-12, rtol=0)


def test_flex_attention_of_rows_alone():
    """A prefix is read without another; a vision tower's windows are not causal. Rows of no span come out as 0, as from the others."""
    q, k, v = (torch.randn(9, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for spans in (Spans.causal([4, 5], CPU), Spans(((0, 3), (3, 7)), ((0, 3), (3, 7)), False, CPU)):
        expected = plain().forward(q, k, v, spans, 0.3)[0]
        torch.testing.assert_close(flex_stream_attention(q, k, v, None, None, spans, None, 0.3), expected, atol=1e-13, rtol=0)


def test_masks_leave_with_their_spans():
    q = torch.randn(4, 1, 16)
    own = Spans.causal([4], CPU)
    gc.collect()
    before = len(flex._masks)
    flex_stream_attention(q, q, q, None, None, own, None, 1.0)
    assert len(flex._masks) == before + 1
    del own
    gc.collect()
    assert len(flex._masks) == before


def test_spans_of_about_one_length_share_a_block():
    """Few calls: widths are rounded up by a quarter at most."""
    own = Spans.causal([17, 18, 20, 19, 33, 40], CPU)
    assert [(block.n, block.m) for block in own.blocks] == [(4, 20), (2, 40)]
    assert Spans.causal([8] * 5, CPU).blocks[0].queries == slice(0, 40)  # a view, nothing is gathered


def test_kernel_of_a_device(monkeypatch):
    names = [kernel.name for kernel in map(attention.kernel_for, (torch.zeros(1), torch.zeros(1, device="meta")))]
    assert names == ["flash_on_cpu", "plain"]
    assert isinstance(attention._cuda_kernel("torch"), VarlenKernel)
    assert isinstance(attention._cuda_kernel("plain"), BlockKernel)
    with pytest.raises(RecipeError, match="MMRL_ATTENTION_KERNEL: got 'flash'; set it to one of flex, flash-attn, torch, plain"):
        attention._cuda_kernel("flash")
