import numpy as np
import pytest
import torch

from mmrl.engines.draw import CHUNK, cut, draw_tokens
from mmrl.protocols import Sampling

NONE_BANNED = torch.zeros(0, dtype=torch.long)


def draw(logits, draws, sampling, banned_ids=NONE_BANNED):
    """[n, g] tokens: as many of each row as it has draws; asked for in any order."""
    rows = torch.arange(len(draws)).repeat_interleave(draws.shape[1])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    out = draw_tokens(logits, rows[order], draws.flatten()[order], sampling, banned_ids)
    return [x[order.argsort()].view(draws.shape) for x in out]


def by_definition(logits, draws, temperature):
    """The first token whose cumulative probability, in float64, is above the draw."""
    logps = (logits / temperature).log_softmax(-1)
    heap = logps.double().exp().cumsum(-1)
    ids = torch.searchsorted(heap, torch.minimum(draws * heap[:, -1:], torch.nextafter(heap[:, -1:], torch.zeros(1).double())), right=True)
    return ids, logps.gather(1, ids)


@pytest.mark.parametrize("vocab", [3, CHUNK, CHUNK + 1, 1000, 5 * CHUNK])
@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 0.0), (1.0, 3.0), (0.7, 30.0)])
def test_tokens_are_those_of_the_plain_inverse(vocab, temperature, scale):
    """50 rows of 40 draws each, flat and steep. A draw within float32 rounding of a border, 1 in 1e6, could differ: none of these does."""
    rng = torch.Generator().manual_seed(vocab)
    logits = torch.randn(50, vocab, generator=rng) * scale
    draws = torch.rand(50, 40, generator=rng, dtype=torch.float64)
    expected, logps = by_definition(logits, draws, temperature)
    ids, came = draw(logits.clone(), draws, Sampling(temperature))
    assert torch.equal(ids, expected)
    assert came.dtype == torch.float32
    torch.testing.assert_close(came, logps, rtol=1e-6, atol=1e-5)


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    """Tokens of probability 0 at both ends and between chunks."""
    vocab = 3 * CHUNK
    logits = torch.full((1, vocab), -torch.inf)
    logits[0, [5, CHUNK + 7, 2 * CHUNK + 9]] = 0.0
    draws = torch.tensor([[0.0, np.nextafter(1 / 3, 0), 1 / 2, np.nextafter(1, 0)]], dtype=torch.float64)
    ids, logps = draw(logits, draws, Sampling())
    assert ids.tolist() == [[5, 5, CHUNK + 7, 2 * CHUNK + 9]]
    torch.testing.assert_close(logps, torch.full((1, 4), -np.log(3.0), dtype=torch.float32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_told_by_their_id(temperature):
    """NaN, +inf, and a row of nothing; the other rows are drawn."""
    logits = torch.zeros(5, 100)
    logits[0, 50], logits[1, 99], logits[2] = torch.nan, torch.inf, -torch.inf
    logits[3, :50] = -torch.inf
    ids, logps = draw(logits, torch.full((5, 2), 0.5, dtype=torch.float64), Sampling(temperature))
    assert (ids[:3] == -1).all()
    assert (ids[3:] >= 0).all()
    assert (ids[3] >= 50).all()
    assert logps[3:].isfinite().all()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 3000, dtype=torch.bfloat16)
    _, logps = draw(logits, torch.tensor([[0.3]], dtype=torch.float64), Sampling(), torch.tensor([7]))
    assert logps.item() == pytest.approx(-np.log(2999), abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (1.0, 0, [0, 1, 2, 3]),
        (1.0, 3, [0, 1, 3]),
        (1.0, 9, [0, 1, 2, 3]),
        (0.5, 0, [1]),  # 0.5 alone reaches one half
        (0.51, 0, [1, 3]),
        (0.75, 0, [1, 3]),  # 0.5 + 0.25 reaches three quarters
        (0.8, 0, [0, 1, 3]),
        (0.8, 2, [1, 3]),  # of the two that are left, 2/3 and 1/3, both are needed
        (0.6, 2, [1]),  # 2/3 reaches 0.6
    ],
)
def test_cut_keeps_the_nucleus(top_p, top_k, kept):
    """Probabilities 1/8+, 1/2, 1/8-, 1/4."""
    logits = torch.tensor([[0.126, 0.5, 0.124, 0.25]]).log()
    left = cut(logits, top_p, top_k)
    assert torch.isfinite(left)[0].nonzero()[:, 0].tolist() == kept
    assert torch.equal(left[0, kept], logits[0, kept])
