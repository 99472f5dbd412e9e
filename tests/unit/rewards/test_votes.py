"""TTRV's votes: shares over all N, three forms of the entropy, and what a baseline makes of it. Numbers to 1e-5."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.advantages.batch_baseline import BatchBaseline
from mmrl.advantages.grpo import GRPO
from mmrl.advantages.per_arm import PerArm
from mmrl.advantages.rloo import RLOO
from mmrl.types import Completion, Group, GroupRewards, Prompt, Rollout, Task
from rewards.votes import Majority, VoteEntropy, Votes, canonical, choice, entropy, open_answer, whole, winner

EXACT = GRPO(epsilon=1e-6)


def grouped(texts, solution=""):
    task = Task("item", (), (), solution, {})
    prompt = Prompt(task, "", np.array([0]), {})
    return Group(task, tuple(Rollout(prompt, Completion(np.array([1]), t, np.zeros(1, np.float32), "stop", 0), prompt) for t in texts))


def votes(text, **options):
    return Votes(**options).rewards(list(text))


def by_letter(text, values):
    """Letter -> its value, the same at every place."""
    out = {letter: float(value) for letter, value in zip(text, values, strict=True)}
    assert all(float(value) == out[letter] for letter, value in zip(text, values, strict=True))
    return out


def advantages(estimator, *items, arms=None):
    groups = [GroupRewards(r, np.ones(len(r), np.int64), arms=arms or ("plain",) * len(r)) for r in items]
    return [np.array([float(row[0]) for row in rows]) for rows in estimator(groups)]


# --- acceptance numbers -----------------------------------------------------------------------------------------------------------------


def test_32_votes():
    text = "A" * 16 + "B" * 8 + "C" * 8
    assert entropy(list(text)) == pytest.approx((1.039721, 0.946395), abs=1e-5)
    assert by_letter(text, votes(text, entropy="raw")) == pytest.approx({"A": -0.279791, "B": -0.529791, "C": -0.529791}, abs=1e-5)
    assert by_letter(text, votes(text)) == pytest.approx({"A": -0.209796, "B": -0.459796, "C": -0.459796}, abs=1e-5)
    for alpha in (0, 0.75, 5):
        (given,) = advantages(EXACT, votes(text, alpha=alpha))
        assert by_letter(text, given) == pytest.approx({"A": 0.984243, "B": -0.984243, "C": -0.984243}, abs=1e-5)


def test_eight_votes():
    text = "AAAAABBC"
    assert entropy(list(text)) == pytest.approx((0.900256, 0.819448), abs=1e-5)
    assert by_letter(text, votes(text, entropy="raw")) == pytest.approx({"A": -0.050192, "B": -0.425192, "C": -0.550192}, abs=1e-5)
    assert by_letter(text, votes(text)) == pytest.approx({"A": 0.010414, "B": -0.364586, "C": -0.489586}, abs=1e-5)
    (given,) = advantages(EXACT, votes(text))
    assert by_letter(text, given) == pytest.approx({"A": 0.713244, "B": -0.998541, "C": -1.569136}, abs=1e-5)
    (majority,) = advantages(EXACT, np.array([letter == "A" for letter in text], np.float32))
    assert by_letter(text, majority) == pytest.approx({"A": 0.724567, "B": -1.207612, "C": -1.207612}, abs=1e-5)


def test_one_of_sixteen_trained_rows_in_the_minority():
    text = "A" * 15 + "B" + "A" * 16
    (given,) = advantages(PerArm(EXACT, arms=("plain",)), votes(text), arms=("plain",) * 16 + ("vote",) * 16)
    assert given[:16] == pytest.approx([0.25] * 15 + [-3.75], abs=1e-4)
    assert (given[16:] == 0).all()


def test_unanimous_and_all_distinct():
    assert votes("A" * 8).tolist() == [1.0] * 8
    distinct = [str(n) for n in range(32)]
    assert entropy(distinct) == pytest.approx((3.465736, 1.0), abs=1e-5)
    np.testing.assert_allclose(Votes().rewards(distinct), 1 / 32 - 0.75, atol=1e-6)
    for rewards in (votes("A" * 8), Votes().rewards(distinct)):
        (given,) = advantages(EXACT, rewards)
        assert (given == 0).all()


@given(st.lists(st.sampled_from("ABCD"), min_size=2, max_size=32), st.floats(0, 5), st.sampled_from(["raw", "normalised"]))
def test_alpha_has_no_effect_under_a_baseline_inside_the_group(answers, alpha, form):
    for estimator in (EXACT, GRPO(scale_rewards="none"), RLOO()):
        (with_alpha,), (without,) = (advantages(estimator, Votes(alpha=a, entropy=form).rewards(answers)) for a in (alpha, 0.0))
        assert np.abs(with_alpha - without).max() < 2e-6 * (1 + alpha) / max(1e-2, float(Votes(alpha=0).rewards(answers).std()))


def test_alpha_invariance_at_the_papers_settings():
    rng = np.random.default_rng(0)
    for _ in range(200):
        answers = list(rng.choice(list("ABCD"), 32, p=rng.dirichlet(np.ones(4))))
        (with_alpha,), (without,) = (advantages(GRPO(scale_rewards="none"), Votes(alpha=a).rewards(answers)) for a in (0.75, 0.0))
        assert np.abs(with_alpha - without).max() < 1e-6


def test_batch_baseline():
    """There the sure item's minority answer is nearly neutral, and the doubtful item is pushed down."""
    first, second = "AAAAAAAB", "AABBCCDD"
    assert entropy(list(first))[0] == pytest.approx(0.376770, abs=1e-5)
    assert entropy(list(second))[0] == pytest.approx(1.386294, abs=1e-5)
    for alpha, a, b, other in ((0.0, 1.093174, -1.188233, -0.807998), (0.75, 1.070199, -0.017480, -0.934239)):
        one, two = advantages(BatchBaseline(), *(votes(text, alpha=alpha, entropy="raw") for text in (first, second)))
        assert by_letter(first, one) == pytest.approx({"A": a, "B": b}, abs=1e-5)
        assert two == pytest.approx(other, abs=1e-5)


