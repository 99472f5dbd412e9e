"""`mmrl bench group-forward`: one group's log-probabilities and gradient, by every arm in turn."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.bench import arms, flops
from mmrl.bench.measure import gemm_rate, peak_mb, seconds
from mmrl.bench.report import write_bench
from mmrl.bench.shapes import SHAPES, random_policy, random_prompt, random_rows
from mmrl.errors import RecipeError
from mmrl.models.policy import Policy
from mmrl.models.stream import Row

ARMS = ("naive", "vision_once", "concatenated", "shared")


def command(
    prompts: Sequence[int], completions: Sequence[int], groups: Sequence[int], size: str, names: str, rounds: int, max_tokens: int,
    view: bool, file: Path | None,
) -> None:  # fmt: skip
    """What the command line calls: every point of the grid, on the GPU if there is one, in bfloat16 there."""
    chosen = tuple(names.split(","))
    if size not in SHAPES:
        raise RecipeError(f"--model-size: got {size!r}; known: {', '.join(SHAPES)}")
    if not {"shared"} <= set(chosen) <= set(ARMS):
        raise RecipeError(f"--arms: got {names!r}; name shared, and any of {', '.join(ARMS)}, with commas between")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if device == "cpu":
        torch.set_num_threads(1)
    points = []
    for p, r, g in itertools.product(prompts, completions, groups):
        print(f"prompt {p}, completion {r}, num_generations {g}", file=sys.stderr)
        points.append(
            run(
                size, p, r, g, device=device, dtype=dtype, rounds=rounds, max_tokens=max_tokens, names=chosen, with_view=view,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
        )  # fmt: skip
        write_bench(file, points)


def run(
    size: str,
    prompt_tokens: int,
    completion: int,
    num_generations: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rounds: int = 3,
    max_tokens: int = 512,
    names: tuple[str, ...] = ("naive", "vision_once", "shared"),
    with_view: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """One point: medians of `rounds` rounds in which the arms take turns, and ratios to the naive arm if it is one of them. A first step of
    every arm gives its peak memory and how far its log-probabilities and gradients are from the naive arm's; its time, with all memory
    faulted in anew, counts only if there are no rounds."""
    policy = random_policy(size, device, dtype)
    prompt = random_prompt(policy, prompt_tokens)
    rows = random_rows(policy, prompt, [completion] * num_generations)
    coefficients = _coefficients(rows, policy)
    chosen: Mapping[str, arms.Arm] = {
        "naive": arms.naive, "vision_once": arms.vision_once, "concatenated": arms.concatenated, "shared": arms.shared(max_tokens),
    }  # fmt: skip
    chosen = {name: chosen[name] for name in names}
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    found, peaks, took = _first_steps(policy, chosen, rows, coefficients)
    errors = {name: _difference(result, found["naive"]) for name, result in found.items()} if "naive" in found else {}
    del found
    for name in chosen:
        say(f"  {name}: first step {took[name]:.2f} s, {peaks[name] or 0:.0f} MB, largest difference to naive {errors.get(name)}")

    def step(arm: arms.Arm) -> None:
        policy.zero_grad(set_to_none=False)
        arm(policy, rows, coefficients)

    def forward(arm: arms.Arm) -> None:
        with torch.no_grad():
            arm(policy, rows, coefficients)

    def with_a_view() -> None:
        """The step, and the completions' log-probabilities under another picture, without gradient."""
        forward_view()
        step(chosen["shared"])

    other = random_prompt(policy, prompt_tokens, seed=7)
    view_rows = [(other, ids) for _, ids in rows]

    def forward_view() -> None:
        with torch.no_grad():
            chosen["shared"](policy, view_rows, coefficients)

    works: dict[str, Callable[[], None]] = {}
    for name, arm in chosen.items():
        works[f"step {name}"] = lambda arm=arm: step(arm)
        works[f"forward {name}"] = lambda arm=arm: forward(arm)
    if with_view:
        works["step with a view"] = with_a_view
        works["view"] = forward_view
    costs = {name: list[float]() for name in works} if rounds else {f"step {name}": [took[name]] for name in chosen}
    rates = []
    for n in range(rounds):
        rates.append(gemm_rate(device, dtype))
        for name, work in works.items():
            costs[name].append(seconds(work, device))
            say(f"  round {n + 1}: {name} {costs[name][-1]:.2f} s")
    rates.append(gemm_rate(device, dtype))
    return _result(size, prompt_tokens, completion, num_generations, dtype, max_tokens, rounds, prompt, costs, peaks, rates, errors)


