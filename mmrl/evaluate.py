"""Evaluation: the walk without the update. Success on a fixed set of tasks, with intervals, pass@k and a table by difficulty."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console

from mmrl.checkpoint import latest_checkpoint, verify
from mmrl.errors import RecipeError, TaskError
from mmrl.loop.score import WeightedReward, score
from mmrl.metrics import save_media, write_json
from mmrl.models.load import load_policy
from mmrl.models.processor import PromptMaker
from mmrl.protocols import Reward, RolloutEngine, Sampling, TaskSource
from mmrl.recipe import ModelSection, Recipe, load_recipe
from mmrl.samplers import first_keys
from mmrl.seeding import stream
from mmrl.strategies.plain import Plain
from mmrl.types import Group, Task, TaskKey
from rewards.baselines import best_constant_span
from rewards.spans import TemporalIoU, grounding_metrics, temporal_iou, true_span

EXAMPLES = 12


def evaluate(
    source: TaskSource,
    keys: Sequence[TaskKey],
    engine: RolloutEngine,
    make_prompts: PromptMaker,
    success: Reward,
    sampling: Sampling,
    *,
    num_generations: int = 1,
    ks: Sequence[int] = (1,),
    batch_size: int = 64,
    rewards: Sequence[WeightedReward] = (),
    run: Path | None = None,
) -> dict[str, Any]:
    """Success rate of the engine's policy on the tasks `keys`, as plain JSON.

    `success`: mean over all completions; `interval`: 95 % (Wilson with one completion a task, else bootstrap over tasks); `pass@k` unbiased
    (arXiv:2107.03374, eq. 1); `table`: by the task's meta "moves" and "turns" where it has them, else by bucket; `rewards`: the mean of
    each of these other rewards (NaN = not scored, left out), in all and by cell of the table; `baselines`: what blind answers earn, the
    mean of the tasks' meta "baselines", in all and by cell, where all of them have it; `grounding`: for each reward that measures the
    overlap with the annotated span, where all tasks have one, mIoU and R1 beside those of the best constant span. With `run`, the pictures
    of a few examples are saved in it. `outcomes`: values of success and of the rewards by task and completion (null = not scored), for
    `mmrl compare`.
    """
    if not keys:
        raise TaskError("tasks.eval: the source has no tasks")
    if max(ks) > num_generations:
        raise RecipeError(f"eval.k: pass@{max(ks)} needs at least {max(ks)} completions a task; num_generations is {num_generations}")
    others = [item for item in rewards if item.reward is not success]
    overlaps = [item for item in rewards if isinstance(item.reward, TemporalIoU) and item.reward.at_least is None and not item.reward.snap]
    measured = [*others, *(item for item in overlaps if item not in others)]
    every: dict[str, list[np.ndarray]] = {item.name: [] for item in measured}
    values = {item.name: every[item.name] for item in others}
    rates: list[np.ndarray] = []
    groups: list[Group] = []
    for sampled in sample_groups(source, keys, engine, make_prompts, num_generations, sampling, batch_size):
        for item in score(sampled, [WeightedReward(success, 1.0, "success")]):
            rates.append(item.rewards >= 1)
            wanted = run is not None and len(groups) < EXAMPLES
            groups.append(item.group if wanted else Group(replace(item.group.task, media=()), ()))
        for item in score(sampled, measured) if measured else ():
            for name, parts in item.parts.items():
                every[name].append(parts)
    solved = np.array(rates, np.float64)
    result: dict[str, Any] = {
        "tasks": len(keys),
        "sampling": {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "num_generations": num_generations,
            "max_completion_length": sampling.max_completion_length, "seed": sampling.seed,
        },
        "success": float(solved.mean()),
        "interval": list(wilson(solved.sum(), len(solved)) if num_generations == 1 else bootstrap(solved.mean(1))),
        "rewards": {name: _mean(parts) for name, parts in values.items()},
        "table": _table(keys, groups, solved.mean(1), values),
        "outcomes": {
            "tasks": [group.task.id for group in groups],
            "values": {**{name: [_numbers(row) for row in rows] for name, rows in every.items()}, "success": solved.tolist()},
        },
        **_baselines([group.task for group in groups]),
    }  # fmt: skip
    if overlaps and all(group.task.meta.get("kind") == "grounding" for group in groups):
        result["grounding"] = {item.name: grounding([group.task for group in groups], every[item.name]) for item in overlaps}
    result |= {f"pass@{k}": float(np.mean([pass_at_k(num_generations, int(row.sum()), k) for row in solved])) for k in ks}
    if run is not None:
        result["examples"] = [_example(run, group, row) for group, row in zip(groups[:EXAMPLES], solved, strict=False)]
    return result


def sample_groups(
    source: TaskSource,
    keys: Sequence[TaskKey],
    engine: RolloutEngine,
    make_prompts: PromptMaker,
    num_generations: int,
    sampling: Sampling,
    batch_size: int,
) -> Iterator[list[Group]]:
    """A group for each of `keys`, in order, `batch_size` tasks sampled together; media are read when their batch comes."""
    for at in range(0, len(keys), batch_size):
        tasks = [source.task(key) for key in keys[at : at + batch_size]]
        yield Plain()(tasks, engine, make_prompts, num_generations, sampling)


def grounding(tasks: Sequence[Task], overlaps: Sequence[np.ndarray]) -> dict[str, Any]:
    """mIoU and R1@0.3, 0.5 and 0.7 over ALL completions of grounding tasks, an answer without a span being a 0; and under "constant" those
    of the one answer that has the highest mIoU here without a look at any video: always the same `shares` of the video's duration.

    `overlaps`: per task the temporal IoU of its completions, [G] in [0, 1].
    """
    shares = np.array([np.array(true_span(task)) / task.meta["duration_s"] for task in tasks])
    (start, end), _ = best_constant_span(shares, max(1.0, float(shares.max())))
    constant = [temporal_iou((start, end), (low, high)) for low, high in shares.tolist()]
    return {**grounding_metrics(np.concatenate(overlaps)), "constant": {"shares": [start, end], **grounding_metrics(constant)}}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n completions hold a correct one: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, eq. 1)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion; 95 % at z = 1.96."""
    p = successes / n
    middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def bootstrap(rates: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean over tasks, tasks resampled; keyed by nothing but numbers, so it repeats."""
    picks = stream("bootstrap", len(rates), draws).integers(0, len(rates), (draws, len(rates)))
    low, high = np.percentile(rates[picks].mean(1), (2.5, 97.5))
    return float(low), float(high)


def table_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """ "eval/success", its parts by moves (or bucket), pass@k and the rewards' means, under the names of metrics.jsonl."""
    out = {"eval/success": float(result["success"])}
    out |= {f"eval/{key}": float(value) for key, value in result.items() if key.startswith("pass@")}
    out |= {f"eval/rewards/{name}/mean": value for name, value in result["rewards"].items() if value is not None}
    out |= {f"eval/baselines/{name}": value for name, value in result.get("baselines", {}).items()}
    for name, numbers in result.get("grounding", {}).items():
        out |= {f"eval/grounding/{name}/{key}": value for key, value in numbers.items() if key != "constant"}
        out[f"eval/grounding/{name}/constant_mIoU"] = numbers["constant"]["mIoU"]
    by: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for cell in result["table"]:
        by[f"moves={cell['moves']}" if "moves" in cell else str(cell["bucket"])].append((cell["n"], cell["success"]))
    for name, cells in by.items():
        if name:
            out[f"eval/success/{name}"] = sum(n * rate for n, rate in cells) / sum(n for n, _ in cells)
    return out


def write_evaluation(run: Path, step: int, result: Mapping[str, Any]) -> Path:
    path = run / "eval" / f"step-{step:06d}.json"
    write_json(path, {"step": step, **result})
    return path


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    """Over all completions; None for a reward that scored none."""
    scored = np.concatenate(parts)
    scored = scored[~np.isnan(scored)]
    return float(scored.mean(dtype=np.float64)) if len(scored) else None


def _numbers(row: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in row.tolist()]


def _table(
    keys: Sequence[TaskKey], groups: Sequence[Group], rates: np.ndarray, values: Mapping[str, Sequence[np.ndarray]]
) -> list[dict[str, Any]]:
    cells: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for n, (key, group) in enumerate(zip(keys, groups, strict=True)):
        meta = group.task.meta
        cell = (meta["moves"], meta["turns"]) if "moves" in meta and "turns" in meta else (key.bucket,)
        cells[cell].append(n)
    names = {2: ("moves", "turns"), 1: ("bucket",)}
    return [
        {
            **dict(zip(names[len(cell)], cell, strict=True)),
            "n": len(places),
            "success": float(rates[places].mean()),
            "rewards": {name: _mean([parts[n] for n in places]) for name, parts in values.items()},
            **_baselines([groups[n].task for n in places]),
        }
        for cell, places in sorted(cells.items(), key=lambda item: (len(item[0]), item[0]))
    ]


def _baselines(tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """{"baselines": {name: mean over the tasks}}, or nothing if one of them has none, or others than the first."""
    found = [task.meta["baselines"] for task in tasks if isinstance(task.meta.get("baselines"), Mapping)]
    if len(found) < len(tasks) or any(one.keys() != found[0].keys() for one in found):
        return {}
    return {"baselines": {name: float(np.mean([one[name] for one in found])) for name in found[0]}}


def _example(run: Path, group: Group, solved: np.ndarray) -> dict[str, Any]:
    task = group.task
    return {
        "task_id": task.id, "meta": dict(task.meta), "solution": task.solution, "completion": group.rollouts[0].completion.text,
        "success": float(solved[0]), **save_media(run, task.media),
    }  # fmt: skip


def load_sampler(recipe: Recipe, model: ModelSection) -> tuple[RolloutEngine, PromptMaker]:
    """The recipe's engine with the weights of `model`, and what makes that model's prompts."""
    engine: RolloutEngine = recipe.rollout.engine.build()
    policy, processor = load_policy(model, Accelerator(cpu=not torch.accelerator.is_available()).device)
    engine.attach(processor)
    engine.load_policy(policy, 0)
    return engine, PromptMaker(processor, policy.layout, timestamps=model.timestamps)


def evaluate_command(target: str, overrides: list[str]) -> None:
    """`mmrl eval RECIPE|RUN`: evaluates a recipe's model, or a run's last checkpoint, on the recipe's eval tasks."""
    path = Path(target)
    run = path if path.is_dir() else None
    recipe = load_recipe(path / "recipe.yaml" if run else path, overrides)
    if recipe.tasks.eval is None:
        raise RecipeError(f"{target}: tasks.eval is empty; name a task source to evaluate on")
    checkpoint = latest_checkpoint(path) if run else None
    if run and checkpoint is None:
        raise RecipeError(f"{target}: the run has no checkpoint yet; train it first, or give a recipe")
    if checkpoint:
        verify(checkpoint)
    model = replace(recipe.model, path=str(checkpoint), lora=None) if checkpoint else recipe.model
    source = recipe.tasks.eval.build()
    success = recipe.success.build()
    engine, make_prompts = load_sampler(recipe, model)
    section = recipe.eval
    sampling = Sampling(
        section.temperature, section.top_p, section.top_k, recipe.rollout.max_completion_length, recipe.rollout.stop, recipe.trainer.seed
    )
    result = evaluate(
        source, first_keys(source, section.tasks), engine, make_prompts, success, sampling,
        num_generations=section.num_generations, ks=section.k, batch_size=recipe.trainer.eval_batch_size,
        rewards=[WeightedReward(r.component.build(), r.weight, r.name, r.arms) for r in recipe.rewards],
    )  # fmt: skip
    if run and checkpoint:
        write_json(run / "eval" / f"{checkpoint.name}.json", {"step": int(checkpoint.name.split("-")[-1]), **result})
    Console().print_json(json.dumps({k: v for k, v in result.items() if k not in ("examples", "outcomes")}))
