import numpy as np
import pytest

from data_pipelines.compiled import compiled


@compiled
def running_sum(values: np.ndarray) -> np.ndarray:
    """Each value and those before it."""
    total, out = 0.0, np.empty(len(values))
    for i in range(len(values)):
        total += values[i]
        out[i] = total
    return out


def test_a_loop_keeps_its_name_and_gives_numpys_numbers():
    values = np.random.default_rng(0).normal(size=10_000)
    assert (running_sum(values) == np.cumsum(values)).all()
    assert running_sum.__name__ == "running_sum"
    assert running_sum.__doc__ == "Each value and those before it."


def test_an_error_within_it_comes_out():
    @compiled
    def refuse(size: int) -> None:
        if size < 0:
            raise ValueError("size is negative")

    refuse(1)
    with pytest.raises(ValueError, match="size is negative"):
        refuse(-1)
