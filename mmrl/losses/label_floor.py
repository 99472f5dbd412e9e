"""A guard for rows that were given and not sampled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmrl.batch import LossInputs
from mmrl.losses.needs import needed
from mmrl.ops import masked
from mmrl.protocols import Correction


@dataclass(frozen=True)
class LabelFloor:
    """Weight 0 for a given completion (a label) whose mean log-probability as the step began is below `floor`; else the weights of `of`.

    Such a label is mostly written in another form than the model's, and its gradient would go into spaces and brackets (ViSurf,
    arXiv:2510.10606; the guard is ours). Sampled completions are left alone, and so are denominators: the label still counts as a row.
    """

    floor: float
    """Nats per token, below 0; -5, say."""
    of: Correction | None = None
    """Weights of all other rows; null = 1."""

    def __post_init__(self) -> None:
        if not -float("inf") < self.floor < 0:
            raise ValueError(f"floor must be finite and below 0 nats per token; got {self.floor}")

    def __call__(self, x: LossInputs) -> Float[Tensor, "b t"]:
        weights = torch.ones_like(x.old_logps) if self.of is None else self.of(x)
        mean = masked(x.old_logps, x.mask).sum(-1) / x.mask.sum(-1).clamp(min=1)
        refused = needed(x, "given") & (mean < self.floor)
        return torch.where(refused[:, None], torch.zeros_like(weights), weights)
