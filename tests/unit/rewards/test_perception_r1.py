"""Perception-R1's numbers (arXiv:2506.07218), and that no outage of a judge costs a completion anything."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from mmrl.advantages.grpo import GRPO
from mmrl.errors import RewardError, Unscored
from mmrl.loop.score import WeightedReward, score
from mmrl.metrics import GroupNumbers, rollout_metrics
from mmrl.protocols import Verdict
from mmrl.types import GroupRewards
from rewards.exact import ExactMatch
from rewards.format import BoxedFormat
from rewards.judge import OpenAIJudge
from rewards.length import RepetitionPenalty
from rewards.perception_r1 import PerceptionR1

FACTS = ["AB is 6 long.", "C is a right angle.", "The circle is shaded."]
META = {"visual_facts": FACTS}
ALPHA, BETA, GAMMA, PENALTY = 0.1, 0.9, 0.7, 2.0


@dataclass(frozen=True)
class Written:
    """A judge whose verdicts are in the text: "...|110" states the first two facts; "|x" is an outage, "|?" malformed."""

    def __call__(self, facts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        kinds = {"x": Verdict(kind="outage", reason="HTTP 503"), "?": Verdict(kind="malformed", reason="no verdict")}
        said = [text.strip().rpartition("|")[2] for text in texts]
        return [kinds.get(one) or Verdict(tuple(map(float, one))) for one in said]


def rewards(gamma: float = GAMMA, judge=None) -> list[WeightedReward]:
    """R = alpha r_f + beta r_a + gamma r_v + r_p, as in the recipe."""
    return [
        WeightedReward(BoxedFormat(), ALPHA, "format"),
        WeightedReward(ExactMatch(answer="boxed"), BETA, "accuracy"),
        WeightedReward(PerceptionR1(judge or Written()), gamma, "perception_r1"),
        WeightedReward(RepetitionPenalty(ngram_size=20), PENALTY, "repetition"),
    ]


def completion(verdicts: str, *, right: bool = True, formed: bool = True) -> str:
    """A completion with the wanted r_f and r_a; `verdicts` stands last in its thought or text."""
    answer = "7" if right else "8"
    if formed:
        return f"<think>\nseen\n</think>\n<answer>\n\\boxed{{{answer}}}|{verdicts}\n</answer>"
    return f"\\boxed{{{answer}}} |{verdicts}"


@dataclass(frozen=True)
class InTheAnswer(Written):
    """As `Written`, whose verdicts stand before the closing tag."""

    def __call__(self, facts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        return super().__call__(facts, [text.replace("\n</answer>", "") for text in texts])


def scored(make_group, texts, gamma=GAMMA, meta=META):
    return score([make_group(texts, meta=meta)], rewards(gamma, InTheAnswer()))[0]


def advantages(values, **options) -> list[float]:
    numbers = GroupRewards(np.array(values, np.float32), np.ones(len(values), np.int64))
    return [float(row[0]) for row in GRPO(epsilon=1e-6, **options)([numbers])[0]]


def test_check_1_format_and_answer_right_and_two_of_three_facts(make_group):
    """0.1 + 0.9 + 0.7 * 2 / 3 = 1.466667."""
    out = scored(make_group, [completion("110")])
    assert out.rewards == pytest.approx([1.466667], abs=1e-5)
    assert {name: part.tolist() for name, part in out.parts.items() if name != "perception_r1"} == {
        "format": [1.0], "accuracy": [1.0], "repetition": [0.0],
    }  # fmt: skip
    assert out.parts["perception_r1"] == pytest.approx([2 / 3])


BLOCK = " ".join(f"word{n}" for n in range(20))


@pytest.mark.parametrize(
    ("size", "text", "penalty"),
    [
        (20, " ".join(["w"] * 19), 0.0),
        (20, " ".join(["w"] * 20), 0.0),
        (20, " ".join(["w"] * 22), -1.333333),  # 3 n-grams, 1 unique
        (20, f"{BLOCK} {BLOCK}", -0.095238),  # 21 n-grams, 20 unique
        (20, f"{BLOCK} {BLOCK} {BLOCK}", -1.024390),  # 41 n-grams, 20 unique
        (4, "a b c d a b c d", -0.4),
    ],
)
def test_check_2_the_repetition_penalty(make_group, size, text, penalty):
    (out,) = score([make_group([text])], [WeightedReward(RepetitionPenalty(ngram_size=size), PENALTY, "repetition")])
    assert out.rewards == pytest.approx([penalty], abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("<info1>1</info1><info3>1</info3>", 0.666667), ("<info1>1</info1><info2>x</info2><info3>7</info3>", 0.666667)],
)
def test_check_3_a_missing_verdict_counts_as_0_and_the_divisor_is_the_number_of_facts(make_group, chat_stub, answer, expected):
    chat_stub.answer = lambda body, number: (200, answer, {})
    reward = PerceptionR1(OpenAIJudge(chat_stub.base_url, "m", cache=None))
    assert reward(make_group(["x"], meta=META)) == pytest.approx([expected], abs=1e-5)


CHECK_4 = [completion("111"), completion("100"), completion("111", right=False), completion("000", right=False)]


def test_check_4_rewards_and_advantages(make_group):
    values = scored(make_group, CHECK_4).rewards
    assert values == pytest.approx([1.7, 1.233333, 0.8, 0.1], abs=1e-5)
    assert advantages(values) == pytest.approx([1.090567, 0.404367, -0.232818, -1.262117], abs=1e-5)
    without = scored(make_group, CHECK_4, gamma=0).rewards
    assert advantages(without) == pytest.approx([0.866024, 0.866024, -0.866024, -0.866024], abs=1e-5)


def test_check_5_a_group_that_is_all_right_revives(make_group):
    texts = [completion(verdicts) for verdicts in ("111", "110", "100", "000")]
    assert advantages(scored(make_group, texts, gamma=0).rewards) == [0, 0, 0, 0]
    revived = advantages(scored(make_group, texts).rewards)
    assert revived == pytest.approx([1.161891, 0.387297, -0.387297, -1.161891], abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.7, 0.9, 5.0])
def test_check_7_equal_perception_changes_no_advantage(make_group, gamma):
    texts = [completion("101", right=right, formed=formed) for right in (True, False) for formed in (True, False)]
    plain = advantages(scored(make_group, texts, gamma=0).rewards)
    assert advantages(scored(make_group, texts, gamma=gamma).rewards) == pytest.approx(plain, abs=1e-5)


def test_the_range_is_minus_2_to_1_7(make_group):
    best, worst = scored(make_group, [completion("111"), " ".join(["w"] * 2000) + " |000"]).rewards
    assert best == pytest.approx(1.7)
    assert -2 < worst < -1.9


def test_the_right_answer_stays_on_top_only_while_gamma_is_below_0_8(make_group):
    wrong_but_seen, right_but_blind = completion("111", right=False), completion("000", formed=False)
    for gamma, on_top in ((0.7, True), (0.81, False)):
        wrong, right = scored(make_group, [wrong_but_seen, right_but_blind], gamma=gamma).rewards
        assert (right > wrong) == on_top


# --- what is not scored -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta", [{}, {"visual_facts": []}, {"visual_facts": None}, {"visual_facts": ""}])
def test_a_task_without_facts_is_left_out(make_group, meta):
    out = scored(make_group, CHECK_4, meta=meta)
    assert np.isnan(out.parts["perception_r1"]).all()
    assert out.rewards == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert out.unscored == {}


@pytest.mark.parametrize(("mark", "kind", "why"), [("x", "outage", "HTTP 503"), ("?", "malformed", "no verdict")])
def test_one_completion_without_a_verdict_leaves_its_whole_group_to_the_other_rewards(make_group, caplog, mark, kind, why):
    """So the one is neither punished nor favoured; another group keeps its verdicts."""
    hit = make_group([completion("111"), completion(mark), completion("000"), completion("111", right=False)], meta=META)
    with caplog.at_level(logging.WARNING):
        out, other = score([hit, make_group(CHECK_4, meta=META)], rewards(judge=InTheAnswer()), reward_failure_limit=0)
    assert np.isnan(out.parts["perception_r1"]).all()
    assert out.rewards == pytest.approx([1.0, 1.0, 1.0, 0.1])
    assert out.unscored == {"perception_r1": (kind, f"no verdict for 1 of 4 completions; {why}")}
    assert out.tracebacks == {}
    assert other.rewards == pytest.approx([1.7, 1.233333, 0.8, 0.1], abs=1e-5)
    assert f"left 1 of 2 groups unscored, first on task toy/1: {kind}" in caplog.text
    numbers = rollout_metrics([GroupNumbers.of(group, np.zeros(4, np.float32)) for group in (out, other)])
    assert numbers[f"rewards/perception_r1/{kind}"] == 4
    assert numbers["rewards/failed"] == 0
    assert numbers["rewards/perception_r1/mean"] == pytest.approx(np.mean([1, 1 / 3, 1, 0]))  # of the group that was judged


def test_a_server_that_is_away_costs_nothing_and_one_that_refuses_stops_the_run(make_group, chat_stub):
    chat_stub.answer = lambda body, number: (502, b"", {})
    judge = OpenAIJudge(chat_stub.base_url, "m", retries=0, cache=None)
    (out,) = score([make_group(CHECK_4, meta=META)], rewards(judge=judge))
    assert out.rewards == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert out.unscored["perception_r1"][0] == "outage"
    chat_stub.answer = lambda body, number: (401, b"no such key", {})
    with pytest.raises(RewardError, match="HTTP 401 no such key"):
        score([make_group(CHECK_4, meta=META)], rewards(judge=judge))


def test_called_alone_it_raises_what_score_understands(make_group):
    with pytest.raises(Unscored, match="outage: no verdict for 2 of 2 completions; HTTP 503"):
        PerceptionR1(Written())(make_group(["|x", "|x"], meta=META))


# --- facts and forms ----------------------------------------------------------------------------------------------------------------------


def test_facts_may_stand_in_tags_as_in_the_released_data(make_group):
    tagged = "<info1>AB is 6 long.</info1>\n<info2> C is a right angle. </info2>"
    assert PerceptionR1(Written())(make_group(["|10"], meta={"visual_facts": tagged})).tolist() == [0.5]
    own = PerceptionR1(Written(), facts="seen")
    assert own(make_group(["|1"], meta={"seen": ["x"]})).tolist() == [1.0]


@pytest.mark.parametrize("given", [7, ["x", 3], [" "], "no tags", {"a": "b"}])
def test_facts_of_another_form_are_refused(make_group, given):
    with pytest.raises(ValueError, match=r"toy/1: meta\['visual_facts'\] must be a list of sentences"):
        PerceptionR1(Written())(make_group(["|1"], meta={"visual_facts": given}))


def test_hits_per_100_words(make_group):
    """Two facts in 8 words: 25."""
    reward = PerceptionR1(Written(), per="100 words")
    assert reward(make_group(["a b c d e f g |110"], meta=META)).tolist() == [25.0]


def test_a_judge_of_another_form_is_found_out(make_group):
    with pytest.raises(ValueError, match="was given 3 facts and 1 texts and must answer with a verdict for each text"):
        PerceptionR1(Written())(make_group(["|11"], meta=META))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nx\n</think>\n<answer>\n\\boxed{7}\n</answer>", 1),
        ("<think>\nx\ny\n</think>\n<answer>\nso\n\\boxed{7}.\n</answer>", 1),
        ("<think>\nx\n</think>\n<answer>\n7\n</answer>", 0),
        ("<think>x</think>\n<answer>\n\\boxed{7}\n</answer>", 0),
        ("<think>\nx\n</think><answer>\n\\boxed{7}\n</answer>", 0),
        ("<think>\nx\n</think>\n<answer>\n\\boxed{7}\n</answer> and more", 0),
        ("so <think>\nx\n</think>\n<answer>\n\\boxed{7}\n</answer>", 0),
        ("\\boxed{7}", 0),
    ],
)
def test_boxed_format(text, expected):
    assert BoxedFormat().value(text) == expected
