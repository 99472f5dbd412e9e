"""The judge by rule, on sentences written down here; that it can read every fact of the project's own tasks is tested with those."""

import pytest

from rewards.rule_judge import RuleJudge, claims

FACTS = [
    "O is in row 1, column 2.",
    "T is in row 3, column 4.",
    "T is below and to the right of O.",
    "O has walls above and to the left.",
    "T has no walls around it.",
]


def judged(text: str, facts=FACTS) -> list[float]:
    (verdict,) = RuleJudge()(facts, [text])
    assert verdict.kind == ""
    return list(verdict.scores)


def test_a_text_that_says_all_and_one_that_says_nothing():
    assert judged(" ".join(FACTS)) == [1] * 5
    assert judged(f"<think>\n{' '.join(reversed(FACTS))}\n</think><|down|><|right|>") == [1] * 5
    assert judged("") == judged("<think></think><|down|><|right|>") == [0] * 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("O is at row 1, column 2 and T at row 3, column 4.", [1, 1, 0, 0, 0]),
        ("O (green): row 1, col 2; T (red): row 3, col 4", [1, 1, 0, 0, 0]),
        ("The target T lies in column 4, row 3.", [0, 1, 0, 0, 0]),
        ("O is in row 1.", [0, 0, 0, 0, 0]),  # half of the fact
        ("O is in row 1. O is in column 2.", [1, 0, 0, 0, 0]),
        ("O is in row 2, column 1.", [0, 0, 0, 0, 0]),
        ("O is in row 11, column 2.", [0, 0, 0, 0, 0]),
        ("O is above and to the left of T.", [0, 0, 1, 0, 0]),  # the same, seen from T
        ("T is to the right of O. T lies below O.", [0, 0, 1, 0, 0]),
        ("T is below O.", [0, 0, 0, 0, 0]),
        ("T is below O, in the same column.", [0, 0, 0, 0, 0]),
        ("From O one can go down and right.", [0, 0, 0, 1, 0]),  # as much as its walls
        ("O has walls on the top and left sides.", [0, 0, 0, 1, 0]),
        ("O has a wall above.", [0, 0, 0, 0, 0]),
        ("T is open up, down, left and right.", [0, 0, 0, 0, 1]),
        ("O is not in row 1, column 2.", [0, 0, 0, 0, 0]),
        ("Is O in row 1, column 2?", [0, 0, 0, 0, 0]),
        ("O is in row 1, column 2 or so.", [0, 0, 0, 0, 0]),
        ("<think>\nO is in row 1, column 2\nT is in row 3, column 4\n</think>", [1, 1, 0, 0, 0]),
    ],
)
def test_mazes(text, expected):
    assert judged(text) == expected


def test_a_laundry_list_states_nothing():
    """Every row and column is named, the right ones among them."""
    everything = " ".join(f"O is in row {row}, column {column}." for row in range(1, 6) for column in range(1, 6))
    assert judged(everything)[0] == 0
    assert judged("O is in row 1, column 2. " * 3)[0] == 1  # saying it again is no contradiction


CLIP = [
    "A red circle appears in the video.",
    "The red circle is first seen at the top left.",
    "The blue square is first seen at the middle.",
    "The red circle is there in the first frame.",
    "The blue square appears after the first frame.",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ".join(CLIP), [1, 1, 1, 1, 1]),
        ("There is a red circle.", [1, 0, 0, 0, 0]),
        ("The red circle is at the upper left.", [1, 1, 0, 0, 0]),
        ("The blue square starts in the centre.", [0, 0, 1, 0, 0]),
        ("The red circle is at the top left. The red circle is at the bottom left.", [1, 0, 0, 0, 0]),
        ("A red circle and a red square.", [0, 0, 0, 0, 0]),  # one colour, two shapes: at most one is true
        ("I see no red circle? A green circle.", [0, 0, 0, 0, 0]),
    ],
)
def test_clips(text, expected):
    assert judged(text, CLIP) == expected


def test_other_facts_count_where_their_words_stand():
    facts = ["Side AB is 6 long.", "The bar is blue"]
    assert judged("We see: side AB is 6 long, so", facts) == [1, 0]
    assert judged("THE BAR IS BLUE!", facts) == [0, 1]
    assert judged("the bar is bluest", facts) == [0, 0]


def test_what_a_sentence_claims():
    assert claims("T is below O, in the same column.") == {(("t from o", "vertical"), "far"), (("t from o", "horizontal"), "same")}
    assert claims("Go down, then left.") == frozenset()


def test_verdicts_repeat_and_are_in_order():
    texts = [FACTS[0], "", " ".join(FACTS)]
    assert RuleJudge()(FACTS, texts) == RuleJudge()(FACTS, texts)
    assert [sum(verdict.scores) for verdict in RuleJudge()(FACTS, texts)] == [1, 0, 5]
    with pytest.raises(ValueError, match="at least one fact"):
        RuleJudge()([], texts)


def test_long_texts_take_no_time():
    for text in ("o is in the a " * 5000, "t is above " * 5000, "o " * 20_000, "<" * 20_000, "o has walls up and " + "up and " * 5000):
        judged(text)
