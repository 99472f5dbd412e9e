import math

import numpy as np

from mmrl.advantages.rloo import RLOO


def test_five_rewards(group):
    """A success against the mean of (0, 0, 1, 0) = 1/4; a failure against that of (1, 0, 1, 0) = 1/2."""
    advantages = np.ravel(RLOO()([group([1.0, 0.0, 0.0, 1.0, 0.0])]))
    np.testing.assert_allclose(advantages, [0.75, -0.5, -0.5, 0.75, -0.5], atol=1e-6)


def test_failed_reward_is_nobodys_baseline(group):
    """1, 0 and a failure: each of the two has the other alone as baseline."""
    assert np.ravel(RLOO()([group([1.0, math.nan, 0.0])])).tolist() == [1.0, 0.0, -1.0]
