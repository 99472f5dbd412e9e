import numpy as np
import pytest

from mmrl.types import GroupRewards


@pytest.fixture
def group():
    """Builds GroupRewards; one token per rollout unless lengths are given."""

    def build(rewards, lengths=None, token_rewards=None):
        rewards = np.array(rewards, np.float32)
        lengths = np.ones(len(rewards), np.int64) if lengths is None else np.array(lengths, np.int64)
        if token_rewards is not None:
            token_rewards = tuple(np.array(row, np.float32) for row in token_rewards)
        return GroupRewards(rewards, lengths, token_rewards)

    return build
