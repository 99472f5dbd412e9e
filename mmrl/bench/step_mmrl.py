"""mmrl's half of `mmrl bench step`: the trainer itself, its calls timed from outside.

    python -m mmrl.bench.step_mmrl REQUEST.json RESULT.json

The two kinds of work are those of `trl_worker`, so that both sides run in processes of their own, alike in all but what they import.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mmrl import __version__
from mmrl.bench.arms import concatenated
from mmrl.bench.measure import peak_mb, process_mb, reset_peak, seconds
from mmrl.loop.collect import Collected
from mmrl.loop.update import Passes, TokenMeans, accumulate, row_of
from mmrl.recipe import load_recipe
from mmrl.recipe_file import dump
from mmrl.trainer import Trainer
from mmrl.types import Group, Sample


@dataclass(frozen=True)
class MeanToken:
    """Mean token id of the completion, in thousands: cheap, and hardly ever equal within a group. Range [0, vocabulary / 1000]."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group: Group) -> np.ndarray:
        return np.array([r.completion.ids.mean() / 1000 for r in group.rollouts], np.float32)


def main(request_file: str, result_file: str) -> None:
    Path(result_file).write_text(json.dumps(run(json.loads(Path(request_file).read_text()))))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """What the request asks for; see `trl_worker`."""
    torch.set_num_threads(1)
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    result: dict[str, Any] = {"versions": {"python": platform.python_version(), "mmrl": __version__, **versions}}
    trainer = _trainer(request)
    if request["work"] == "check":
        _check(trainer, request)
        return result
    return result | _steps(trainer) | {"concatenated": _concatenated(trainer, request["steps"])}


def _trainer(request: dict[str, Any]) -> Trainer:
    """On-policy GRPO, one task a step, TRL's defaults in the loss: token_mean is its dapo."""
    folder = Path(request["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "model": {"path": request["model"]},
        "tasks": {"train": {"use": "jsonl", "path": request["tasks"]}},
        "rollout": {"num_generations": request["num_generations"], "max_completion_length": request["max_completion_length"]},
        "rewards": [{"use": "mmrl.bench.step_mmrl:MeanToken"}],
        "optim": {"learning_rate": request["learning_rate"]},
        "trainer": {"max_steps": request["steps"], "tasks_per_step": 1, "output_dir": str(folder), "name": "run", "trackers": []},
    }  # fmt: skip
    file = folder / "step.yaml"
    file.write_text(dump(recipe))
    return Trainer(load_recipe(file), resume=False)


def _samples(trainer: Trainer) -> list[Sample]:
    trainer.engine.load_policy(trainer.policy, trainer.state.updates)
    collected: Collected = trainer.collector(0, 1, trainer._sampling())
    updates, _ = trainer._credit(collected, None)
    return updates[0]


def _check(trainer: Trainer, request: dict[str, Any]) -> None:
    """A group sampled by the engine; its log-probabilities, advantages and the gradient of the loss. mmrl gives picture and video tokens
    probability 0, TRL leaves their share in the denominator; here mmrl leaves it there too."""
    samples = _samples(trainer)
    policy = trainer.policy
    policy.banned_ids = policy.banned_ids[:0]
    rows = [row_of(sample) for sample in samples]
    logps = trainer.forward.logps(policy, rows)
    trainer.optimizer.zero_grad()
    accumulate(policy, trainer.forward, samples, Passes(None, None), trainer.terms, 0, TokenMeans())
    arrays: dict[str, Any] = {
        "picture": int(rows[0][0].task.meta["picture"]), "prompt": rows[0][0].ids, "completions": np.stack([ids for _, ids in rows]),
        "logps": np.stack(logps), "advantages": np.array([sample.advantages[0] for sample in samples]),
    }  # fmt: skip
    arrays |= {f"grad/{name.removeprefix('model.')}": p.grad.numpy() for name, p in policy.named_parameters() if p.grad is not None}
    np.savez(request["arrays"], **arrays)


def _steps(trainer: Trainer) -> dict[str, Any]:
    """A step goes from the end of the one before to its own, as TRL's does."""
    phases: dict[str, float] = {}
    records: list[dict[str, float]] = []
    lengths: set[int] = set()
    forwarded: list[float] = []
    memory = {"resident_mb": 0.0, "peak_mb": 0.0}
    mark = 0.0

    def timed(work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            out = work(*args, **kwargs)
            phases[phase] = phases.get(phase, 0.0) + time.process_time() - start
            return out

        return call

    generate, step = trainer.engine.generate, trainer._step

    def generated(*args: Any, **kwargs: Any) -> Any:
        out = generate(*args, **kwargs)
        lengths.update(len(completion.ids) for group in out for completion in group)
        return out

    def whole() -> dict[str, float]:
        nonlocal mark
        if not records:
            memory["resident_mb"] = reset_peak() or 0.0
            mark = time.process_time()
        metrics = step()
        now = time.process_time()
        records.append({"step": now - mark, **phases})
        phases.clear()
        mark = now
        memory["peak_mb"] = process_mb("VmHWM") or 0.0
        forwarded.append(metrics["forwarded"])
        return metrics

    policy: Any = trainer.policy
    trainer.engine.generate = timed(generated, "generate")
    trainer._update = timed(trainer._update, "update")
    policy.read_prefixes = timed(policy.read_prefixes, "logps_forward")
    policy.forward = timed(policy.forward, "logps_forward")
    trainer._step = whole
    trainer.run()
    return {"steps": records, "lengths": sorted(lengths), "forwarded": min(forwarded), **memory}


def _concatenated(trainer: Trainer, steps: int) -> dict[str, Any]:
    """The update by the strongest public shared-prefix form: same rows, same coefficients at the policy's own weights, same optimizer."""
    samples = _samples(trainer)
    rows = [row_of(sample) for sample in samples]
    coefficients = [torch.from_numpy(-sample.advantages * sample.token_weights) for sample in samples]

    def update() -> None:
        trainer.optimizer.zero_grad()
        concatenated(trainer.policy, rows, coefficients)
        trainer.optimizer.step(trainer.recipe.optim.learning_rate, trainer.recipe.update.max_grad_norm)

    _, peak = peak_mb(update, "cpu")
    return {"update": [seconds(update, "cpu") for _ in range(steps)], "peak_above_start_mb": peak or 0.0}


if __name__ == "__main__":
    main(*sys.argv[1:])
