"""Models of random weights and prompts of any length, for timing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmrl.models.policy import Policy
from mmrl.models.stream import Row
from mmrl.types import Prompt, Task


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    vision_depth: int
    vision_hidden_size: int
    vision_heads: int
    vision_intermediate_size: int
    full_attention: tuple[int, ...]
    """Vision layers without windows."""
    is_tied: bool = False


SHAPES = {
    "small": Shape(256, 6, 4, 2, 1280, 32768, 4, 96, 4, 256, (3,)),
    "proportions-7b": Shape(512, 8, 8, 2, 2560, 8192, 8, 192, 8, 512, (7,)),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, 32, 1280, 16, 3420, (7, 15, 23, 31), True),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, 32, 1280, 16, 3420, (7, 15, 23, 31)),
}
"""small: a head that weighs more than in any real model, so that ratios at long completions are a floor; 3b, 7b: Qwen2.5-VL's own."""


def random_policy(size: str, device: str, dtype: torch.dtype, seed: int = 0) -> Policy:
    """A Qwen2.5-VL of that size, its weights drawn on the device, large enough that a wrong position shows in the log-probabilities."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shape = SHAPES[size]
    head = shape.hidden_size // shape.num_attention_heads
    first = head // 8
    section = [first, (head // 2 - first) // 2, head // 2 - first - (head // 2 - first) // 2]
    vocab = shape.vocab_size
    text: dict[str, Any] = {
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads, "num_key_value_heads": shape.num_key_value_heads, "vocab_size": vocab,
        "max_position_embeddings": 131072, "use_sliding_window": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": shape.vision_depth, "hidden_size": shape.vision_hidden_size, "num_heads": shape.vision_heads,
        "intermediate_size": shape.vision_intermediate_size, "out_hidden_size": shape.hidden_size, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": list(shape.full_attention),
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=shape.is_tied, image_token_id=vocab - 1, video_token_id=vocab - 2,
        vision_start_token_id=vocab - 3, vision_end_token_id=vocab - 4,
    )  # fmt: skip
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(("bias" not in name) + 0.1 * torch.randn(p.shape, generator=generator, device=device))
            else:
                p.normal_(0, 0.5 if "embed_tokens" in name else 0.7 / math.sqrt(p[0].numel()), generator=generator)
    return Policy(model).train()


def random_prompt(policy: Policy, tokens: int, seed: int = 1) -> Prompt:
    """A prompt of that many tokens: one square picture that fills most of it, text before and after."""
    config = policy.base.config
    rng, vocab = np.random.default_rng(seed), config.get_text_config().vocab_size
    side = math.isqrt(max(1, (tokens - 2) * 95 // 100))
    visual = side * side
    before = min(24, (tokens - visual - 2) // 2)
    text = rng.integers(10, vocab - 10, tokens - visual - 2)
    marks = [config.vision_start_token_id, *[config.image_token_id] * visual, config.vision_end_token_id]
    ids = np.concatenate([text[:before], marks, text[before:]]).astype(np.int64)
    patch = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    pixels = rng.standard_normal((4 * visual, patch), np.float32)
    task = Task(f"random/{tokens}/{seed}", (), (), "", {})
    return Prompt(task, "", ids, {"pixel_values": pixels, "image_grid_thw": np.array([[1, 2 * side, 2 * side]])})


def random_rows(policy: Policy, prompt: Prompt, lengths: list[int], seed: int = 2) -> list[Row]:
    vocab = policy.base.config.get_text_config().vocab_size
    rng = np.random.default_rng(seed)
    return [(prompt, rng.integers(10, vocab - 10, length)) for length in lengths]
