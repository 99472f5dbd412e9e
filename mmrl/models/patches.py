"""The vision tower's patch embedding as the matrix product that it is.

Its convolution's kernel covers a patch whole, so each patch is one row times one matrix. PyTorch's convolution takes three times as long
over that on a CPU, and is slow on some GPUs too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """A convolution over inputs of its kernel's size, [N, C, *kernel] to [N, D, 1, 1, 1]."""

    def forward(self, input: Tensor) -> Tensor:
        if tuple(input.shape[2:]) != self.kernel_size:
            return super().forward(input)
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def project_patches(vision_tower: Any) -> None:
    """Makes the tower's patch embedding a matrix product; its parameters, their names and what is saved stay."""
    projection = vision_tower.patch_embed.proj
    if type(projection) is nn.Conv3d and not any(projection.padding) and projection.groups == 1:
        projection.__class__ = PatchProjection
