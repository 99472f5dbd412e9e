from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mmrl.types import Completion, Group, Prompt, Rollout, Task


def _group(texts: Sequence[str], solution: str = "7", meta: Mapping[str, Any] | None = None, lengths: Sequence[int] | None = None) -> Group:
    task = Task("toy/1", ({"role": "user", "content": [{"type": "text", "text": "3 + 4?"}]},), (), solution, meta or {})
    prompt = Prompt(task, "<user>3 + 4?", np.array([5, 6]), {})
    sizes = lengths or [len(text) + 1 for text in texts]
    completions = [
        Completion(np.arange(size), text, np.zeros(size, np.float32), "stop", 0) for text, size in zip(texts, sizes, strict=True)
    ]
    return Group(task, tuple(Rollout(prompt, completion, prompt) for completion in completions))


@pytest.fixture
def make_group() -> Callable[..., Group]:
    """A group whose completions have the given texts (and `lengths` tokens: one per character and an end token, if not given)."""
    return _group