def _result(
    size: str, prompt_tokens: int, completion: int, num_generations: int, dtype: torch.dtype, max_tokens: int, rounds: int,
    prompt: Any, costs: Mapping[str, list[float]], peaks: Mapping[str, float | None], rates: list[float], errors: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    median = {name: statistics.median(of) for name, of in costs.items()}
    patches = len(prompt.mm_inputs["pixel_values"])
    lengths = [completion] * num_generations
    floor = flops.shared(SHAPES[size], prompt_tokens, lengths, patches)
    out: dict[str, Any] = {
        "model_size": size, "prompt": prompt_tokens, "completion": completion, "num_generations": num_generations,
        "dtype": str(dtype).removeprefix("torch."), "max_tokens_per_stream": max_tokens, "rounds": rounds,
        "flop_ratio": round(flops.repeated(SHAPES[size], prompt_tokens, lengths, patches).step() / floor.step(), 2),
        "gemm_rate_gflops": round(statistics.median(rates) / 1e9, 1),
        "gemm_fraction": round(floor.step() / median["step shared"] / statistics.median(rates), 3),
        "gemm_fraction_range": _range(floor.step() / seconds / rate for seconds, rate in zip(costs["step shared"], rates, strict=False)),
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "peak_mb": {name: None if value is None else round(value) for name, value in peaks.items()},
        **{f"max_rel_err_{kind}": errors["shared"][kind] for kind in ("logps", "grad", "grad_norm") if "shared" in errors},
    }  # fmt: skip
    if "step naive" in costs:
        ratios = [a / b for a, b in zip(costs["step naive"], costs["step shared"], strict=True)]
        out |= {
            "speedup_step": round(statistics.median(ratios), 2),
            "speedup_step_range": _range(ratios),
            "memory_ratio": round(peaks["shared"] / peaks["naive"], 3) if peaks["shared"] and peaks["naive"] else None,
        }
    if "forward naive" in median:
        out["speedup_forward"] = round(median["forward naive"] / median["forward shared"], 2)
    if "step with a view" in median:
        out["view_ratio"] = round(median["step with a view"] / median["step shared"], 2)
        costs_of_view = [view / step for view, step in zip(costs["view"], costs["step shared"], strict=True)]
        out["view_cost"] = round(statistics.median(costs_of_view), 3)
        out["view_cost_range"] = _range(costs_of_view)
    return out


def _range(values: Iterable[float]) -> list[float]:
    """Least and largest, of the rounds."""
    found = list(values)
    return [round(min(found), 3), round(max(found), 3)]


def _coefficients(rows: list[Row], policy: Policy) -> list[Tensor]:
    """Of an on-policy policy gradient: minus a normalised advantage per row, over all tokens."""
    advantages = torch.randn(len(rows), generator=torch.Generator().manual_seed(3))
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    total = sum(len(ids) for _, ids in rows)
    return [torch.full((len(ids),), float(-a) / total, device=policy.device) for a, (_, ids) in zip(advantages, rows, strict=True)]


Found = tuple[Tensor, dict[str, Tensor]]
"""Log-probabilities, and every parameter's gradient by its name; in the host's memory, as a large model's fill the device's."""


def _first_steps(
    policy: Policy, chosen: Mapping[str, arms.Arm], rows: list[Row], coefficients: list[Tensor]
) -> tuple[dict[str, Found], dict[str, float | None], dict[str, float]]:
    """What every arm finds, its peak memory in MB, and its seconds."""
    found: dict[str, Found] = {}
    peaks: dict[str, float | None] = {}
    took: dict[str, float] = {}
    device = policy.device.type
    for name, arm in chosen.items():
        policy.zero_grad(set_to_none=False)
        logps: list[Tensor] = []
        step = lambda arm=arm, logps=logps: logps.append(arm(policy, rows, coefficients))  # noqa: E731
        took[name], peaks[name] = peak_mb(lambda step=step: seconds(step, device), device)
        found[name] = (logps[0].cpu(), {key: p.grad.to("cpu", copy=True) for key, p in policy.named_parameters() if p.grad is not None})
    return found, peaks, took


def _difference(one: Found, other: Found) -> dict[str, float]:
    """logps: largest |difference| of log-probabilities over the largest |log-probability|. grad: of a parameter's gradient over its largest
    entry. grad_norm: the norm of its difference over its norm. A gradient counts as a thousandth of the model's largest at least."""
    (logps, grads), (their_logps, their_grads) = other, one

    def worst(size: Callable[[Tensor], Tensor]) -> float:
        floor = 1e-3 * max(float(size(g)) for g in grads.values())
        return max(float(size(their_grads[key] - g)) / max(float(size(g)), floor) for key, g in grads.items())

    largest_logp = float((their_logps - logps).abs().max() / logps.abs().max())
    return {"logps": largest_logp, "grad": worst(lambda g: g.abs().max()), "grad_norm": worst(torch.linalg.vector_norm)}
