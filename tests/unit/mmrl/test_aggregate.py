import numpy as np
import pytest

from mmrl.aggregate import token_weights

LOSSES = [np.array([1.0, 1.0]), np.array([4.0, 4.0, 4.0, 4.0])]


def loss(weights):
    return sum(float((w * x).sum()) for w, x in zip(weights, LOSSES, strict=True))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", 3.0),  # (2 * 1 + 4 * 4) / 6
        ("sequence_mean", 2.5),  # (1 + 4) / 2
        ("sequence_sum", 9.0),  # (2 + 16) / 2
        ("constant", 1.125),  # 18 / (2 * 8)
    ],
)
def test_four_aggregations_of_two_rows(aggregation, expected):
    assert loss(token_weights([2, 4], None, aggregation, 8)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("aggregation", "expected"), [("token_mean", 0.25), ("sequence_mean", 0.5)])
def test_timelens_bnpo_is_the_mean_over_tokens(aggregation, expected):
    """Two answers of 2 and 6 tokens, loss 1 on every token of the one, 0 on the other's: 2 / 8; the mean per answer is 1 / 2."""
    weights = token_weights([2, 6], None, aggregation)
    assert float(weights[0].sum() * 1.0 + weights[1].sum() * 0.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1 / 6] * 2),
        ("sequence_mean", [1 / 4] * 2),
        ("sequence_sum", [1 / 2] * 2),
        ("constant", [1 / 16] * 2),
    ],
)
def test_row_that_does_not_count_leaves_the_denominator(aggregation, expected):
    """Lengths 2, 3, 4 with the middle row cut off: the same weights as lengths 2, 4 alone, and zeros for the row."""
    weights = token_weights([2, 3, 4], [True, False, True], aggregation, 8)
    np.testing.assert_allclose(weights[0], expected, atol=1e-7)
    np.testing.assert_array_equal(weights[1], np.zeros(3))
    for kept, alone in zip((weights[0], weights[2]), token_weights([2, 4], None, aggregation, 8), strict=True):
        np.testing.assert_array_equal(kept, alone)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("counted", [None, [True, False, True, True]])
def test_mean_forms_sum_to_one(aggregation, counted):
    weights = token_weights([1, 17, 300, 4], counted, aggregation)
    assert sum(float(w.sum(dtype=np.float64)) for w in weights) == pytest.approx(1.0, abs=1e-6)
    assert [w.shape for w in weights] == [(1,), (17,), (300,), (4,)]
    assert all(w.dtype == np.float32 for w in weights)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_no_row_counts(aggregation):
    for weights in token_weights([2, 3], [False, False], aggregation, 8):
        np.testing.assert_array_equal(weights, np.zeros_like(weights))


def test_no_rows():
    assert token_weights([], None, "token_mean") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2], None, "mean"), "aggregation must be one of token_mean, sequence_mean, sequence_sum, constant; got 'mean'"),
        (([2, 0], None, "token_mean"), "got 0 at row 1"),
        (([2, 3], [True], "token_mean"), "2 rows, 1 entries"),
        (([2], None, "constant"), "max_completion_length, which must be >= 1; got None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_weights(*arguments)
