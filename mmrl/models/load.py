"""From the recipe's `model` section to a policy, its processor, and the reference."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmrl.errors import RecipeError
from mmrl.models.policy import SUPPORTED_TYPES, Policy
from mmrl.models.quiet import quiet_transformers
from mmrl.recipe import LoraSection, ModelSection
from mmrl.recipe_rules import EMBEDDED_MODELS


def load_policy(section: ModelSection, device: torch.device | str = "cpu") -> tuple[Policy, Any]:
    """Policy and processor. Raises RecipeError for a model that is missing, of an unsupported family, without a processor, with a processor
    that a bound on pixels contradicts, or with weights that do not fit; all but the last, the first two also of the reference, before any
    weight is read."""
    path = model_path(section.path)
    _check_family("path", path, section)
    if section.reference is not None:
        _check_family("reference", model_path(section.reference), section)
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.path: {path!r} has no processor that can be opened ({_told(error)}); save it beside the model") from error
    _set_pixels(processor.image_processor, section)
    model = _load("path", path, section)
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
    name = "path" if section.reference is None else "reference"
    reference = Policy(_load(name, model_path(section.reference or section.path), section)).to(policy.device)
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
    """A folder or hub id as it is; the name of an embedded model becomes its folder, made first if need be."""
    if path in EMBEDDED_MODELS:
        from mmrl.tiny import tiny_folder

        return str(tiny_folder(path))
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _load(name: str, path: str, section: ModelSection) -> Any:
    """The weights, every one of them from the files: transformers itself fills gaps with random numbers and a warning."""
    attention = {} if section.attn_implementation == "auto" else {"attn_implementation": section.attn_implementation}
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=getattr(torch, section.dtype),
                trust_remote_code=section.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with the rest
                **attention,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise RecipeError(f"model.{name}: the weights of {path!r} cannot be loaded ({_told(error)})") from error
    model, found = loaded
    absent = sorted(found["missing_keys"] | {key[0] for key in found["mismatched_keys"]})
    if absent:
        raise RecipeError(
            f"model.{name}: {path!r} lacks {len(absent)} of the weights that its config.json asks for, or has them in another shape, "
            f"for example {absent[0]}; take the config.json that was saved with the weights"
        )
    return model


def _check_family(name: str, path: str, section: ModelSection) -> None:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise RecipeError(f"model.{name}: {path!r} is no model that can be opened ({_told(error)}); give a folder or a hub id") from error
    if config.model_type not in SUPPORTED_TYPES:
        raise RecipeError(f"model.{name}: {path!r} is of type {config.model_type!r}; supported: {', '.join(SUPPORTED_TYPES)}")


def _set_pixels(pictures: Any, section: ModelSection) -> None:
    """The budget of a picture where its processor keeps it, under names of edges, so that it is saved with it; a bound not given stays."""
    if section.min_pixels is None and section.max_pixels is None:
        return
    low = pictures.size["shortest_edge"] if section.min_pixels is None else section.min_pixels
    high = pictures.size["longest_edge"] if section.max_pixels is None else section.max_pixels
    if low > high:
        raise RecipeError(
            f"model.min_pixels: {low} is above model.max_pixels, {high}; a bound that the recipe does not give is as the model's processor "
            "was saved: give both"
        )
    pictures.size = {"shortest_edge": low, "longest_edge": high}


def _told(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__


def _with_lora(model: Any, section: LoraSection) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RecipeError('model.lora: needs the package peft; pip install "mmrl-vlm[peft]"') from error
    targets = section.target_modules
    names = [targets] if isinstance(targets, str) else list(targets)
    if any(name.split(".")[-1] == "lm_head" for name in names):
        raise RecipeError("model.lora.target_modules: lm_head cannot carry an adapter (log-probabilities read its weight); leave it out")
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj" if targets == "all-linear" else names,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"model.lora.target_modules: got {names}; {_told(error)}") from error
