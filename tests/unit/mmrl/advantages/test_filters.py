import math

import numpy as np
import pytest

from mmrl.advantages.filters import keep_group


@pytest.mark.parametrize(
    ("success", "low", "high", "kept"),
    [
        ([1, 1, 1], 0.0, 1.0, False),
        ([0, 0, 0], 0.0, 1.0, False),
        ([1, 0, 1], 0.0, 1.0, True),
        ([1, 0, 0, 0], 0.25, 0.99, False),  # strictly above low
        ([1, 1, 1, 0], 0.01, 0.75, False),  # strictly below high
        ([1, 1, 1, 0], 0.01, 0.99, True),
        ([1, math.nan, 1], 0.0, 1.0, False),  # what was scored is all right
        ([1, math.nan, 0], 0.0, 1.0, True),
        ([math.nan, math.nan], 0.0, 1.0, False),
    ],
)
def test_keeps_means_strictly_between(success, low, high, kept):
    assert keep_group(np.array(success, np.float32), low, high) is kept


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.5, 0.5), (0.0, 1.1)])
def test_ranges(low, high):
    with pytest.raises(ValueError, match=f"need 0 <= low < high <= 1; got low {low}, high {high}"):
        keep_group(np.zeros(2), low, high)
