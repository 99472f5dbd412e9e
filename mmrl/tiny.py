"""The embedded models: the small Qwen2.5-VL of `mmrl.models.tiny`, taught its first lessons by supervision for a few minutes, then kept.

Their names in a recipe are those of MODELS. The folder one is kept in is named by a hash of everything that made it, so a change of any of
that makes a new one.
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from mmrl.models import tiny as untrained
from mmrl.models.forward import GroupForward
from mmrl.models.load import load_policy
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker
from mmrl.models.quiet import quiet_transformers
from mmrl.models.tiny import TinyShape
from mmrl.recipe import ModelSection
from mmrl.tiny_lessons import CountLessons, FactLessons, Lessons, MazeLessons, VideoLessons


@dataclass(frozen=True)
class Made:
    """Everything that makes an embedded model."""

    shape: TinyShape = field(default_factory=TinyShape)
    lessons: Lessons = field(default_factory=MazeLessons)
    seed: int = 0
    after: str = field(default="", repr=False)
    """Name of the embedded model that these lessons go on from; "" = random weights."""

    def digest(self) -> str:
        tokenizer = untrained.build_tokenizer(self.shape.vocab_size)
        config = untrained.build_config(tokenizer, self.shape).to_dict()
        training = inspect.getsource(_teach) + inspect.getsource(_rate) + inspect.getsource(type(self.lessons)) + self.lessons.made_of()
        packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        made_of = [repr(self), tokenizer._tokenizer.to_str(), config, untrained.CHAT_TEMPLATE, training, packages]
        if self.after:
            made_of.append(MODELS[self.after].digest())
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


MODELS = {
    "tiny": Made(),
    "tiny-facts": Made(lessons=FactLessons(), after="tiny"),
    "tiny-video": Made(lessons=VideoLessons()),
    "tiny-count": Made(lessons=CountLessons()),
}
"""By their names in recipes."""


def say(line: str) -> None:
    """To standard error: standard output belongs to the command that needs the model."""
    print(line, file=sys.stderr, flush=True)


def tiny_folder(name: str = "tiny", report: Callable[[str], None] = say) -> Path:
    """Folder of an embedded model, in the cache ($MMRL_CACHE, else ~/.cache/mmrl); made first, in a few minutes, where it is not yet."""
    made = MODELS[name]
    cache = Path(os.environ.get("MMRL_CACHE", Path.home() / ".cache" / "mmrl"))
    folder = cache / f"{name}-{made.digest()}"
    if not folder.is_dir():
        report(f"making the model {name}: {made.lessons.steps} steps of supervised warm-up, once; it is kept in {folder}")
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
        build_tiny(part, made, report)
        if folder.is_dir():  # another process was faster
            shutil.rmtree(part)
        else:
            part.rename(folder)
    return folder


def build_tiny(out: Path, made: Made | None = None, report: Callable[[str], None] = say) -> Path:
    """Builds, teaches and saves a tiny model to the folder `out`."""
    made = made or Made()
    if made.after:
        policy, processor = load_policy(ModelSection(str(tiny_folder(made.after, report))))
    else:
        model, processor = untrained.build_untrained(made.shape, made.seed)
        policy = Policy(model)
    _teach(policy, processor, made.lessons, report)
    with quiet_transformers():
        untrained.save(policy.base, processor, out)
    return out


def _teach(policy: Policy, processor: untrained.Qwen2_5_VLProcessor, lessons: Lessons, report: Callable[[str], None]) -> None:
    """Maximum likelihood of what is shown. A task's media and prompt are forwarded once for all of it."""
    tokenizer, make_prompts = processor.tokenizer, PromptMaker(processor, policy.layout)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lessons.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    forward = GroupForward(1.0, tokenizer.pad_token_id)
    policy.train()
    for step in range(lessons.steps):
        tasks, shown = zip(*lessons.step(step), strict=True)
        rows = [
            (prompt, np.array(tokenizer(f"{text}<|im_end|>")["input_ids"], np.int64))
            for prompt, texts in zip(make_prompts(tasks), shown, strict=True)
            for text in texts
        ]
        tokens, total = sum(len(completion) for _, completion in rows), 0.0
        for group in optimizer.param_groups:
            group["lr"] = lessons.learning_rate * _rate(step, lessons)
        optimizer.zero_grad()
        for part in forward(policy, rows):
            loss = -part.logps.sum() / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step == 0 or (step + 1) % 50 == 0:
            report(f"warm-up {step + 1}/{lessons.steps}: loss {total:.3f} nats a token")


def _rate(step: int, lessons: Lessons) -> float:
    """Linear rise, then a cosine down to a tenth."""
    if step < lessons.warmup_steps:
        return (step + 1) / lessons.warmup_steps
    progress = (step - lessons.warmup_steps) / max(1, lessons.steps - lessons.warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * progress)))