def test_votes_are_counted_over_all():
    """The first 16 of 32 all say A, the others B: every share is a half, and the 16 trained rows are equal."""
    text = "A" * 16 + "B" * 16
    assert votes(text, alpha=0).tolist() == [0.5] * 32
    assert entropy(list(text))[0] == pytest.approx(0.693147, abs=1e-5)
    (given,) = advantages(PerArm(EXACT, arms=("plain",)), votes(text), arms=("plain",) * 16 + ("vote",) * 16)
    assert (given == 0).all()


# --- "self" -----------------------------------------------------------------------------------------------------------------------------


def test_self_entropy_is_each_answers_own_share_and_survives_the_group():
    """r2 = ln p: its mean over the completions is -H; the order is that of the shares, rare answers lie further down."""
    text = "AAAAABBC"
    given = votes(text, entropy="self")
    assert float(given.mean()) == pytest.approx((25 + 4 + 1) / 64 - 0.75 * 0.900256, abs=1e-5)
    assert by_letter(text, given) == pytest.approx(
        {c: p + 0.75 * np.log(p) for c, p in (("A", 0.625), ("B", 0.25), ("C", 0.125))}, abs=1e-6
    )
    (mine,), (plain,) = (advantages(EXACT, votes(text, entropy=form)) for form in ("self", "raw"))
    assert np.abs(mine - plain).max() > 0.05


# --- guards -----------------------------------------------------------------------------------------------------------------------------


def test_answers_that_cannot_be_read_stay_among_the_votes_and_win_nothing():
    answers = [None, None, None, "A", "A", "B", "C", "D"]
    assert Votes(alpha=0).rewards(answers).tolist() == [0, 0, 0, 0.25, 0.25, 0.125, 0.125, 0.125]
    assert winner(answers) == "A"
    own = Votes(entropy="self").rewards(answers)
    assert own[0] == pytest.approx(0.75 * np.log(1 / 8))
    assert own[0] == min(own)


def test_a_task_most_of_whose_answers_cannot_be_read_is_skipped():
    assert not np.isnan(Votes().rewards([None, None, "A", "A"])).any()
    assert np.isnan(Votes().rewards([None, None, None, "A", "A"])).all()


def test_a_task_in_too_much_doubt_is_skipped_on_request():
    assert np.isnan(votes("AABBCCDD", skip_above=0.95)).all()
    assert not np.isnan(votes("AAAAABBC", skip_above=0.95)).any()
    assert not np.isnan(votes("AABBCCDD")).any()


def test_settings_are_checked():
    for options, message in (
        ({"answers": "letters"}, "answers must be one of choice, open, text"),
        ({"entropy": "group"}, "entropy must be one of normalised, raw, self"),
        ({"alpha": -1.0}, "alpha must be finite and 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            Votes(**options)


# --- reading answers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("The answer is (c).", "C"),
        ("A or B? B", "B"),
        ("ABBA D1", None),
        ("", None),
        ("<think>A</think>d", "D"),
        ("<think>A", None),
    ],
)
def test_choice(text, answer):
    assert choice(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1/2} and the answer is 7", "1/2"), ("The answer is: Red Car.\nBye 3", "red car"), ("I count 3, no, 4 of them", "4"),
        ("it is .5", "1/2"), ("0.50", "1/2"), ("1,200", "1200"), ("nothing", None), (r"\boxed{  Blue  }", "blue"), ("half is 3/6", "1/2"),
    ],
)  # fmt: skip
def test_open_answer(text, answer):
    assert open_answer(text) == answer


def test_canonical_numbers_are_one():
    assert {canonical(text) for text in ("0.50", ".5", "1/2", " 0.5. ", "$0.5$")} == {"1/2"}
    assert canonical("1/0") == "1/0"
    assert canonical(" . ") is None
    assert whole("<think>x</think> <|up|>  <|up|> ") == "<|up|> <|up|>"
    assert whole(" ") is None


# --- what is watched --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IsB:
    per_completion: ClassVar[bool] = True

    def __call__(self, group):
        return np.array([float("B" in r.completion.text) for r in group.rollouts], np.float32)


def test_majority_and_entropy_for_watching():
    group = grouped(["B", "A", "B!", "??"])
    assert Majority()(group).tolist() == [0.5] * 4
    assert Majority(reward=IsB())(group).tolist() == [1.0] * 4
    assert Majority(reward=IsB())(grouped(["A", "A", "B"])).tolist() == [0.0] * 3
    assert np.isnan(Majority()(grouped(["??", "?"]))).all()
    assert VoteEntropy()(grouped(["A", "A"])).tolist() == [0.0, 0.0]
    assert VoteEntropy()(grouped(["A", "B"])).tolist() == [1.0, 1.0]


def test_no_label_is_needed():
    assert Votes()(grouped(["A", "A", "B"])).tolist() == votes("AAB").tolist()
