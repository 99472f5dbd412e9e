"""AdamW with float32 master weights, and the learning rate of every step."""

import math

import pytest
import torch
from torch import nn

from mmrl.errors import RecipeError
from mmrl.optim import Optimizer, learning_rate
from mmrl.recipe import OptimSection


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=generator))
        self.bias = nn.Parameter(torch.randn(3, generator=generator))


def pull(module: nn.Module, step: int) -> None:
    """Adds a keyed gradient to every parameter, by a backward."""
    generator = torch.Generator().manual_seed(step)
    sum((p * torch.randn(p.shape, generator=generator).to(p.dtype)).sum() for p in module.parameters() if p.requires_grad).backward()


def test_in_float32_it_is_torchs_adamw_with_the_clip_before_it():
    ours, theirs = Net(), Net()
    section = OptimSection(learning_rate=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    optimizer = Optimizer(ours, section)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0)
    for step in range(5):
        rate = 0.1 / (step + 1)
        optimizer.zero_grad()
        reference.zero_grad()
        pull(ours, step)
        pull(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        assert optimizer.step(rate, 0.5) == float(norm)
    assert torch.equal(ours.matrix, theirs.matrix)
    assert torch.equal(ours.bias, theirs.bias)


def test_decay_acts_on_matrices_only():
    """Gradient 0, rate 0.1, decay 0.5: a matrix is multiplied by 1 - 0.1 * 0.5 = 0.95, a bias stays."""
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    Optimizer(net, OptimSection(weight_decay=0.5)).step(0.1, 1.0)
    torch.testing.assert_close(net.matrix, 0.95 * before["matrix"])
    assert torch.equal(net.bias, before["bias"])


def test_a_bfloat16_model_moves_at_a_rate_below_its_own_rounding():
    """At weight 1, bfloat16 cannot hold less than 1/256 more or less: 2,500 steps of 1e-6 are 0.0025, lost one by one without masters."""
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        net.weight.fill_(1.0)
    optimizer = Optimizer(net, OptimSection(learning_rate=1e-6))
    for _ in range(2500):
        optimizer.zero_grad()
        net.weight.sum().backward()
        optimizer.step(1e-6, 1.0)
    assert net.weight.item() == 1.0 - 1 / 256  # the neighbour nearest to 0.9975
    assert optimizer.masters[0].item() == pytest.approx(0.9975, abs=1e-4)


def test_micro_batches_of_a_bfloat16_model_do_not_lose_each_others_gradient():
    """1 + 64 / 1024: each 1/1024 is below bfloat16's rounding at 1, so a sum in bfloat16 stays 1."""
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = Optimizer(net, OptimSection())
    optimizer.zero_grad()
    for share in [1.0] + [1 / 1024] * 64:
        (net.weight.sum() * share).backward()
    assert optimizer.step(0.0, 1e9) == 1.0625


def test_one_pass_without_any_row_still_moves_by_the_moments():
    """A parameter without a gradient has gradient 0, as it has where other processes bring zeros: AdamW's moments go on."""
    net = Net()
    optimizer = Optimizer(net, OptimSection())
    pull(net, 0)
    optimizer.step(0.1, 1.0)
    before = net.matrix.detach().clone()
    optimizer.zero_grad()
    assert optimizer.step(0.1, 1.0) == 0.0
    assert not torch.equal(net.matrix, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_alone(bad):
    net = Net()
    optimizer = Optimizer(net, OptimSection())
    pull(net, 0)
    optimizer.step(0.1, 1.0)
    before = {name: value.clone() for name, value in optimizer.state_tensors().items()} | {"w": net.matrix.detach().clone()}
    optimizer.zero_grad()
    (net.matrix.sum() * bad).backward()
    assert not math.isfinite(optimizer.step(0.1, 1.0))
    after = optimizer.state_tensors() | {"w": net.matrix}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_goes_on_bit_for_bit(dtype):
    one, other = Net().to(dtype), Net().to(dtype)
    first = Optimizer(one, OptimSection(weight_decay=0.1))
    for step in range(3):
        first.zero_grad()
        pull(one, step)
        first.step(0.01, 1.0)
    other.load_state_dict(one.state_dict())
    second = Optimizer(other, OptimSection(weight_decay=0.1))
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()})
    for step in range(3, 6):
        for optimizer, net in ((first, one), (second, other)):
            optimizer.zero_grad()
            pull(net, step)
            optimizer.step(0.01, 1.0)
    assert torch.equal(one.matrix, other.matrix)
    assert all(torch.equal(value, second.state_tensors()[name]) for name, value in first.state_tensors().items())


def test_gradients_of_all_ranks_are_added_up(monkeypatch):
    """A second rank with three times this one's gradient: four times its norm, and a parameter that only one of them used counts too."""

    def all_reduce(flat):
        flat.mul_(4)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    net = Net()
    optimizer = Optimizer(net, OptimSection())
    net.matrix.sum().backward()  # six ones: norm sqrt(6)
    assert optimizer.step(0.1, 1e9) == pytest.approx(4 * math.sqrt(6))
    assert torch.equal(optimizer.masters[0].grad, torch.full((3, 2), 4.0))
    assert torch.equal(optimizer.masters[1].grad, torch.zeros(3))


def test_frozen_weights_are_left_out_and_nothing_to_train_is_refused():
    net = Net()
    net.bias.requires_grad_(False)
    assert Optimizer(net, OptimSection()).names == ["matrix"]
    with pytest.raises(RecipeError, match="no weight is trained"):
        Optimizer(net.requires_grad_(False), OptimSection())


@pytest.mark.parametrize(
    ("kind", "warmup", "rates"),
    [
        ("constant", 0, [8, 8, 8, 8, 8, 8]),
        ("constant_with_warmup", 3, [2, 4, 6, 8, 8, 8]),
        ("linear", 0, [8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6]),
        ("linear", 2, [8 / 3, 16 / 3, 8, 6, 4, 2]),
        ("cosine", 0, [4 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]),
        ("cosine", 3, [2, 4, 6, 8, 6, 2]),
    ],
)
def test_the_learning_rate_by_hand(kind, warmup, rates):
    """Peak 8, six steps. Cosine after a warm-up of 3: progress 0, 1/3, 2/3 -> 8, 4 (1 + 0.5), 4 (1 - 0.5)."""
    section = OptimSection(learning_rate=8.0, lr_scheduler_type=kind, warmup_steps=warmup)
    assert [learning_rate(section, step, 6) for step in range(6)] == pytest.approx(rates)
