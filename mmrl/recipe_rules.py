"""What no single key of a recipe can know: paths that must exist, names that must differ, settings that contradict each other."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.check import Checker
from mmrl.component import UNREADABLE, Spec, declaration, suggest

if TYPE_CHECKING:
    from mmrl.recipe import Recipe


_log = logging.getLogger(__name__)

EMBEDDED_MODELS = ("tiny", "tiny-facts", "tiny-video", "tiny-count")
"""Names that a recipe may give in place of a model's folder; `mmrl.tiny` makes them."""


def check_together(recipe: Recipe, checker: Checker) -> None:
    """Adds a problem to `checker` for each contradiction in a recipe whose keys are fine one by one."""
    _check_paths(recipe, checker)
    _check_pixels(recipe, checker)
    _check_names(recipe, checker)
    _check_arms(recipe, checker)
    _check_views(recipe, checker)
    _check_sampling(recipe, checker)
    _check_steps(recipe, checker)
    _warn_of_weights(recipe)


def _check_paths(recipe: Recipe, checker: Checker) -> None:
    for name, path in (("path", recipe.model.path), ("reference", recipe.model.reference)):
        if path is not None and path not in EMBEDDED_MODELS and not _is_model(path):
            is_folder = Path(path).expanduser().is_dir()
            problem = "the folder has no config.json" if is_folder else "no such folder, and no hub id owner/name"
            checker.problem(f"model.{name}", f"got {path!r}; {problem}")
    for name, source in (("train", recipe.tasks.train), ("eval", recipe.tasks.eval)):
        path = source.fields.get("path") if source is not None else None
        if isinstance(path, str) and not Path(path).exists():
            checker.problem(f"tasks.{name}.path", f"got {path!r}; no such file or folder (paths start at the current folder, {Path.cwd()})")


def _is_model(path: str) -> bool:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return (folder / "config.json").is_file()
    looks_local = path.startswith((".", "/", "~")) or path.endswith("/")
    return not looks_local and 1 <= len(path.split("/")) <= 2 and " " not in path


def _check_pixels(recipe: Recipe, checker: Checker) -> None:
    low, high = recipe.model.min_pixels, recipe.model.max_pixels
    if low is not None and high is not None and low > high:
        checker.problem("model.min_pixels", f"got {low}; must not be above model.max_pixels, which is {high}")


def _check_names(recipe: Recipe, checker: Checker) -> None:
    for section, entries in (("rewards", recipe.rewards), ("losses", recipe.losses)):
        seen: set[str] = set()
        for index, entry in enumerate(entries):
            if entry.name in seen:
                checker.problem(f"{section}.{index}.name", f"{entry.name!r} stands twice in {section}; give one of them another name")
            seen.add(entry.name)


def _constant(spec: Spec, name: str, otherwise: Any) -> Any:
    """What the component's class declares, else what the first component inside it does."""
    value = declaration(spec.target).constants.get(name, UNREADABLE)
    if value is not UNREADABLE:
        return value
    return next((_constant(inner, name, otherwise) for inner in spec.fields.values() if isinstance(inner, Spec)), otherwise)


def _arms(strategy: Spec) -> set[str] | None:
    """Arms of a strategy and of those inside it; None if it does not say."""
    inside = [_arms(inner) for inner in strategy.fields.values() if isinstance(inner, Spec) and inner.axis == strategy.axis]
    own = declaration(strategy.target).constants.get("arms", UNREADABLE)
    return None if own is UNREADABLE or None in inside else set(own).union(*(arms for arms in inside if arms))


def _check_arms(recipe: Recipe, checker: Checker) -> None:
    """Who speaks of the strategy's arms, or of rewards by name, speaks of ones there are."""
    strategy, advantage = recipe.rollout.strategy, recipe.advantage
    arms = _arms(strategy)
    spoken = [(f"rewards.{n}.arms", entry.arms) for n, entry in enumerate(recipe.rewards)]
    spoken += [("update.arm_weights", tuple(recipe.update.arm_weights)), ("advantage.arms", advantage.fields.get("arms", ()))]
    needing = [("advantage.use", advantage), *((f"rewards.{n}.use", entry.component) for n, entry in enumerate(recipe.rewards))]
    if arms is not None:
        for path, names in spoken:
            for name in names if isinstance(names, tuple) else ():
                if name not in arms:
                    checker.problem(path, f"{strategy.use} has no arm {name!r}{suggest(name, arms)}")
        for path, spec in needing:
            for name in _constant(spec, "needs_arms", ()):
                if name not in arms:
                    message = f"{spec.use} needs rollouts of the arm {name!r}, which rollout.strategy {strategy.use} does not make"
                    checker.problem(path, message)
    if _constant(strategy, "separate_arms", False) and not _constant(advantage, "separates_arms", False):
        message = f"got {advantage.use}; the arms of rollout.strategy {strategy.use} must not share a baseline: use per_arm, with it inside"
        checker.problem("advantage.use", message)
    if _constant(strategy, "needs_video", False) and _constant(recipe.tasks.train, "media", "video") != "video":
        checker.problem("rollout.strategy.use", f"{strategy.use} needs videos, and tasks.train {recipe.tasks.train.use} has none")
    rewards = [entry.name for entry in recipe.rewards]
    named = [(f"advantage.{name}", advantage.fields.get(name)) for name in _constant(advantage, "names_rewards", ())]
    dynamic = recipe.update.dynamic_sampling
    named += [("update.dynamic_sampling.also", name) for name in (dynamic.also if dynamic else ())]
    for path, name in named:
        if name is not None and name not in rewards:
            checker.problem(path, f"got {name!r}; no reward of this recipe has that name{suggest(name, rewards)}")


