import math

import pytest
import torch

from mmrl.batch import LossInputs


@pytest.fixture
def loss_inputs():
    """Builds LossInputs from nested lists; `logps` is a leaf, `log_ratio` sets old_logps = logps - log_ratio."""

    def build(logps=None, log_ratio=0.0, advantages=None, mask=None, old_logps=None, **optional):
        log_ratio = torch.tensor(log_ratio)
        logps = torch.full_like(log_ratio, -1.0) if logps is None else torch.tensor(logps)
        old_logps = logps - log_ratio if old_logps is None else torch.tensor(old_logps)
        return LossInputs(
            logps=logps.requires_grad_(),
            old_logps=old_logps,
            advantages=torch.ones_like(old_logps) if advantages is None else torch.tensor(advantages),
            mask=torch.ones_like(old_logps, dtype=torch.bool) if mask is None else torch.tensor(mask),
            **{name: torch.tensor(value) for name, value in optional.items()},
        )

    return build


@pytest.fixture
def random_inputs():
    """3 rows of 5 tokens, lengths 5, 3, 1, with every optional tensor; log ratios wide enough to reach each clip."""

    def build(seed=0, padding=0.0):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.arange(5) < torch.tensor([[5], [3], [1]])

        def draw(scale, shift=0.0):
            values = torch.randn(3, 5, generator=generator) * scale + shift
            return torch.where(mask, values, torch.tensor(padding))

        logps = draw(0.5, -2.0)
        return LossInputs(
            logps=logps.clone().requires_grad_(),
            old_logps=logps + draw(0.8),
            advantages=draw(1.0),
            mask=mask,
            sampling_logps=logps + draw(0.8),
            ref_logps=logps + draw(0.8),
            entropy=draw(0.2, 2.0).requires_grad_(),
        )

    return build


@pytest.fixture
def scalar_reference():
    """`check(term, x, token_loss)`: each counted token of `term(x)` equals `token_loss(i, t, row)` in plain floats, padding is 0."""

    def check(term, x, token_loss):
        out = term(x).per_token
        for i, length in enumerate(x.mask.sum(-1).tolist()):
            row = {
                name: value[i, :length].tolist()
                for name in ("logps", "old_logps", "advantages", "sampling_logps", "ref_logps", "entropy")
                if (value := getattr(x, name)) is not None
            }
            for t in range(out.shape[1]):
                expected = token_loss(t, row) if t < length else 0.0
                assert math.isclose(out[i, t].item(), expected, rel_tol=1e-5, abs_tol=1e-5), (i, t)

    return check
