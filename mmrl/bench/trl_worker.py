"""TRL's half of `mmrl bench step`: its own GRPOTrainer, run by the interpreter of an environment that has TRL. Imports nothing of mmrl.

    python trl_worker.py REQUEST.json RESULT.json

`"work": "check"`: log-probabilities, advantages and gradient of TRL's loss for completions that are given, to an .npz file.
`"work": "steps"`: some steps of training; CPU seconds of each, by phase, and the peak of memory.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = ("trl", "torch", "transformers", "accelerate", "datasets")


def main(request_file: str, result_file: str) -> None:
    request: dict[str, Any] = json.loads(Path(request_file).read_text())
    torch.set_num_threads(1)
    scored_compactly = _score_completions_only() if request["score_completions_only"] else None
    trainer, clock = _trainer(request)
    result: dict[str, Any] = {"versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}}
    if request["work"] == "check":
        _check(trainer, request)
    else:
        result |= _steps(trainer, clock)
    if scored_compactly is not None and not scored_compactly:
        raise RuntimeError("this TRL does not ask trl.trainer.utils._use_triton which positions to score, so nothing was forced")
    Path(result_file).write_text(json.dumps(result))


def _score_completions_only() -> list[bool]:
    """Makes the head project completion positions only, as on a GPU. On a CPU TRL projects the prompt's too, because it decides that by
    whether Triton kernels can run; the kernels themselves stay off. The list grows whenever TRL asks."""
    import trl.trainer.utils as utils  # pyright: ignore[reportMissingImports]

    asked: list[bool] = []

    def answer(device: torch.device) -> bool:
        asked.append(True)
        return True

    if not hasattr(utils, "_use_triton"):
        raise RuntimeError("this TRL has no trl.trainer.utils._use_triton, by which completion-only scoring is forced")
    utils._use_triton = answer
    return asked


def mean_token(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The reward: cheap, and hardly ever equal within a group."""
    return [float(np.mean(ids)) / 1000 for ids in completion_ids]


def _trainer(request: dict[str, Any]) -> tuple[Any, Clock]:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    config = GRPOConfig(
        output_dir=request["output_dir"], use_cpu=True, bf16=False, per_device_train_batch_size=request["num_generations"],
        num_generations=request["num_generations"], max_completion_length=request["max_completion_length"], max_steps=request["steps"],
        learning_rate=request["learning_rate"], lr_scheduler_type="constant", beta=0.0, temperature=1.0, loss_type="dapo",
        gradient_checkpointing=False, shuffle_dataset=False, save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": request["question"]}], "images": [Image.open(path)]}
        for path in map(str, request["pictures"])
    ]
    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(request["model"], dtype=torch.float32),
        processing_class=AutoProcessor.from_pretrained(request["model"]),
        reward_funcs=mean_token, args=config, train_dataset=Dataset.from_list(rows), callbacks=[_callback(clock)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def _check(trainer: Any, request: dict[str, Any]) -> None:
    """TRL's own way from a batch to its loss, with the given completions in the place of what it would generate."""
    given = np.load(request["completions"])
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._generate_single_turn = lambda *_, **__: (given["completions"].tolist(), None)
    batch = [trainer.train_dataset[int(given["picture"])] for _ in given["completions"]]
    inputs = trainer._generate_and_score_completions(batch)
    logps: list[torch.Tensor] = []
    score = trainer._get_per_token_logps_and_entropies

    def kept(*args: Any, **kwargs: Any) -> Any:
        out = score(*args, **kwargs)
        logps.append(out[0].detach())
        return out

    trainer._get_per_token_logps_and_entropies = kept
    trainer.compute_loss(trainer.model, inputs).backward()
    arrays: dict[str, Any] = {
        "prompt": inputs["prompt_ids"][0].numpy(), "completions": inputs["completion_ids"].numpy(),
        "logps": logps[0].numpy(), "advantages": inputs["advantages"].numpy(),
    }  # fmt: skip
    arrays |= {f"grad/{name}": p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
    np.savez(request["arrays"], **arrays)


class Clock:
    """CPU seconds of this process, by step and phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.records: list[dict[str, float]] = []
        self.mark = self.update_began = 0.0
        self.resident_mb = self.peak_mb = 0.0

    def begin(self) -> None:
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")
        self.resident_mb = _process_mb("VmRSS")
        self.mark = time.process_time()

    def end_step(self) -> None:
        now = time.process_time()
        self.records.append({"step": now - self.mark, "update": now - self.update_began, **self.phases})
        self.phases, self.mark = {}, now
        self.peak_mb = _process_mb("VmHWM")

    def timed(self, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            out = work(*args, **kwargs)
            self.phases[phase] = self.phases.get(phase, 0.0) + time.process_time() - start
            return out

        return call


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_step()

    return Callback()


def _steps(trainer: Any, clock: Clock) -> dict[str, Any]:
    """A step goes from the end of the one before to its own: reading pictures, prompts, generation, rewards, loss, optimizer. The update
    begins where the loss is asked for."""
    generate, loss = trainer._generate_single_turn, trainer.compute_loss
    lengths: set[int] = set()

    def generated(*args: Any, **kwargs: Any) -> Any:
        out = generate(*args, **kwargs)
        lengths.update(len(ids) for ids in out[0])
        return out

    def update(*args: Any, **kwargs: Any) -> Any:
        clock.update_began = time.process_time()
        return loss(*args, **kwargs)

    trainer._generate_single_turn = clock.timed(generated, "generate")
    trainer._get_per_token_logps_and_entropies = clock.timed(trainer._get_per_token_logps_and_entropies, "logps_forward")
    trainer.compute_loss = update
    trainer.train()
    return {"steps": clock.records, "lengths": sorted(lengths), "resident_mb": clock.resident_mb, "peak_mb": clock.peak_mb}


def _process_mb(name: str) -> float:
    """VmRSS or VmHWM; 0 where the system does not say."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
