"""Checkpoints: a folder that transformers opens unchanged, with the optimizer and the run's state beside the weights.

Written under another name, synced, checksummed and renamed: a checkpoint is whole or it is not there. Only safetensors and JSON. Names that
begin with a dot are work in progress: `.checkpoint-<step>.part` is being written, `.checkpoint-<step>.gone` is being deleted, and
`.checkpoint-<step>.old` stands in for its successor for the moment between two renames. `tidy` clears up after a kill.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrl.errors import CheckpointError
from mmrl.models.policy import Policy
from mmrl.models.quiet import quiet_transformers
from mmrl.optim import Optimizer
from mmrl.recipe import Recipe, to_yaml
from mmrl.recipe_file import flat

MAY_CHANGE = frozenset(
    f"trainer.{name}"
    for name in (
        "name", "output_dir", "eval_steps", "eval_batch_size", "save_steps", "save_total_limit", "log_completions_steps", "trackers",
        "arm_grad_norm_steps", "reward_failure_limit", "early_stop", "max_minutes",
    )
) | {"update.per_device_train_batch_size", "update.max_tokens_per_stream", "model.gradient_checkpointing", "eval.tasks"}  # fmt: skip
"""Recipe keys that a resumed run may have otherwise: they do not change what is learned. The sizes of streams and gradient checkpointing
leave the gradient equal only up to rounding: a run that ran out of memory may go on with less."""
ABSENT = "(not set)"
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
    old = run / f".{final.name}.old"
    if final.exists():
        final.rename(old)
    part.rename(final)
    _sync(run)
    shutil.rmtree(old, ignore_errors=True)
    return final


def tidy(run: Path) -> None:
    """Clears up what a killed run left half done. A checkpoint that was about to be replaced by a newer form of itself comes back."""
    for old in run.glob(".checkpoint-*.old"):
        final = run / old.name.removeprefix(".").removesuffix(".old")
        if not final.exists():
            old.rename(final)
    for left in [*run.glob(".checkpoint-*"), *run.rglob(".*.part")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run; None if there is none."""
    steps = _steps(run)
    return checkpoint_path(run, steps[-1]) if steps else None


def verify(folder: Path) -> None:
    """CheckpointError unless every file is there and unchanged."""
    remedy = f"delete {folder} to go on from the checkpoint before it"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CHECKSUMS}: cannot be read ({error}); {remedy}") from error
    if not isinstance(sums, dict) or not {STATE, OPTIMIZER, "config.json"} <= sums.keys():
        raise CheckpointError(f"{folder / CHECKSUMS}: does not list the files of a checkpoint; {remedy}")
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
    steps = _steps(run)
    for step in steps[: max(0, len(steps) - keep)]:
        if step not in protected:
            doomed = run / f".checkpoint-{step}.gone"
            checkpoint_path(run, step).rename(doomed)
            shutil.rmtree(doomed)


def refuse_other_recipe(folder: Path, saved: str, recipe: Recipe) -> None:
    """CheckpointError if going on from `folder`, saved under the recipe `saved` (YAML), under `recipe` would not be the same run.

    What may change: the keys of MAY_CHANGE, and trainer.max_steps where neither the learning rate nor a shaper depends on it.
    """
    before, now = flat(yaml.safe_load(saved)), flat(yaml.safe_load(to_yaml(recipe)))
    by_max_steps = recipe.optim.lr_scheduler_type in ("linear", "cosine") or bool(recipe.shaping)
    free = MAY_CHANGE if by_max_steps else MAY_CHANGE | {"trainer.max_steps"}
    changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key, ABSENT) != now.get(key, ABSENT) and not _is_free(key, free)]
    if changed:
        lines = [f"  {key}: was {before.get(key, ABSENT)}, now {now.get(key, ABSENT)}" for key in changed]
        raise CheckpointError(
            f"{folder}: going on with another recipe would not be the same run:\n" + "\n".join(lines) + "\nGive the old values back, or "
            f"start a run under another trainer.name; to start it from these weights: --set model.path={folder}"
        )


def _is_free(key: str, free: Set[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _steps(run: Path) -> list[int]:
    names = (path.name.removeprefix("checkpoint-") for path in run.glob("checkpoint-*"))
    return sorted(int(name) for name in names if name.isdigit())


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); delete {file.parent} to go on from the checkpoint before it") from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
