import pytest
import torch

from mmrl.losses.entropy_bonus import EntropyBonus


def test_loss_is_minus_the_entropy(random_inputs):
    x = random_inputs()
    out = EntropyBonus()(x)
    out.per_token.sum().backward()
    torch.testing.assert_close(out.per_token[x.mask].detach(), -x.entropy[x.mask].detach())
    torch.testing.assert_close(x.entropy.grad, -x.mask.float())
    torch.testing.assert_close(out.metrics["entropy"][x.mask], x.entropy[x.mask].detach())
    assert not out.metrics["entropy"].requires_grad


def test_missing_entropy_is_an_error(loss_inputs):
    with pytest.raises(ValueError, match="this term needs entropy"):
        EntropyBonus()(loss_inputs(logps=[[-1.0]]))
