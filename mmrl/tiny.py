"""The embedded model: the small Qwen2.5-VL of `mmrl.models.tiny`, taught the easiest mazes by supervision for a few minutes, then kept.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

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
WALK = "Walk about."
MOVES = {(-1, 0): "<|up|>", (1, 0): "<|down|>", (0, -1): "<|left|>", (0, 1): "<|right|>"}
SEED = 63
"""Maze seed of the warm-up; runs with another seed modulo 64 share no maze with it."""


@dataclass(frozen=True)
class WarmUp:
    """Supervised training on easy mazes. The pupil learns to see, to solve mazes of one and two moves, and, asked otherwise, to walk about
    by the rules in any maze. It is never shown the way in a maze of three moves or more: that is left to rewards."""

    steps: int = 800
    batch_size: int = 48
    """Mazes a step."""
    moves: str = "1-2"
    """Moves to T in the mazes whose solution is shown."""
    turns: str = "0-1"
    doubt: float = 0.12
    """Share of those in which a random walk is shown instead, so that the pupil is not too sure to ever try something else."""
    walk_share: float = 1 / 3
    """Share of the mazes that are shown with WALK in place of QUESTION, whatever their moves."""
    walks: int = 3
    """Random walks shown in each of these."""
    longest_walk: int = 5
    """A random walk has one to this many moves."""
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    side: int = 5


@dataclass(frozen=True)
class Made:
    """Everything that makes the tiny model."""

    shape: TinyShape = field(default_factory=TinyShape)
    warm_up: WarmUp = field(default_factory=WarmUp)
    seed: int = 0

    def digest(self) -> str:
        tokenizer = untrained.build_tokenizer(self.shape.vocab_size)
        config = untrained.build_config(tokenizer, self.shape).to_dict()
        training = "".join(inspect.getsource(part) for part in (_warm_up, demonstrations, random_walk, _rate)) + repr(
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


def warm_up_tasks(warm: WarmUp) -> tuple[MazeTasks, MazeTasks]:
    """Mazes whose solution is shown, and mazes to walk about in."""
    return (
        MazeTasks("train", SEED, warm.side, warm.side, warm.moves, warm.turns, system=SYSTEM, question=QUESTION),
        MazeTasks("train", SEED, warm.side, warm.side, "1-6", "0-4", system=SYSTEM, question=WALK),
    )


def _warm_up(policy: Policy, processor: untrained.Qwen2_5_VLProcessor, made: Made, report: Callable[[str], None]) -> None:
    """Maximum likelihood of the demonstrations. A maze's picture and prompt are forwarded once for all of them."""
    warm = made.warm_up
    to_solve, to_walk = warm_up_tasks(warm)
    tokenizer, make_prompts = processor.tokenizer, PromptMaker(processor, policy.layout)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=warm.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    forward = GroupForward(1.0, tokenizer.pad_token_id)
    walked = int(warm.batch_size * warm.walk_share)
    policy.train()
    for step in range(warm.steps):
        keys = [(source, step * n + i) for source, n in ((to_solve, warm.batch_size - walked), (to_walk, walked)) for i in range(n)]
        batch = [source.task(source.key(index)) for source, index in keys]
        rows = [
            (prompt, np.array(tokenizer(f"<think></think>{moves}<|im_end|>")["input_ids"], np.int64))
            for (source, _), task, prompt in zip(keys, batch, make_prompts(batch), strict=True)
            for moves in demonstrations(task, warm, source is to_walk)
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


def demonstrations(task: Task, warm: WarmUp, walks: bool) -> list[str]:
    """Moves of each demonstration of a maze: random walks, or its solution, in some mazes one walk instead."""
    if walks:
        return [random_walk(task, warm.longest_walk, n) for n in range(warm.walks)]
    is_doubted = stream(task.id, "doubt").random() < warm.doubt
    return [random_walk(task, warm.longest_walk, 0) if is_doubted else task.solution]


def random_walk(task: Task, longest: int, number: int) -> str:
    """A legal walk from the start as move tokens, of 1 to `longest` moves, never straight back; it ends early in a dead end."""
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in task.meta["openings"]:
        neighbours.setdefault(tuple(a), []).append(tuple(b))
        neighbours.setdefault(tuple(b), []).append(tuple(a))
    rng = stream(task.id, "walk", number)
    here, before, moves = tuple(task.meta["start"]), None, ""
    for _ in range(rng.integers(1, longest + 1)):
        onward = [cell for cell in sorted(neighbours[here]) if cell != before]
        if not onward:
            break
        there = onward[rng.integers(len(onward))]
        moves += MOVES[there[0] - here[0], there[1] - here[1]]
        before, here = here, there
    return moves


def _rate(step: int, warm: WarmUp) -> float:
    """Linear rise, then a cosine down to a tenth."""
    if step < warm.warmup_steps:
        return (step + 1) / warm.warmup_steps
    progress = (step - warm.warmup_steps) / max(1, warm.steps - warm.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress)))
