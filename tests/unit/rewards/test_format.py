import numpy as np
import pytest

from rewards.format import ActionFormat, AnswerFormat, ThinkFormat


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>t</think><|up|><|up|>", 1),
        ("<|up|> <|left|>\n", 1),
        ("<think>t</think>", 0),
        ("", 0),
        ("<|up|> then <|left|>", 0),
        ("<|up|><|jump|>", 0),
        ("<think><|up|>", 0),
    ],
)
def test_action_format(text, expected):
    assert ActionFormat().value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>t</think>7", 1),
        ("t</think>7", 0.5),
        ("<think>t", 0.5),
        ("7", 0),
        ("<think><think>t</think>7", 0.5),
        ("<think>t</think><think>t</think>7", 0),
        ("</think><think>", 1),  # the order is not looked at, as in the paper
    ],
)
def test_think_format(text, expected):
    assert ThinkFormat().value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>t</think>\n<answer>7</answer>\n", 1),
        ("<answer>7</answer>", 1),
        ("<answer> </answer>", 0),
        ("<answer>7</answer> is it", 0),
        ("it is <answer>7</answer>", 0),
        ("<answer>5</answer><answer>7</answer>", 0),
        ("<answer>7", 0),
        ("<answer>7</answer></answer>", 0),
        ("<think><answer>7</answer></think>", 0),
        ("<think><answer>7</answer>", 0),
    ],
)
def test_answer_format(text, expected):
    assert AnswerFormat().value(text) == expected


@pytest.mark.parametrize("reward", [ActionFormat(), ThinkFormat(), AnswerFormat()])
def test_group_of_float32(reward, make_group):
    values = reward(make_group(["<think>t</think><|up|>", "<think>t</think><answer>7</answer>"]))
    assert values.dtype == np.float32
    assert values.tolist() == {"ActionFormat": [1, 0], "ThinkFormat": [1, 1], "AnswerFormat": [0, 1]}[type(reward).__name__]
