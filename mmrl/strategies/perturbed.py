"""What strategies that show a task's media in another form share."""

from __future__ import annotations

from dataclasses import replace

from mmrl.errors import TaskError
from mmrl.protocols import Perturbation, Sampling
from mmrl.seeding import stream
from mmrl.types import Task


def perturbed(task: Task, perturbation: Perturbation, arm: str, sampling: Sampling) -> Task:
    """The task with each of its media perturbed, under a name of its own, so that completions of it are other draws than the task's.

    What is drawn depends on (seed, arm, sampling step, task id, place among the media) alone. TaskError where the perturbation refuses one.
    """
    seeds = [stream(sampling.seed, "perturbed", arm, sampling.step, task.id, n) for n in range(len(task.media))]
    try:
        media = tuple(perturbation(medium, rng) for medium, rng in zip(task.media, seeds, strict=True))
    except ValueError as error:
        raise TaskError(f"task {task.id}: rollout.strategy.perturbation: {error}; leave the task out, or take another one") from error
    return replace(task, id=f"{task.id}#{arm}", media=media)
