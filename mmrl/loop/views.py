"""Other prompts of the rollouts: twins with perturbed pictures, one draw a prompt and step, under which completions are scored again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrl.component import suggest
from mmrl.errors import RecipeError, TaskError
from mmrl.protocols import Perturbation
from mmrl.seeding import stream
from mmrl.types import Media, Prompt, Rollout, ScoredGroup, Task

CACHED, LIVE, GRADIENT = "view:", "view_now:", "view_grad:"
"""What a loss term may ask of a view: its log-probabilities with the weights that the step began with; with those of the update, without
gradient; with those of the update, with gradient. While a step updates once, the first two are the same numbers."""
ENTROPY, DIVERGENCE = "view_entropy:", "view_kl:"
"""What a shaper may ask of a view besides: the entropy under it, and half the symmetric KL between the prompt trained under and it."""
TRIES = 8
"""Draws of a perturbation that may leave a picture as it is before that is an error: a mask over four cells hides none in 1 of 40."""


def names_of(needs: Iterable[str], *kinds: str) -> list[str]:
    """The views that these needs name, sorted: all of them, or those of some kinds."""
    kinds = kinds or (CACHED, LIVE, GRADIENT, ENTROPY, DIVERGENCE)
    return sorted({need.removeprefix(kind) for need in needs for kind in kinds if need.startswith(kind)})


def check_views(needs: Mapping[str, Collection[str]], defined: Collection[str]) -> None:
    """RecipeError if a component, by its place in the recipe, needs a view that is not `defined`, or if two loss terms need one view in
    different ways, for which `LossInputs` has one place."""
    ways: dict[str, tuple[str, str]] = {}
    for place, wanted in needs.items():
        for name in names_of(wanted):
            if name not in defined:
                way_out = f"write it, e.g. views: {{{name}: {{use: patch_mask}}}}"
                raise RecipeError(f"{place}: needs the view {name!r}, which the recipe does not define{suggest(name, defined)}; {way_out}")
        for kind in (CACHED, LIVE, GRADIENT) if place.startswith("losses") else ():
            for name in names_of(wanted, kind):
                other, way = ways.setdefault(name, (place, kind))
                if way != kind:
                    raise RecipeError(f"{place}: needs {kind}{name}, and {other} needs {way}{name}; choose one, or define the view twice")


@dataclass(frozen=True, eq=False)
class ViewMaker:
    """Makes the views of a recipe's `views` section."""

    perturbations: Mapping[str, Perturbation]
    """By the view's name, in the recipe's order."""
    make_prompts: Callable[[Sequence[Task]], list[Prompt]]
    seed: int

    def __call__(self, scored: Sequence[ScoredGroup], names: Collection[str], step: int) -> list[ScoredGroup]:
        """The groups with these views on every rollout that is trained. A view is of the prompt that the rollout is trained under, all its
        pictures perturbed by one draw of (seed, name, task id, step), so rollouts that share a prompt share its view. A prompt without
        pictures is its own view. Views that a strategy has made stay.

        Raises TaskError where a perturbation changes the number of tokens, or leaves a picture as it is in TRIES draws.
        """
        named = [name for name in names if name in self.perturbations]
        made: dict[tuple[str, int], Prompt] = {}

        def viewed(rollout: Rollout) -> Rollout:
            prompt = rollout.train_prompt
            if prompt is None:
                return rollout
            for name in named:
                if (name, id(prompt)) not in made:
                    made[name, id(prompt)] = self.view(prompt, name, step)
            return replace(rollout, views={name: made[name, id(prompt)] for name in named} | dict(rollout.views))

        if not named:
            return list(scored)
        return [replace(item, group=replace(item.group, rollouts=tuple(map(viewed, item.group.rollouts)))) for item in scored]

    def view(self, prompt: Prompt, name: str, step: int) -> Prompt:
        """One view of one prompt; the prompt itself where it has no pictures."""
        task, op = prompt.task, self.perturbations[name]
        if not task.media:
            return prompt
        rng = stream(self.seed, "view", name, task.id, step)
        (view,) = self.make_prompts([replace(task, media=tuple(self._perturbed(task, name, op, medium, rng) for medium in task.media))])
        if not np.array_equal(view.ids, prompt.ids):
            raise TaskError(
                f"task {task.id}: views.{name}: {op!r} changed the prompt from {len(prompt.ids)} to {len(view.ids)} tokens; a view must "
                "keep the size of pictures and the number of frames: take another perturbation"
            )
        return view

    def _perturbed(self, task: Task, name: str, op: Perturbation, medium: Media, rng: np.random.Generator) -> Media:
        for _ in range(TRIES):
            try:
                seen = op(medium, rng)
            except ValueError as error:
                raise TaskError(f"task {task.id}: views.{name}: {error}; leave the task out, or take another perturbation") from error
            if changes_nothing(op) or not np.array_equal(seen.frames, medium.frames):
                return seen
        raise TaskError(
            f"task {task.id}: views.{name}: {op!r} left a picture of {medium.frames.shape[1]} x {medium.frames.shape[2]} pixels as it is, "
            "so the view says nothing about it; is it all of one colour? Leave the task out, or take another perturbation (or fill)"
        )


def changes_nothing(op: Perturbation) -> bool:
    """Whether a perturbation is turned off by a field of its own that says how much it does."""
    return any(getattr(op, name, 1) == 0 for name in ("strength", "ratio", "sigma")) and not getattr(op, "sigma_high", None)
