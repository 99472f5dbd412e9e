"""A small vision-language model made of the real classes of Qwen2.5-VL or Qwen3-VL: config, tokenizer, chat template, processor.

Nothing is downloaded. The result is a folder like any published checkpoint; whoever loads it cannot tell it from a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

Family = Literal["qwen2_5_vl", "qwen3_vl"]
PATCH_SIZES: dict[Family, int] = {"qwen2_5_vl": 14, "qwen3_vl": 16}
"""Pixels; 2 x 2 patches are a visual token."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED_TOKENS = (
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<|up|>", "<|down|>", "<|left|>", "<|right|>",
)  # fmt: skip
WORD = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the tiny model. A 28 x 28 pixel block is one visual token, as in every Qwen2.5-VL; 32 x 32 in Qwen3-VL."""

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    """Frequencies of time, height and width in Qwen2.5-VL. Qwen3-VL deals them out in turn, a third of the head each."""
    rope_theta: float = 10.0
    """Small, because the width axis has the slowest frequencies: at 1e6 its angles hardly differ between neighbouring columns."""
    vision_depth: int = 1
    vision_hidden_size: int = 64
    initializer_range: float = 0.09
    """About 1 / sqrt(hidden_size), as 0.02 is for widths of some thousand: with less, attention starts flat and stays so for long."""


def tokenizer_corpus() -> Iterator[str]:
    """Sentences whose words should become single tokens: what prompts, thoughts and answers of the built-in tasks are made of."""
    colours = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "light", "dark", "grey")
    shapes = ("square", "circle", "triangle", "frame", "video", "image", "picture", "maze", "grid", "cell", "wall", "path", "object")
    places = ("left", "right", "top", "bottom", "up", "down", "start", "goal", "end", "origin", "target", "open", "closed", "row", "column")
    verbs = (
        "moves",
        "goes",
        "appears",
        "stops",
        "turns",
        "walks",
        "reaches",
        "answer",
        "think",
        "step",
        "second",
        "count",
        "first",
        "last",
    )
    for word in (*colours, *shapes, *places, *verbs):
        yield f"The {word} is {word}. {word}s? A {word} and the {word}, no {word} of a {word}: {word}."
    for shape in shapes:
        for place in places:
            yield f"Go from the {shape} to the {place}. How many {shape}s are there? Is there a {shape} at the {place}? yes, no."
            yield f"You are a helpful assistant.\nsystem\nuser\nassistant\nWhich way is the {place} of this {shape}? One move: {place}."


def build_tokenizer(vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's special tokens; thought tags and the four moves are one token each."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    size = vocab_size - len(SPECIAL_TOKENS) - len(ADDED_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator(tokenizer_corpus(), trainer)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_TOKENS])
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], unk_token=None, bos_token=None,  # pyright: ignore[reportArgumentType] (the stub is narrower than the class)
        eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
    )  # fmt: skip
    tokenizer._tokenizer = bpe  # keeps the ids of the added tokens as trained
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer, family: Family = "qwen2_5_vl") -> Any:
    """The family's own processor class. Pictures are resized to 4 to 1280 visual tokens."""
    patch_size = PATCH_SIZES[family]
    block = (2 * patch_size) ** 2
    sizes: dict[str, Any] = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2}
    images = Qwen2VLImageProcessor(**sizes, min_pixels=4 * block, max_pixels=1280 * block)
    if family == "qwen3_vl":
        clip = {"shortest_edge": 8 * block, "longest_edge": 8 * 768 * block}  # pixels of all its frames
        videos = Qwen3VLVideoProcessor(**sizes, size=clip, cap_pixels_per_frame=False)
        return Qwen3VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE)
    videos = Qwen2VLVideoProcessor(**sizes, min_pixels=4 * block, max_pixels=768 * block)
    return Qwen2_5_VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE)


def build_config(tokenizer: Qwen2Tokenizer, shape: TinyShape, family: Family = "qwen2_5_vl") -> Qwen2_5_VLConfig | Qwen3VLConfig:
    token_id = tokenizer.convert_tokens_to_ids
    end, pad = token_id("<|im_end|>"), token_id("<|endoftext|>")
    text: dict[str, Any] = {
        "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "initializer_range": shape.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, "mrope_section": list(shape.mrope_section)},
        "bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": shape.vision_depth, "hidden_size": shape.vision_hidden_size, "intermediate_size": 2 * shape.vision_hidden_size,
        "num_heads": 2, "in_channels": 3, "patch_size": PATCH_SIZES[family], "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": shape.hidden_size, "initializer_range": shape.initializer_range,
    }  # fmt: skip
    layers = list(range(shape.vision_depth))
    if family == "qwen3_vl":
        head_dim = shape.hidden_size // shape.num_attention_heads
        side = head_dim // 2 // 3
        text["head_dim"] = head_dim
        text["rope_parameters"] |= {"mrope_section": [head_dim // 2 - 2 * side, side, side], "mrope_interleaved": True}
        heard = layers[: shape.num_hidden_layers - 1]  # features added after the last layer reach no other token
        vision |= {"num_position_embeddings": 16 * 16, "deepstack_visual_indexes": heard}
    else:
        vision |= {"tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": layers}
    return (Qwen3VLConfig if family == "qwen3_vl" else Qwen2_5_VLConfig)(
        text_config=text, vision_config=vision, image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"), tie_word_embeddings=True,
        initializer_range=shape.initializer_range,  # pyright: ignore[reportCallIssue] (a field of every configuration)
    )  # fmt: skip


def build_untrained(shape: TinyShape = TinyShape(), seed: int = 0, family: Family = "qwen2_5_vl") -> tuple[Any, Any]:
    """A model of the family with random weights, float32, and the processor that belongs to it. `seed` decides every weight."""
    tokenizer = build_tokenizer(shape.vocab_size)
    config: Any = build_config(tokenizer, shape, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (Qwen3VLForConditionalGeneration if family == "qwen3_vl" else Qwen2_5_VLForConditionalGeneration)(config)
    generation = model.generation_config
    generation.eos_token_id = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    generation.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    generation.bos_token_id = None
    return model, build_processor(tokenizer, family)


def save(model: Any, processor: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
