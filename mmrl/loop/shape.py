"""Samples -> samples whose advantages the recipe's shapers have changed, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from mmrl.loop.update import TokenMeans
from mmrl.protocols import AdvantageShaper
from mmrl.types import Sample, ShaperInputs


def shape(
    updates: Sequence[Sequence[Sample]],
    shapers: Sequence[AdvantageShaper],
    signals: Mapping[int, Mapping[str, np.ndarray]],
    *,
    step: int,
    max_steps: int,
    seed: int,
    means: TokenMeans,
) -> list[list[Sample]]:
    """The samples of each update, their advantages passed through `shapers` in order. Token weights stay: who shares the loss was settled
    before. `signals`: by id() of the rollout. The shapers' metrics go to `means`. ValueError for advantages that are not float32 [T] and
    finite."""
    if not shapers:
        return [list(samples) for samples in updates]
    return [
        [_shaped(sample, shapers, signals[id(sample.rollout)], step, max_steps, seed, means) for sample in samples] for samples in updates
    ]


def _shaped(
    sample: Sample,
    shapers: Sequence[AdvantageShaper],
    signals: Mapping[str, np.ndarray],
    step: int,
    max_steps: int,
    seed: int,
    means: TokenMeans,
) -> Sample:
    advantages = sample.advantages
    everywhere = torch.ones(advantages.shape, dtype=torch.bool)
    for shaper in shapers:
        new, metrics = shaper(ShaperInputs(advantages, signals, sample.rollout.arm, step, max_steps, seed))
        if new.dtype != np.float32 or new.shape != advantages.shape or not np.isfinite(new).all():
            raise ValueError(
                f"task {sample.rollout.prompt.task.id}: {shaper!r} must give finite float32 advantages of shape {advantages.shape}; "
                f"got {new.dtype} {new.shape}, finite: {bool(np.isfinite(new).all())}"
            )
        for name, values in metrics.items():
            means.add(name, torch.from_numpy(values), everywhere)
        advantages = new
    return replace(sample, advantages=advantages)
