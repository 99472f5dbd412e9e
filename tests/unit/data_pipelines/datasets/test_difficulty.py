import numpy as np
import pytest

from data_pipelines.datasets.difficulty import (
    bucket_target,
    difficulty_weights,
    duration_buckets,
    reason_to_drop,
    sample_by_difficulty,
    span_of_no_answer,
)


def test_weights():
    """Acceptance check 3: bins 0 0 0 6 6 12 18, so the Gaussian is divided by 3 3 3 2 2 1 1."""
    weights = difficulty_weights([0, 0.02, 0.04, 0.31, 0.31, 0.62, 0.90])
    np.testing.assert_allclose(weights, [0.2255, 0.2301, 0.2324, 0.1499, 0.1499, 0.0120, 0.0001], atol=5e-5)
    assert weights.sum() == pytest.approx(1)


def test_the_last_bin_holds_a_perfect_overlap():
    """0.96 and 1.0 share a bin, so each gets half of what it would get alone: the ratio to 0.05 alone is halved."""
    pair, alone = difficulty_weights([0.05, 0.96, 1.0]), difficulty_weights([0.05, 1.0])
    assert pair[2] / pair[0] == pytest.approx(0.5 * alone[1] / alone[0], rel=1e-5)


def test_buckets():
    """A duration on an edge falls into the first bucket that matches."""
    durations = [0.5, 30, 30.1, 60, 209, 210, 240, 240.1, 5000]
    assert duration_buckets(durations).tolist() == [0, 0, 1, 1, 6, 6, 7, 8, 8]


def test_targets():
    """Acceptance check 7."""
    assert [bucket_target(2500), 9 * bucket_target(2500)] == [277, 2493]
    assert [bucket_target(30_000), 9 * bucket_target(30_000)] == [3333, 29_997]


def test_each_bucket_gives_its_share_or_all_it_has():
    """100 items of 10 s, 3 of 45 s, 40 of 300 s; 90 / 9 = 10 wanted from each."""
    durations = np.array([10.0] * 100 + [45.0] * 3 + [300.0] * 40)
    chosen = sample_by_difficulty(np.full(143, 0.1), durations, 90, seed=0)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(duration_buckets(durations[chosen]), minlength=9).tolist() == [10, 3, 0, 0, 0, 0, 0, 0, 10]


def test_the_draw_is_a_function_of_the_seed():
    overlaps, durations = np.linspace(0, 1, 50), np.full(50, 10.0)
    draw = sample_by_difficulty(overlaps, durations, 90, seed=1)
    np.testing.assert_array_equal(draw, sample_by_difficulty(overlaps, durations, 90, seed=1))
    assert draw.tolist() != sample_by_difficulty(overlaps, durations, 90, seed=2).tolist()


def test_the_first_drawn_follows_the_weights():
    """One of seven, 4000 keyed draws: each frequency within four standard errors of its weight."""
    overlaps = [0, 0.02, 0.04, 0.31, 0.31, 0.62, 0.90]
    weights = difficulty_weights(overlaps)
    draws = np.concatenate([sample_by_difficulty(overlaps, [10.0] * 7, 9, seed=seed) for seed in range(4000)])
    shares = np.bincount(draws, minlength=7) / 4000
    assert (abs(shares - weights) <= 4 * np.sqrt(weights * (1 - weights) / 4000) + 1e-9).all()


def test_no_answer_overlaps_with_nothing():
    assert span_of_no_answer(30.0) == (40.0, 50.0)


@pytest.mark.parametrize(
    ("query", "span", "duration", "reason"),
    [
        ("a man opens the door", (0, 30), 30, None),
        ("a man opens the door", (0, 5), 5, None),
        ("a man opens the door", (0, 4), 4.9, "the video lasts 4.9 s, not 5 to 500"),
        ("a man opens the door", (0, 4), 501, "the video lasts 501 s"),
        ("a man opens the door", (0, 4), float("nan"), "the video lasts nan s"),
        ("a man opens the door", (-1, 4), 30, "the span -1 to 4 s is not inside the video's 30 s"),
        ("a man opens the door", (5, 4), 30, "the span 5 to 4 s"),
        ("a man opens the door", (5, 31), 30, "the span 5 to 31 s"),
        ("door " * 201, (0, 4), 30, "the query has 201 words, more than 200"),
        ("Hear, a dog barks", (0, 4), 30, "the query is about sound: 'hear'"),
        ("When is the sound?", (0, 4), 30, "the query is about sound: 'sound'"),
        ("a heart is drawn", (0, 4), 30, None),  # a whole word counts, not a part of one
    ],
)
def test_filter(query, span, duration, reason):
    found = reason_to_drop(query, span, duration)
    assert (found is None) if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: difficulty_weights([0.5, 1.5]), r"overlaps must be numbers in \[0, 1\]"),
        (lambda: difficulty_weights([float("nan")]), r"overlaps must be numbers in \[0, 1\]"),
        (lambda: duration_buckets([0.0]), "durations_s must be finite seconds > 0"),
        (lambda: bucket_target(8), "target_size must be at least 9, one per duration bucket; got 8"),
        (lambda: sample_by_difficulty([0.1], [10.0, 20.0], 9, seed=0), "got 1 overlaps and 2 durations"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
