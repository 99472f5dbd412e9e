"""Reward functions written for TRL, unchanged."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mmrl.types import Group
from rewards.outside import call_outside

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OWN = ("prompts", "completions", "completion_ids", "solution")


@dataclass(frozen=True)
class TRLFunction:
    """A TRL reward function `def f(prompts, completions, **columns) -> list[float | None]`, sync or async. Range: the function's own.

    It is called once per group, as TRL calls it once per batch, with lists of G: `prompts`, `completions`, `completion_ids`
    (token ids), `solution`, and one list per key of `task.meta`. None means not scored. What belongs to TRL's trainer is not passed
    (trainer_state, log_extra, log_metric), nor are pictures. The function runs in a process of its own (`rewards.outside`): a
    call that takes longer than `timeout_s` is ended and counts as failed, whatever the function is stuck in.
    """

    function: str
    """ "module:function", importable from the working directory or the installed packages."""
    timeout_s: float = 60.0
    """Seconds for one group; the import of the module has its own limit."""
    conversational: bool = True
    """True: a prompt is a list of messages and a completion is [{"role": "assistant", "content": text}]. False: both are strings,
    the prompt as templated."""

    per_completion: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not _FUNCTION.fullmatch(self.function):
            raise ValueError(f'function must be "module:function", e.g. "my_rewards:brevity"; got {self.function!r}')
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0; got {self.timeout_s}")

    def __call__(self, group: Group) -> np.ndarray:
        values = call_outside(self.function, self._arguments(group), self.timeout_s)
        if len(values) != len(group.rollouts):
            raise ValueError(
                f"{self.function} returned {len(values)} rewards for the {len(group.rollouts)} completions of task {group.task.id}"
            )
        return np.array([np.nan if value is None else value for value in values], np.float32)

    def _arguments(self, group: Group) -> dict[str, Any]:
        task, rollouts = group.task, group.rollouts
        if taken := sorted(set(task.meta) & set(_OWN)):
            raise ValueError(f"task {task.id}: meta key {taken[0]!r} is the name of an argument every TRL function gets; rename it")
        if self.conversational:
            prompts: list[Any] = [[_plain(message) for message in rollout.prompt.task.messages] for rollout in rollouts]
            completions: list[Any] = [[{"role": "assistant", "content": rollout.completion.text}] for rollout in rollouts]
        else:
            prompts = [rollout.prompt.text for rollout in rollouts]
            completions = [rollout.completion.text for rollout in rollouts]
        columns = {key: [value] * len(rollouts) for key, value in {"solution": task.solution, **task.meta}.items()}
        ids = [rollout.completion.ids.tolist() for rollout in rollouts]
        return {"prompts": prompts, "completions": completions, "completion_ids": ids, **columns}


def _plain(message: Any) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": content if isinstance(content, str) else [dict(part) for part in content]}
