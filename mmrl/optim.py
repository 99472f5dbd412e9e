"""AdamW over float32 weights, whatever the model's own type; the learning rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmrl.errors import RecipeError
from mmrl.recipe import OptimSection


class Optimizer:
    """AdamW. A bfloat16 or float16 model keeps float32 master weights here: a step of 1e-6 would vanish in its own type's rounding.

    Their gradients are summed in float32 too, so micro-batches do not lose one another's small parts. Weight decay acts on matrices only,
    as in the Hugging Face trainer; biases and norms keep their size.
    """

    def __init__(self, module: nn.Module, section: OptimSection) -> None:
        self.section = section
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.params = [p for p in module.parameters() if p.requires_grad]
        if not self.params:
            raise RecipeError("model: no weight is trained; unfreeze something (model.freeze_vision, model.lora)")
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in self.params]
        for param, master in zip(self.params, self.masters, strict=True):
            if master is not param:
                param.register_post_accumulate_grad_hook(_moves_gradient_to(master))
        groups = [
            {"params": [m for m in self.masters if m.ndim >= 2], "weight_decay": section.weight_decay},
            {"params": [m for m in self.masters if m.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (section.adam_beta1, section.adam_beta2)
        self.adamw = torch.optim.AdamW(groups, lr=section.learning_rate, betas=betas, eps=section.adam_epsilon)

    def zero_grad(self) -> None:
        for master in self.masters:
            master.grad = None

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Sums the gradient over ranks, clips it to `max_grad_norm` over all parameters together, steps, and returns the norm before
        clipping.

        A parameter that no row used has gradient 0, with one process as with several. A gradient that is not finite leaves weights and
        moments alone; the caller sees the norm it had.
        """
        self._sum_over_ranks()
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

    def norm(self) -> float:
        """Norm of the gradient, which is summed over ranks for it."""
        self._sum_over_ranks()
        return float(torch.nn.utils.get_total_norm([master.grad for master in self.masters if master.grad is not None]))

    def _sum_over_ranks(self) -> None:
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        sum_gradients_over_ranks(self.masters)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly: moments, step counts, and master weights where they differ from the model's."""
        state: dict[str, Tensor] = {}
        for name, param, master in zip(self.names, self.params, self.masters, strict=True):
            state |= {f"{key}/{name}": value for key, value in self.adamw.state.get(master, {}).items()}
            if master is not param:
                state[f"master/{name}"] = master.detach()
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """What `state_tensors` gave, into an optimizer of the same parameters."""
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


def _moves_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    def hook(param: Tensor) -> None:
        assert param.grad is not None
        master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
        param.grad = None

    return hook


def sum_gradients_over_ranks(params: Sequence[Tensor]) -> None:
    """Adds every rank's gradient in one exchange. Weights of the loss are global, so the sum is the gradient of the whole batch."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    torch.distributed.all_reduce(flat)
    for grad, total in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(total.view_as(grad))
