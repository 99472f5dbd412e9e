from dataclasses import replace

import numpy as np
import pytest

from rewards.length import OverlongPenalty, RepetitionPenalty


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (1, 0.0),
        (16384, 0.0),  # 20480 - 4096: the last that is free
        (16385, -1 / 4096),
        (18432, -0.5),  # (16384 - 18432) / 4096
        (20480, -1.0),
        (20481, -1.0),
        (30000, -1.0),
    ],
)
def test_overlong_is_dapos(num_tokens, expected):
    assert OverlongPenalty(max_completion_length=20480, cache=4096).value(num_tokens) == expected


def test_overlong_counts_completion_tokens(make_group):
    """Maximum 10, cache 4: free up to 6, -0.5 at 8 tokens, whatever the text."""
    values = OverlongPenalty(max_completion_length=10, cache=4)(make_group(["x" * 50, "x", "x"], lengths=[6, 8, 11]))
    assert values.dtype == np.float32
    assert values.tolist() == [0.0, -0.5, -1.0]


@pytest.mark.parametrize("cache", [0, -1, 11])
def test_overlong_cache_must_fit(cache):
    with pytest.raises(ValueError, match=f"cache must be between 1 and max_completion_length = 10; got {cache}"):
        OverlongPenalty(max_completion_length=10, cache=cache)


@pytest.mark.parametrize(
    ("ngram_size", "text", "expected"),
    [
        (4, "a b c d a b c d", -1 / 5),  # abcd bcda cdab dabc abcd: 5, of them 4 distinct
        (4, "A b c d a B c d", -1 / 5),  # case does not count
        (20, " ".join(["w"] * 22), -2 / 3),  # 3, of them 1 distinct
        (20, " ".join(["w"] * 20), 0.0),  # 1 of 1
        (20, " ".join(["w"] * 19), 0.0),  # none at all
        (1, "a a a a", -3 / 4),
        (3, "", 0.0),
    ],
)
def test_repetition(ngram_size, text, expected):
    assert RepetitionPenalty(ngram_size).value(text) == pytest.approx(expected)


def test_repetition_spares_a_straight_corridor():
    """Ten times <|right|> is one word; with spaces it is ten: 8 trigrams, 1 distinct."""
    assert RepetitionPenalty().value("<|right|>" * 10) == 0
    assert RepetitionPenalty().value("<|right|> " * 10) == -7 / 8


def test_repetition_needs_an_ngram():
    with pytest.raises(ValueError, match="ngram_size must be at least 1; got 0"):
        RepetitionPenalty(0)


def test_repetition_of_tokens(make_group):
    """Ids 0 1 2 3: no pair twice, though the text is one word; the text says nothing, the ids do."""
    group = make_group(["aaaa", "b b b b"], lengths=[4, 4])
    assert RepetitionPenalty(2, of="tokens")(group).tolist() == [0, 0]
    ids = np.array([7, 8, 7, 8, 7])
    again = replace(group, rollouts=tuple(replace(r, completion=replace(r.completion, ids=ids)) for r in group.rollouts))
    assert RepetitionPenalty(2, of="tokens")(again).tolist() == [-0.5, -0.5]  # 78 87 78 87: 4, of them 2 distinct
    with pytest.raises(ValueError, match="of must be words or tokens; got 'letters'"):
        RepetitionPenalty(2, of="letters")


def test_repetition_group_of_float32(make_group):
    values = RepetitionPenalty(1)(make_group(["a a", "a b"]))
    assert values.dtype == np.float32
    assert values.tolist() == [-0.5, 0.0]
