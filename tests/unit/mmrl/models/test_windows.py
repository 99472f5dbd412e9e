"""The vision tower with all windows in one call against transformers' own, window by window."""

import pytest
import torch

from mmrl.bench.shapes import random_policy
from mmrl.models import windows
from mmrl.models.windows import NAME, own_attention, take_windows


def with_gradients(tower, pixels, grids):
    tower.zero_grad()
    out = tower(pixels, grids)
    features = out.pooler_output if isinstance(out.pooler_output, torch.Tensor) else torch.cat(list(out.pooler_output))
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(1))
    (features * weights).sum().backward()
    return [features.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)]


def picture(tower, *grids):
    """Patches of pictures of t x h x w patches."""
    config = tower.config
    width = 3 * config.temporal_patch_size * config.patch_size**2
    count = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, dtype=torch.float64, generator=generator), torch.tensor(grids)


# 8 x 8 patches are a window of Qwen2.5-VL: whole windows; cut ones at both edges; several media, one of them a clip
@pytest.mark.parametrize("grids", [[(1, 16, 16)], [(1, 10, 12)], [(1, 4, 4), (2, 10, 6), (1, 2, 20)]])
@pytest.mark.parametrize("has_kernel", [True, False], ids=["kernel", "window by window"])
def test_all_windows_in_one_call(monkeypatch, grids, has_kernel):
    """Without a kernel that takes the tensors, each window goes through torch's own attention."""
    tower = random_policy("small", "cpu", torch.float64).base.model.visual
    assert tower.config._attn_implementation == NAME
    monkeypatch.setattr(windows, "has_flash", lambda q: has_kernel)
    media = picture(tower, *grids)
    came = with_gradients(tower, *media)
    own_attention(tower)
    assert tower.config._attn_implementation == "sdpa"
    expected = with_gradients(tower, *media)
    assert len(came) == len(expected)
    for one, other in zip(came, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm() + 1e-9  # transformers rotates in float32


def test_other_attention_is_left_alone(new_policy):
    tower = new_policy().base.model.visual
    own_attention(tower)
    tower.set_attn_implementation("eager")
    take_windows(tower)
    own_attention(tower)
    assert tower.config._attn_implementation == "eager"
