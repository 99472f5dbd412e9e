"""A run folder with logged rollouts, written by the trainer's own functions from completions of our own: no model is asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.tasks.maze import MazeTasks
from mmrl.loop.score import WeightedReward, score
from mmrl.metrics import write_rollouts
from mmrl.recipe import Recipe, load_recipe, to_yaml
from mmrl.seeding import stream
from mmrl.types import Completion, Group, GroupRewards, Prompt, Rollout, ScoredGroup, Task

ROOT = Path(__file__).parents[4]
MOVES = ("<|up|>", "<|down|>", "<|left|>", "<|right|>")


class Tokenizer:
    def decode(self, ids: Sequence[int]) -> str:
        return "".join(MOVES[i % 4] for i in ids)


def rollout(
    task: Task, text: str, ids: Sequence[int] = (1, 2, 3), *, arm: str = "plain", trained: bool = True, shown: Task | None = None
) -> Rollout:
    prompt = Prompt(shown or task, "templated", np.zeros(4, np.int64), {})
    completion = Completion(np.array(ids, np.int64), text, np.full(len(ids), -0.5, np.float32), "stop", 7)
    return Rollout(prompt, completion, prompt if trained else None, arm)


def log_groups(
    run: Path, recipe: Recipe, step: int, groups: Sequence[Group], token_rewards: Sequence[tuple[np.ndarray, ...]] | None = None
) -> list[ScoredGroup]:
    """Scores and credits as the trainer does, and logs the step."""
    rewards = [WeightedReward(entry.component.build(), entry.weight, entry.name) for entry in recipe.rewards]
    scored = score(groups, rewards, reward_failure_limit=recipe.trainer.reward_failure_limit)
    given = [
        GroupRewards(
            item.rewards,
            np.array([len(r.completion.ids) for r in item.group.rollouts]),
            None if token_rewards is None else token_rewards[n],
            tuple(r.arm for r in item.group.rollouts),
            item.parts,
        )
        for n, item in enumerate(scored)
    ]
    advantages = {
        id(r): float(row.mean())
        for item, rows in zip(scored, recipe.advantage.build()(given), strict=True)
        for r, row, reward in zip(item.group.rollouts, rows, item.rewards, strict=True)
        if r.train_prompt is not None and not np.isnan(reward)
    }
    success = [np.zeros(len(item.rewards), np.float32) for item in scored]
    write_rollouts(run, step, scored, success, advantages, {}, Tokenizer(), token_rewards=token_rewards)
    return scored


def write_recipe(run: Path, recipe: Recipe) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(to_yaml(recipe))


@pytest.fixture
def logged_run(tmp_path, monkeypatch):
    """`logged_run("advantage.scale_rewards=none", ...)` -> (run folder, its scored groups): the demo's recipe with overrides, two steps of
    four mazes with six completions each, right, nearly right, and random ones."""
    monkeypatch.chdir(ROOT)

    def make(*overrides: str) -> tuple[Path, list[ScoredGroup]]:
        recipe = load_recipe("configs/methods/demo.yaml", overrides)
        run = tmp_path / "run"
        write_recipe(run, recipe)
        source = MazeTasks("train", moves="2-4")
        scored: list[ScoredGroup] = []
        for step in (10, 20):
            groups = []
            for n in range(4):
                task = source.task(source.key(step + n))
                rng = stream("logged", step, n)
                random = ["".join(MOVES[i] for i in rng.integers(0, 4, rng.integers(1, 5))) for _ in range(4)]
                texts = [
                    f"<think></think>{task.solution}",
                    task.solution[: task.solution.index("|>") + 2],
                    *(f"<think></think>{t}" for t in random),
                ]
                groups.append(Group(task, tuple(rollout(task, text, list(range(2 + len(text) % 7))) for text in texts)))
            scored += log_groups(run, recipe, step, groups)
        return run, scored

    return make
