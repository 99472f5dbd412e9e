"""AdamW over float32 weights, whatever the model's own type; the learning rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrl.recipe import OptimSection


class Optimizer:
    """AdamW. A bfloat16 or float16 model keeps float32 master weights here: a step of 1e-6 would vanish in its own type's rounding.

    Weight decay acts on matrices only, as in the Hugging Face trainer; biases and norms keep their size.
    """

    def __init__(self, module: nn.Module, section: OptimSection) -> None:
        self.section = section
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in self.params]
        groups = [
            {"params": [m for m in self.masters if m.ndim >= 2], "weight_decay": section.weight_decay},
            {"params": [m for m in self.masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (section.adam_beta1, section.adam_beta2)
        self.adamw = torch.optim.AdamW(groups, lr=section.learning_rate, betas=betas, eps=section.adam_epsilon)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clips the gradient of all parameters together to `max_grad_norm`, steps, and returns the norm before clipping.

        A gradient that is not finite leaves the weights alone; the caller sees the norm it had.
        """
        for param, master in zip(self.params, self.masters, strict=True):
            if master is not param:
                master.grad = None if param.grad is None else param.grad.float()
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm))
        if not math.isfinite(norm):
            return norm
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        with torch.no_grad():
            for param, master in zip(self.params, self.masters, strict=True):
                if master is not param:
                    param.copy_(master)
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly: moments, step counts, and master weights where they differ from the model's."""
        state: dict[str, Tensor] = {}
        for name, param, master in zip(self.names, self.params, self.masters, strict=True):
            state |= {f"{key}/{name}": value for key, value in self.adamw.state.get(master, {}).items()}
            if master is not param:
                state[f"master/{name}"] = master.detach()
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        for name, param, master in zip(self.names, self.params, self.masters, strict=True):
            own = {key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in state}
            if own:
                self.adamw.state[master] = {k: v.clone() if k == "step" else v.clone().to(master.device) for k, v in own.items()}
            if master is not param:
                with torch.no_grad():
                    master.copy_(state[f"master/{name}"])


def learning_rate(section: OptimSection, step: int, max_steps: int) -> float:
    """Rate at `step` (from 0): a linear warm-up over warmup_steps, then constant, or falling to 0 at `max_steps`."""
    peak = section.learning_rate
    if section.lr_scheduler_type == "constant":
        return peak
    if step < section.warmup_steps:
        return peak * (step + 1) / (section.warmup_steps + 1)
    if section.lr_scheduler_type == "constant_with_warmup":
        return peak
    progress = (step - section.warmup_steps) / max(1, max_steps - section.warmup_steps)
    return peak * (1 - progress) if section.lr_scheduler_type == "linear" else peak * 0.5 * (1 + math.cos(math.pi * progress))


def sum_gradients_over_ranks(params: Sequence[nn.Parameter]) -> None:
    """Adds every rank's gradient, in float32, in one exchange. Weights of the loss are global, so the sum is the gradient of the whole
    batch; a parameter that one rank did not use counts as zero there."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).float().reshape(-1) for p in params])
    torch.distributed.all_reduce(flat)
    at = 0
    for p in params:
        p.grad = flat[at : at + p.numel()].view_as(p).to(p.dtype)
        at += p.numel()
