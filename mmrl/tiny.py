"""The embedded model: the small Qwen2.5-VL of `mmrl.models.tiny`, taught easy mazes by supervision for a few minutes, then kept.

Its name in a recipe is `path: tiny`. The folder it is kept in is named by a hash of everything that made it, so a change of any of that
makes a new one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.tasks.maze import MazeTasks
from mmrl.models import tiny as untrained
from mmrl.models.load import quiet_transformers
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker
from mmrl.models.stream import build_stream
from mmrl.models.tiny import TinyShape
from mmrl.seeding import stream

SYSTEM = "Maze."
QUESTION = "Go from O to T."
"""The warm-up's whole prompt; recipes that start from the tiny model ask the same."""
MOVES = {(-1, 0): "<|up|>", (1, 0): "<|down|>", (0, -1): "<|left|>", (0, 1): "<|right|>"}
SEED = 63
"""Maze seed of the warm-up; runs with another seed modulo 64 share no maze with it."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised training on solved mazes."""

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    sides: tuple[int, ...] = (3, 4, 5)
    """Sides of the square mazes, in equal parts of the warm-up: a small maze shows its walls sooner."""
    moves: str = "1-4"
    longest_walk: int = 5
    """Moves after which a demonstration gives up."""


@dataclass(frozen=True)
class Made:
    """Everything that makes the tiny model."""

    shape: TinyShape = field(default_factory=TinyShape)
    warm_up: WarmUp = field(default_factory=WarmUp)
    seed: int = 0

    def digest(self) -> str:
        tokenizer = untrained.build_tokenizer(self.shape.vocab_size)
        config = untrained.build_config(tokenizer, self.shape).to_dict()
        training = inspect.getsource(_warm_up) + inspect.getsource(wander) + inspect.getsource(_rate) + repr(warm_up_tasks(self.warm_up, self.warm_up.sides[-1]))
        packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        made_of = [asdict(self), tokenizer._tokenizer.to_str(), config, untrained.CHAT_TEMPLATE, training, MazeTasks.version, packages]
        everything = json.dumps(made_of, sort_keys=True)
        return hashlib.sha256(everything.encode()).hexdigest()[:16]


def tiny_folder(made: Made | None = None, report: Callable[[str], None] = print) -> Path:
    """Folder of the tiny model, in the cache ($MMRL_CACHE, else ~/.cache/mmrl); made first, in a few minutes, where it is not there yet."""
    made = made or Made()
    cache = Path(os.environ.get("MMRL_CACHE", Path.home() / ".cache" / "mmrl"))
    folder = cache / f"tiny-{made.digest()}"
    if not folder.is_dir():
        report(f"making the tiny model: {made.warm_up.steps} steps of supervised warm-up, once; it is kept in {folder}")
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
        build_tiny(part, made, report)
        if folder.is_dir():  # another process was faster
            shutil.rmtree(part)
        else:
            part.rename(folder)
    return folder


def build_tiny(out: Path, made: Made | None = None, report: Callable[[str], None] = print) -> Path:
    """Builds, warms up and saves the tiny model to the folder `out`."""
    made = made or Made()
    model, processor = untrained.build_untrained(made.shape, made.seed)
    policy = Policy(model)
    _warm_up(policy, processor, made, report)
    with quiet_transformers():
        untrained.save(model, processor, out)
    return out


def warm_up_tasks(warm_up: WarmUp, side: int) -> MazeTasks:
    return MazeTasks("train", SEED, side, side, warm_up.moves, turns="0-3", system=SYSTEM, question=QUESTION)


def _warm_up(policy: Policy, processor: untrained.Qwen2_5_VLProcessor, made: Made, report: Callable[[str], None]) -> None:
    """Maximum likelihood of `<think></think>` and a walk."""
    warm = made.warm_up
    sources, make_prompts = [warm_up_tasks(warm, side) for side in warm.sides], PromptMaker(processor, policy.layout)
    tokenizer = processor.tokenizer
    optimizer = torch.optim.AdamW(policy.parameters(), lr=warm.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    policy.train()
    for step in range(warm.steps):
        tasks = sources[step * len(sources) // warm.steps]
        batch = [tasks.task(tasks.key(step * warm.batch_size + n)) for n in range(warm.batch_size)]
        texts = [f"<think></think>{wander(task.meta, warm.longest_walk, stream(task.id, 'wander'))}<|im_end|>" for task in batch]
        answers = [np.array(tokenizer(text)["input_ids"], np.int64) for text in texts]
        lines = build_stream(list(zip(make_prompts(batch), answers, strict=True)), policy.layout, tokenizer.pad_token_id)
        logps, _ = policy(lines, 1.0, False)
        loss = -logps.mean()
        for group in optimizer.param_groups:
            group["lr"] = warm.learning_rate * _rate(step, warm)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step == 0 or (step + 1) % 50 == 0:
            report(f"warm-up {step + 1}/{warm.steps}: loss {loss.item():.3f} nats a token")


def wander(meta: Mapping[str, Any], longest: int, rng: np.random.Generator) -> str:
    """A legal walk from the start that never turns straight back, as move tokens: it ends on the goal if it comes by, else in a dead end or
    after `longest` moves. It shows the rules (where the walls are, when to stop) and leaves finding the way to be learned."""
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in meta["openings"]:
        neighbours.setdefault(tuple(a), []).append(tuple(b))
        neighbours.setdefault(tuple(b), []).append(tuple(a))
    here, before, goal, moves = tuple(meta["start"]), None, tuple(meta["goal"]), ""
    for _ in range(longest):
        onward = sorted(cell for cell in neighbours[here] if cell != before)
        if not onward:
            break
        before, here = here, onward[rng.integers(len(onward))]
        moves += MOVES[here[0] - before[0], here[1] - before[1]]
        if here == goal:
            break
    return moves


def _rate(step: int, warm: WarmUp) -> float:
    """Linear rise, then a cosine down to a tenth."""
    if step < warm.warmup_steps:
        return (step + 1) / warm.warmup_steps
    progress = (step - warm.warmup_steps) / max(1, warm.steps - warm.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress)))
