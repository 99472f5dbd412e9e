"""From the recipe's `model` section to a policy, its processor, and the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from mmrl.errors import RecipeError
from mmrl.models.policy import SUPPORTED_TYPES, Policy
from mmrl.recipe import LoraSection, ModelSection


def load_policy(section: ModelSection, device: torch.device | str = "cpu") -> tuple[Policy, Any]:
    """Policy and processor. Raises RecipeError, before any weight is read, for a model that is missing or of an unsupported family."""
    path = model_path(section.path)
    _check_family(path, section)
    with quiet_transformers():
        model = _load(path, section)
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    if section.freeze_vision:
        model.model.visual.requires_grad_(False)
    if section.lora is not None:
        model = _with_lora(model, section.lora)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model).to(device), processor


def load_reference(section: ModelSection, policy: Policy) -> Policy | None:
    """The frozen policy behind ref_logps; None when it is the trained one with its adapter off (see `reference_mode`)."""
    if section.lora is not None and section.reference is None:
        return None
    path = model_path(section.reference or section.path)
    with quiet_transformers():
        reference = Policy(_load(path, section)).to(policy.device)
    return reference.requires_grad_(False).eval()


@contextlib.contextmanager
def reference_mode(policy: Policy, reference: Policy | None) -> Iterator[Policy]:
    """The reference to forward: a model of its own, or the policy with its adapter off."""
    if reference is not None:
        yield reference
        return
    with policy.model.disable_adapter():
        yield policy


def model_path(path: str) -> str:
    """A folder or hub id as it is; "tiny" becomes the folder of the embedded model, made first if need be."""
    if path == "tiny":
        from mmrl.tiny import tiny_folder

        return str(tiny_folder())
    return path


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of loading and saving while inside."""
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _load(path: str, section: ModelSection) -> Any:
    attention = {} if section.attn_implementation == "auto" else {"attn_implementation": section.attn_implementation}
    return AutoModelForImageTextToText.from_pretrained(
        path, dtype=getattr(torch, section.dtype), trust_remote_code=section.trust_remote_code, **attention
    )


def _check_family(path: str, section: ModelSection) -> None:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.path: {path!r} is no model that can be opened ({str(error).splitlines()[0]}); give a folder or a hub id"
        ) from error
    if config.model_type not in SUPPORTED_TYPES:
        raise RecipeError(f"model.path: {path!r} is of type {config.model_type!r}; supported: {', '.join(SUPPORTED_TYPES)}")


def _with_lora(model: Any, section: LoraSection) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RecipeError('model.lora: needs the package peft; pip install "mmrl-vlm[peft]"') from error
    fields = asdict(section)
    targets = fields["target_modules"]
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj" if targets == "all-linear" else list(targets),
    )
    return get_peft_model(model, config)
