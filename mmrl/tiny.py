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
import sys
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
from mmrl.models.forward import GroupForward
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker
from mmrl.models.quiet import quiet_transformers
from mmrl.models.tiny import TinyShape
from mmrl.seeding import stream
from mmrl.types import Task

SYSTEM = "Maze."
QUESTION = "Go from O to T."
"""The warm-up's whole prompt; recipes that start from the tiny model ask the same."""
MOVES = {(-1, 0): "<|up|>", (1, 0): "<|down|>", (0, -1): "<|left|>", (0, 1): "<|right|>"}
SEED = 63
"""Maze seed of the warm-up; runs with another seed modulo 64 share no maze with it."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised training on a poor teacher, who knows the way on easy mazes but often walks past the goal, or just walks about. The pupil
    learns to see and to move by the rules; what to make of it is left to rewards."""

    steps: int = 400
    batch_size: int = 48
    """Mazes a step."""
    guided: int = 2
    """Demonstrations of each maze that follow its solution."""
    walks: int = 2
    """Demonstrations of each maze that walk about."""
    stop_share: float = 0.25
    """Share of the demonstrations that stop on the goal when they come by; the others walk on."""
    longest_walk: int = 5
    """Moves after which every demonstration ends."""
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    side: int = 5
    moves: str = "1-4"
    turns: str = "0-3"


@dataclass(frozen=True)
class Made:
    """Everything that makes the tiny model."""

    shape: TinyShape = field(default_factory=TinyShape)
    warm_up: WarmUp = field(default_factory=WarmUp)
    seed: int = 0

    def digest(self) -> str:
        tokenizer = untrained.build_tokenizer(self.shape.vocab_size)
        config = untrained.build_config(tokenizer, self.shape).to_dict()
        training = "".join(inspect.getsource(part) for part in (_warm_up, demonstrations, demonstrate, _rate)) + repr(
            warm_up_tasks(self.warm_up)
        )
        packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        made_of = [asdict(self), tokenizer._tokenizer.to_str(), config, untrained.CHAT_TEMPLATE, training, MazeTasks.version, packages]
        everything = json.dumps(made_of, sort_keys=True)
        return hashlib.sha256(everything.encode()).hexdigest()[:16]


def say(line: str) -> None:
    """To standard error: standard output belongs to the command that needs the model."""
    print(line, file=sys.stderr, flush=True)


def tiny_folder(made: Made | None = None, report: Callable[[str], None] = say) -> Path:
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


def build_tiny(out: Path, made: Made | None = None, report: Callable[[str], None] = say) -> Path:
    """Builds, warms up and saves the tiny model to the folder `out`."""
    made = made or Made()
    model, processor = untrained.build_untrained(made.shape, made.seed)
    policy = Policy(model)
    _warm_up(policy, processor, made, report)
    with quiet_transformers():
        untrained.save(model, processor, out)
    return out


def warm_up_tasks(warm: WarmUp) -> MazeTasks:
    return MazeTasks("train", SEED, warm.side, warm.side, warm.moves, warm.turns, system=SYSTEM, question=QUESTION)


def _warm_up(policy: Policy, processor: untrained.Qwen2_5_VLProcessor, made: Made, report: Callable[[str], None]) -> None:
    """Maximum likelihood of the demonstrations. A maze's picture and prompt are forwarded once for all of them."""
    warm = made.warm_up
    tasks, make_prompts = warm_up_tasks(warm), PromptMaker(processor, policy.layout)
    tokenizer = processor.tokenizer
    optimizer = torch.optim.AdamW(policy.parameters(), lr=warm.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    forward = GroupForward(1.0, tokenizer.pad_token_id)
    policy.train()
    for step in range(warm.steps):
        batch = [tasks.task(tasks.key(step * warm.batch_size + n)) for n in range(warm.batch_size)]
        rows = [
            (prompt, np.array(tokenizer(f"<think></think>{moves}<|im_end|>")["input_ids"], np.int64))
            for task, prompt in zip(batch, make_prompts(batch), strict=True)
            for moves in demonstrations(task, warm)
        ]
        tokens, total = sum(len(completion) for _, completion in rows), 0.0
        for group in optimizer.param_groups:
            group["lr"] = warm.learning_rate * _rate(step, warm)
        optimizer.zero_grad()
        for part in forward(policy, rows):
            loss = -part.logps.sum() / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step == 0 or (step + 1) % 50 == 0:
            report(f"warm-up {step + 1}/{warm.steps}: loss {total:.3f} nats a token")


def demonstrations(task: Task, warm: WarmUp) -> list[str]:
    """Moves of each demonstration of a maze."""
    routes = [task.solution] * warm.guided + [""] * warm.walks
    return [demonstrate(task.meta, route, warm, stream(task.id, "demonstration", n)) for n, route in enumerate(routes)]


def demonstrate(meta: Mapping[str, Any], route: str, warm: WarmUp, rng: np.random.Generator) -> str:
    """A legal walk from the start as move tokens: along `route`, then at random, never straight back. It ends in a dead end, after
    `longest_walk` moves, and on the goal if this demonstration is one that stops there."""
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in meta["openings"]:
        neighbours.setdefault(tuple(a), []).append(tuple(b))
        neighbours.setdefault(tuple(b), []).append(tuple(a))
    here, before, goal, moves = tuple(meta["start"]), None, tuple(meta["goal"]), ""
    stops = rng.random() < warm.stop_share
    for _ in range(warm.longest_walk):
        onward = {MOVES[c[0] - here[0], c[1] - here[1]]: c for c in sorted(neighbours[here]) if c != before}
        if not onward or (here == goal and stops):
            break
        follows = [move for move in onward if route.startswith(moves + move)]
        move = follows[0] if follows else list(onward)[rng.integers(len(onward))]
        before, here, moves = here, onward[move], moves + move
    return moves


def _rate(step: int, warm: WarmUp) -> float:
    """Linear rise, then a cosine down to a tenth."""
    if step < warm.warmup_steps:
        return (step + 1) / warm.warmup_steps
    progress = (step - warm.warmup_steps) / max(1, warm.steps - warm.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress)))
