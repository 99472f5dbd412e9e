#!/usr/bin/env python
"""How often a model's greedy walk ends on T, and how often it comes by T at all: tells finding the way from stopping there.

python scripts/reach_goal.py --recipe configs/methods/demo.yaml --tasks 500 --out docs/results/reach_demo.json tiny runs/demo/checkpoint-600
"""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrl.engines.hf import HFEngine
from mmrl.metrics import machine, source_commit, write_json
from mmrl.models.load import load_policy
from mmrl.models.processor import PromptMaker
from mmrl.protocols import Sampling
from mmrl.recipe import Recipe, load_recipe
from mmrl.samplers import first_keys
from mmrl.strategies.plain import Plain
from rewards.answer import after_think, leading_moves
from rewards.maze import MazeWalker, walk


def measure(recipe: Recipe, path: str, tasks: int) -> dict[str, Any]:
    """Shares of the recipe's first `tasks` evaluation tasks, in all and by moves."""
    policy, processor = load_policy(replace(recipe.model, path=path))
    assert recipe.tasks.eval is not None
    source, engine, make_prompts = recipe.tasks.eval.build(), HFEngine(), PromptMaker(processor, policy.layout)
    engine.attach(processor)
    engine.load_policy(policy, 0)
    sampling = Sampling(temperature=0.0, max_completion_length=recipe.rollout.max_completion_length)
    count, ends, comes_by = Counter[int](), Counter[int](), Counter[int]()
    for group in Plain()([source.task(key) for key in first_keys(source, tasks)], engine, make_prompts, 1, sampling):
        moves = group.task.meta["moves"]
        cells, _ = walk(group.task, leading_moves(after_think(group.rollouts[0].completion.text) or ""))
        count[moves] += 1
        ends[moves] += int(MazeWalker()(group)[0] >= 1)
        comes_by[moves] += int(tuple(group.task.meta["goal"]) in {tuple(cell) for cell in cells})
    shares = {
        name: {str(m): round(hits[m] / count[m], 4) for m in sorted(count)} | {"all": round(hits.total() / count.total(), 4)}
        for name, hits in (("ends_on_goal", ends), ("comes_by_goal", comes_by))
    }
    return {"model": Path(path).name, "tasks": count.total(), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders, or tiny")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    command = " ".join(Path(word).name if word.startswith("/") else word for word in ["python", *sys.argv])
    models = [measure(recipe, model, args.tasks) for model in args.models]
    write_json(args.out, {"commit": source_commit(), "command": command, "machine": machine(), "models": models})


if __name__ == "__main__":
    main()
