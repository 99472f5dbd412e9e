import math

import numpy as np
import pytest

from mmrl.types import Task
from rewards.checklist import Checklist, answered

ITEMS = [
    {"question": "How many shapes?", "answer": "3", "options": ["1", "2", "3"]},
    {"question": "Where?", "answer": "top left"},
    {"question": "How long?", "answer": "12.5"},
    {"question": "Which?", "answer": "up, down", "aliases": ["up and down"]},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. 3\n2. top left\n3. 12.5\n4. up, down", [1, 1, 1, 1]),
        ("4. up and down\n2. Top  Left.\n1. 3", [1, 1, 0, 1]),  # any order; case, spaces and the full stop do not count
        ("1. 3.0\n3. 12.51", [1, 0, 1, 0]),  # within a thousandth
        ("1. 3.1\n3. 12.6", [0, 0, 0, 0]),
        ("1. 3\n1. 3", [0, 0, 0, 0]),  # twice: none
        ("1. 2\n1. 3", [0, 0, 0, 0]),
        ("1: 3\n2) top left\n3 12.5\n4.up, down", [0, 0, 0, 0]),  # other forms are none
        ("I see:\n 1. 3\nand\n2. top left\n7. x", [1, 1, 0, 0]),  # further lines do not matter
        ("<think>1. 3</think>\n2. top left", [0, 1, 0, 0]),  # the thought is no answer
        ("<think>1. 3", [0, 0, 0, 0]),
        ("1. three\n2. left", [0, 0, 0, 0]),
        ("1. 3 2. top left", [0, 0, 0, 0]),
        ("1. \n2. top left", [0, 1, 0, 0]),
        ("", [0, 0, 0, 0]),
        ("1. nan\n3. 1e1", [0, 0, 0, 0]),
    ],
)
def test_answers(text, expected):
    assert answered(ITEMS, text) == [bool(one) for one in expected]
    task = Task("t", (), (), "", {"checklist": ITEMS})
    assert Checklist().value(task, text) == sum(expected) / 4


def test_a_group_of_float32(make_group):
    values = Checklist()(make_group(["1. 3", "2. x"], meta={"checklist": ITEMS[:2]}))
    assert values.dtype == np.float32
    assert values.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("meta", [{}, {"checklist": []}, {"checklist": None}])
def test_a_task_without_items_is_not_scored(meta):
    assert math.isnan(Checklist().value(Task("t", (), (), "", meta), "1. 3"))


@pytest.mark.parametrize("item", ["3", {"question": "x"}, {"question": "x", "answer": " "}])
def test_an_item_without_an_answer_is_refused(item):
    with pytest.raises(ValueError, match=r"task t: meta\['checklist'\], item 2 must have a question and an answer"):
        Checklist().value(Task("t", (), (), "", {"checklist": [ITEMS[0], item]}), "1. 3")


def test_zero_is_only_zero():
    assert answered([{"answer": "0"}], "1. 0") == [True]
    assert answered([{"answer": "0"}], "1. 0.0001") == [False]
