"""The arithmetic that benchmarks divide by."""

import pytest

from mmrl.bench.flops import repeated, shared
from mmrl.bench.shapes import SHAPES

SMALL = SHAPES["small"]
PATCHES = 7744
"""Of a prompt of 2048 tokens."""


def test_one_completion_shared_is_the_whole_line_less_what_the_last_layer_leaves_out():
    prefix, tokens = 2047, 256
    one = shared(SMALL, prefix + 1, [tokens], PATCHES)
    line = repeated(SMALL, prefix, [tokens], PATCHES)  # the prompt's last token heads the segment in place of the last completion token
    pruned = 4 * SMALL.hidden_size * prefix * (prefix + 1) / 2
    assert one.attention + pruned == pytest.approx(line.attention, rel=1e-12)
    assert (one.vision, one.vision_attention, one.head) == (line.vision, line.vision_attention, line.head)
    assert one.linear < line.linear


def test_attention_counts_its_scores_again_in_the_backward_in_the_tower_too():
    of = shared(SMALL, 2048, [256] * 8, PATCHES)
    full, windows = 4 * 96 * PATCHES * PATCHES, 3 * 4 * 96 * PATCHES * 64
    assert of.vision_attention == full + windows
    assert of.step() == 3 * (of.vision + of.linear + of.head) + 3.5 * (of.attention + of.vision_attention)
    assert of.step() / 1e9 == pytest.approx(507.9, abs=0.1)
    assert repeated(SMALL, 2048, [256] * 8, PATCHES).step() / of.step() == pytest.approx(4.40, abs=0.005)