def _check_views(recipe: Recipe, checker: Checker) -> None:
    """A component's field `view` names a view that `views` defines or the strategy makes. What needs it otherwise is found by the trainer,
    before it loads the model."""
    made = declaration(recipe.rollout.strategy.target).constants.get("views", ())
    defined = {*recipe.views, *made}
    for name in set(recipe.views) & set(made):
        checker.problem(f"views.{name}", f"rollout.strategy {recipe.rollout.strategy.use} makes a view of that name; take another one")
    components = [(f"losses.{n}", entry.component) for n, entry in enumerate(recipe.losses)]
    components += [(f"shaping.{n}", spec) for n, spec in enumerate(recipe.shaping)]
    for place, spec in components:
        name = spec.fields.get("view")
        if isinstance(name, str) and name not in defined:
            message = f"got {name!r}; the recipe defines no such view{suggest(name, defined)}"
            checker.problem(f"{place}.view", f"{message}; write it, e.g. views: {{{name}: {{use: patch_mask}}}}")
    collapse = recipe.trainer.collapse
    names = [entry.name for entry in recipe.losses]
    if collapse is not None and collapse.term not in names:
        checker.problem("trainer.collapse.term", f"got {collapse.term!r}; no entry of losses has that name{suggest(collapse.term, names)}")


def _check_sampling(recipe: Recipe, checker: Checker) -> None:
    rollout, evaluation = recipe.rollout, recipe.eval
    least = _constant(recipe.advantage, "min_generations", 1)
    if rollout.num_generations < least:
        use = recipe.advantage.use
        message = f"got {rollout.num_generations}; the advantage {use} compares completions of one task and needs at least {least}"
        checker.problem("rollout.num_generations", f"{message}; raise it, or use reinforce_pp")
    for name, value, neutral in (("top_p", rollout.top_p, 1.0), ("top_k", rollout.top_k, 0)):
        if value != neutral:
            why = "the trainer's log-probabilities are of the whole distribution, so training would be off-policy"
            checker.problem(f"rollout.{name}", f"got {value}; {why}. Use {neutral} and rollout.temperature; eval.{name} is free")
    for index, k in enumerate(evaluation.k):
        if k > evaluation.num_generations:
            checker.problem(f"eval.k.{index}", f"got {k}; eval.num_generations must be {k} or more, it is {evaluation.num_generations}")
    if evaluation.temperature == 0 and evaluation.num_generations > 1:
        message = f"got {evaluation.num_generations}; at eval.temperature 0 all of them are the same: use 1, or a temperature above 0"
        checker.problem("eval.num_generations", message)
    dynamic = recipe.update.dynamic_sampling
    if dynamic is not None and dynamic.low is not None and dynamic.low >= dynamic.high:
        checker.problem("update.dynamic_sampling.low", f"got {dynamic.low}; must be below high, which is {dynamic.high}")


def _warn_of_weights(recipe: Recipe) -> None:
    """Says aloud where a reward with `below_success = True` can make up for a wrong answer: with all else that is earned (1 each, or the
    reward's own `highest`) it must stay below the success reward's weight. No error, because sweeps over the weight go there on purpose."""
    success = [entry.weight for entry in recipe.rewards if entry.component == recipe.success]
    for index, entry in enumerate(recipe.rewards):
        if not success or entry.weight <= 0 or not declaration(entry.component.target).constants.get("below_success"):
            continue
        others = [other for other in recipe.rewards if other.component != recipe.success and other is not entry and other.weight > 0]
        room = success[0] - sum(o.weight * declaration(o.component.target).constants.get("highest", 1.0) for o in others)
        if entry.weight >= room:
            _log.warning(
                "rewards.%d.weight: got %g; a wrong answer with a full %s earns as much as a right one without: stay below %g",
                index, entry.weight, entry.name, room,
            )  # fmt: skip


def _check_steps(recipe: Recipe, checker: Checker) -> None:
    trainer, update, optim = recipe.trainer, recipe.update, recipe.optim
    rows = trainer.tasks_per_step * recipe.rollout.num_generations
    if update.num_mini_batches > rows:
        message = f"got {update.num_mini_batches}; a step has {rows} completions (tasks_per_step * num_generations)"
        checker.problem("update.num_mini_batches", message)
    if trainer.eval_tasks and recipe.tasks.eval is None:
        checker.problem("trainer.eval_tasks", f"got {trainer.eval_tasks}; there are no tasks.eval to take them from")
    if trainer.eval_steps and not trainer.eval_tasks:
        checker.problem("trainer.eval_steps", f"got {trainer.eval_steps}; trainer.eval_tasks is 0, so nothing would be evaluated")
    stop = trainer.early_stop
    if stop is not None and stop.metric.startswith("eval/") and not trainer.eval_steps:
        message = f"got {stop.metric!r}; trainer.eval_steps is 0, so it is never measured during training"
        checker.problem("trainer.early_stop.metric", message)
    if optim.warmup_steps and optim.lr_scheduler_type == "constant":
        checker.problem("optim.warmup_steps", f'got {optim.warmup_steps}; "constant" has no warm-up, "constant_with_warmup" has')
