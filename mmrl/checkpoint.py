"""Checkpoints: a folder that transformers opens unchanged, with the optimizer and the run's state beside the weights.

Written under another name, synced, checksummed and renamed: a checkpoint is whole or it is not there. Only safetensors and JSON.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrl.errors import CheckpointError
from mmrl.models.load import quiet_transformers
from mmrl.models.policy import Policy
from mmrl.optim import Optimizer

STATE, OPTIMIZER, CHECKSUMS, ADAPTER = "trainer_state.json", "optimizer.safetensors", "checksums.json", "adapter"


def checkpoint_path(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step}"


def save_checkpoint(run: Path, step: int, policy: Policy, processor: Any, optimizer: Optimizer, state: dict[str, Any]) -> Path:
    """Writes checkpoint-<step>. `state` must be JSON."""
    final = checkpoint_path(run, step)
    part = run / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with quiet_transformers():
        if hasattr(policy.model, "get_base_model"):  # adapters: merged weights for whoever loads it, the adapter itself to go on from
            policy.model.save_pretrained(part / ADAPTER)
            copy.deepcopy(policy.model).merge_and_unload().save_pretrained(part)
        else:
            policy.model.save_pretrained(part)
        processor.save_pretrained(part)
    save_file({name: value.contiguous() for name, value in optimizer.state_tensors().items()}, part / OPTIMIZER)
    (part / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
    sums = {str(file.relative_to(part)): _digest(file) for file in sorted(part.rglob("*")) if file.is_file()}
    (part / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    for file in [*part.rglob("*"), part]:
        _sync(file)
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    _sync(run)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run; None if there is none."""
    steps = sorted(
        int(p.name.removeprefix("checkpoint-")) for p in run.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()
    )
    return checkpoint_path(run, steps[-1]) if steps else None


def verify(folder: Path) -> None:
    """CheckpointError unless every file is there and unchanged."""
    remedy = f"delete {folder} to go on from the checkpoint before it"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CHECKSUMS}: cannot be read ({error}); {remedy}") from error
    for name, digest in sums.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint; {remedy}")
        came = _digest(file)
        if came != digest:
            raise CheckpointError(f"{file}: damaged, checksum {came} instead of {digest}; {remedy}")


def read_state(folder: Path) -> dict[str, Any]:
    """The run's state as saved. Call `verify` first."""
    return json.loads((folder / STATE).read_text())


def load_weights(folder: Path, policy: Policy) -> None:
    """The checkpoint's weights into a policy built from the same recipe."""
    if hasattr(policy.model, "get_base_model"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, _tensors(folder / ADAPTER / "adapter_model.safetensors"))
        return
    with quiet_transformers():
        fresh = type(policy.model).from_pretrained(folder, dtype=next(policy.model.parameters()).dtype)
    policy.model.load_state_dict(fresh.state_dict())


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    optimizer.load_state_tensors(_tensors(folder / OPTIMIZER))


def prune(run: Path, keep: int, protected: Sequence[int]) -> None:
    """Deletes all but the newest `keep` checkpoints and those of the `protected` steps; renamed first, so that none is ever half there."""
    steps = sorted(
        int(p.name.removeprefix("checkpoint-")) for p in run.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()
    )
    for step in steps[: max(0, len(steps) - keep)]:
        if step not in protected:
            doomed = run / f".checkpoint-{step}.old"
            shutil.rmtree(doomed, ignore_errors=True)
            checkpoint_path(run, step).rename(doomed)
            shutil.rmtree(doomed)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
