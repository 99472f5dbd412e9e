from copy import deepcopy

import pytest
import torch
from torch import nn

from mmrl.models.patches import PatchProjection, project_patches
from mmrl.models.policy import Policy


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_convolution(bias):
    """Values and gradients; other inputs are convolved as before."""
    plain = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4), bias=bias).double()
    tower = nn.Module()
    tower.patch_embed = nn.Module()
    tower.patch_embed.proj = deepcopy(plain)
    project_patches(tower)
    ours = tower.patch_embed.proj
    assert type(ours) is PatchProjection
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for shape in ((7, 3, 2, 4, 4), (2, 3, 4, 8, 4)):
        x = torch.randn(shape, dtype=torch.float64)
        out, expected = ours(x), plain(x)
        torch.testing.assert_close(out, expected)
        plain.zero_grad()
        ours.zero_grad()
        expected.pow(2).sum().backward()
        out.pow(2).sum().backward()
        torch.testing.assert_close(ours.weight.grad, plain.weight.grad)


def test_policies_have_it(shared_policy, qwen3_vl):
    for policy in (shared_policy, Policy(qwen3_vl[0])):
        assert type(policy.base.model.visual.patch_embed.proj) is PatchProjection


def test_a_convolution_that_is_no_product_stays():
    tower = nn.Module()
    tower.patch_embed = nn.Module()
    tower.patch_embed.proj = nn.Conv3d(3, 8, (2, 4, 4), padding=1)
    project_patches(tower)
    assert type(tower.patch_embed.proj) is nn.Conv3d
