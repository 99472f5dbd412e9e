"""What padding holds never matters, to any term: the consumer sums per_token * token_weights, and NaN * 0 is NaN."""

import math
import pickle
from dataclasses import fields

import pytest
import torch

from mmrl.losses.cispo import CappedISPolicy, ClippedISPolicy
from mmrl.losses.clipped_surrogate import ClippedSurrogate
from mmrl.losses.correction import MaskedImportance, TruncatedImportance
from mmrl.losses.entropy_bonus import EntropyBonus
from mmrl.losses.gspo import GSPO
from mmrl.losses.kl import KLToReference

TERMS = [
    ClippedSurrogate(dual_clip=3.0, correction=TruncatedImportance()),
    ClippedSurrogate(correction=MaskedImportance(level="sequence")),
    GSPO(correction=TruncatedImportance(level="sequence")),
    ClippedISPolicy(correction=MaskedImportance(low=1.1)),
    CappedISPolicy(),
    *(KLToReference(estimator) for estimator in ("k1", "k2", "k3", "k3_unbiased", "k3_plus")),
    EntropyBonus(),
]


def _loss_and_gradient(term, x):
    out = term(x)
    weights = x.mask / x.mask.sum()
    leaf = x.entropy if isinstance(term, EntropyBonus) else x.logps
    loss = (out.per_token * weights).sum()
    metrics = {name: (values * weights).sum() for name, values in out.metrics.items()}
    return loss, torch.autograd.grad(loss, leaf)[0], metrics


@pytest.mark.parametrize("term", TERMS, ids=repr)
@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, -3e38])
def test_padding_changes_nothing(random_inputs, term, padding):
    """All tensors hold the garbage at once; loss, gradient and metrics are bit-equal to zero padding, and finite."""
    clean = _loss_and_gradient(term, random_inputs(padding=0.0))
    dirty = _loss_and_gradient(term, random_inputs(padding=padding))
    assert dirty[0].isfinite()
    assert dirty[1].isfinite().all()
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_term_pickles_with_its_needs(term):
    copy = pickle.loads(pickle.dumps(term))
    assert copy == term
    assert copy.needs == term.needs
    assert "needs" not in {field.name for field in fields(term)}


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_nan_on_a_counted_token_is_not_hidden(random_inputs, term):
    x = random_inputs()
    with torch.no_grad():
        x.logps[0, 0] = math.nan
        x.entropy[0, 0] = math.nan
    assert _loss_and_gradient(term, x)[0].isnan()
