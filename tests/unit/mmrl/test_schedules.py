import math

import pytest

from mmrl.schedules import Constant, Cosine, Linear, Sigmoid


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(0.3), {0: 0.3, 1000: 0.3}),
        (Linear(1.0, 0.2, num_steps=4), {0: 1.0, 1: 0.8, 2: 0.6, 4: 0.2, 5: 0.2, 100: 0.2}),
        (Linear(0.0, 2.0, num_steps=2), {0: 0.0, 1: 1.0, 2: 2.0, 9: 2.0}),
        (Cosine(2.0, 0.0, num_steps=4), {0: 2.0, 1: 1 + math.sqrt(0.5), 2: 1.0, 4: 0.0, 9: 0.0}),
        (Cosine(2.0, 1.0, num_steps=6, warmup_steps=4), {0: 0.0, 1: 0.5, 3: 1.5, 4: 2.0, 5: 1.5, 6: 1.0, 7: 1.0}),
        # 30 * (s - 40) / 60 = -20, -0.5, 0, 0.5, 10
        (Sigmoid(1.0, 40, 60), {0: 1.0, 39: 0.6224593, 40: 0.5, 41: 0.3775407, 60: 4.539787e-5, 10**9: 0.0}),
    ],
)
def test_values_by_step(schedule, points):
    assert {step: schedule(step) for step in points} == pytest.approx(points)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), "value must be a finite number; got nan"),
        (lambda: Linear(0.0, math.inf, 3), "end must be a finite number; got inf"),
        (lambda: Linear(0.0, 1.0, 0), "num_steps must be >= 1; got 0"),
        (lambda: Cosine(0.0, 1.0, 0), "num_steps must be >= 1; got 0"),
        (lambda: Cosine(0.0, 1.0, 4, warmup_steps=4), r"warmup_steps must lie in \[0, num_steps = 4\); got 4"),
        (lambda: Sigmoid(1.0, 40, 60, slope=0.0), "slope must be > 0; got 0.0"),
        (lambda: Sigmoid(1.0, math.nan, 60), "middle must be a finite number; got nan"),
        (lambda: Constant(1.0)(-1), "step must be >= 0; got -1"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()
