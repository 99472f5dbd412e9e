"""Whether anything is learned: GRPO from random weights finds the one token that is rewarded, and nothing where rewards are shuffled."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmrl.models import tiny
from mmrl.models.quiet import quiet_transformers
from mmrl.recipe import load_recipe
from mmrl.trainer import train

REWARDS = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmrl.seeding import stream


@dataclass(frozen=True)
class Up:
    """Share of a completion's tokens that are <|up|>: at first about 1 in 300."""

    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([r.completion.text.count("<|up|>") / len(r.completion.ids) for r in group.rollouts], np.float32)


@dataclass(frozen=True)
class Shuffled:
    """The same rewards, dealt to a group's rollouts at random."""

    per_completion: ClassVar[bool] = False

    def __call__(self, group):
        rewards = Up()(group)
        return stream("shuffled", group.task.id).permutation(rewards).astype(np.float32)
'''


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """`learned(reward, seed)`: the mean of the true reward over the first and the last three of 40 steps."""
    folder = tmp_path_factory.mktemp("bandit")
    shape = tiny.TinyShape(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        mrope_section=(2, 3, 3), vision_depth=1, vision_hidden_size=32,
    )  # fmt: skip
    with quiet_transformers():
        tiny.save(*tiny.build_untrained(shape), folder / "model")
    (folder / "bandit_rewards.py").write_text(REWARDS)
    maze = {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "system": "", "split": "train"}

    def run(reward: str, seed: int) -> tuple[float, float]:
        tree = {
            "model": {"path": str(folder / "model")},
            "tasks": {"train": maze},
            "rollout": {"num_generations": 16, "max_completion_length": 4},
            "rewards": [{"use": f"bandit_rewards:{reward}"}, {"use": "bandit_rewards:Up", "weight": 0, "name": "true"}],
            "optim": {"learning_rate": 1e-2},
            "trainer": {
                "name": f"{reward}-{seed}",
                "output_dir": str(folder),
                "max_steps": 40,
                "tasks_per_step": 4,
                "trackers": [],
                "seed": seed,
            },
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        done = train(load_recipe(folder / "recipe.yaml"))
        rewards = [json.loads(line)["rewards/true/mean"] for line in Path(done, "metrics.jsonl").read_text().splitlines()]
        return float(np.mean(rewards[:3])), float(np.mean(rewards[-3:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield run


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_action_is_learned_and_not_without_its_reward(learned, seed):
    """From about 1 in 300 to nearly always; with the same rewards dealt to the wrong rollouts it stays rare."""
    first, last = learned("Up", seed)
    assert first < 0.05
    assert last > 0.9
    assert learned("Shuffled", seed)[1] < 0.2
