"""Attention of packed spans against a plain softmax with one dense mask."""

import pytest
import torch

from mmrl.models import attention
from mmrl.models.attention import stream_attention
from mmrl.models.spans import FlashOnCPU, Plain, Spans, spans_of

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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", [FlashOnCPU(), Plain()], ids=["flash", "plain"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_two_calls_merged_are_one_softmax(monkeypatch, case, kernel, dtype, tolerance):
    monkeypatch.setattr(attention, "kernel_for", lambda q: kernel)
    inputs, scale = tensors(case, dtype), 0.3
    came = with_gradients(stream_attention(*inputs, *spans(case), scale), inputs)
    for one, other in zip(came, with_gradients(dense(case, *inputs, scale), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_spans_of_about_one_length_share_a_block():
    """Few calls: widths are rounded up by a quarter at most."""
    own = Spans.causal([17, 18, 20, 19, 33, 40], CPU)
    assert [(block.n, block.m) for block in own.blocks] == [(4, 20), (2, 40)]
    assert Spans.causal([8] * 5, CPU).blocks[0].queries == slice(0, 40)  # a view, nothing is gathered
