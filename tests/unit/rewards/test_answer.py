import time

import pytest

from rewards.answer import after_think, answer_tag, boxed, leading_moves, parse_moves


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think> 7 ", "7"),
        ("a prefilled thought</think>\n7", "7"),  # the <think> stood in the prompt
        ("7", "7"),  # no tags: all answer
        ("<think>a</think>5<think>b</think>7", "7"),  # the last one
        ("<think>7", None),  # cut off while thinking
        ("<think>a</think>5<think>7", None),  # thinking again
        ("<think>hm</think>", ""),
    ],
)
def test_after_think(text, expected):
    assert after_think(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 7 </answer>", "7"),
        ("<answer>5</answer> no: <answer>7</answer>.", "7"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>5<answer>7</answer>", "7"),
        ("<answer>5</answer> <answer>7", "5"),  # the last complete one
        ("<answer></answer>", ""),
        ("<think><answer>5</answer></think> 7", None),  # said only in the thought
        ("<answer>7", None),
        ("7", None),
        ("<think><answer>7</answer>", None),
    ],
)
def test_answer_tag(text, expected):
    assert answer_tag(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{\frac{1}{2}} units", r"\frac{1}{2}"),
        (r"\boxed{5}, no, \boxed {7}", "7"),
        (r"\boxed{5} and \boxed{7", "5"),  # the last complete one
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces are text
        (r"\boxed{\}}", r"\}"),
        (r"} { \boxed{7}", "7"),  # stray braces before it
        (r"\\boxed{7}", "7"),  # written with a doubled backslash
        (r"\boxed{7", None),
        (r"\boxed 7", None),
        (r"<think>\boxed{5}</think> 7", None),
        (r"<think>\boxed{5}", None),
    ],
)
def test_boxed(text, expected):
    assert boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "leading", "parsed"),
    [
        ("<|up|><|left|>", ["up", "left"], ["up", "left"]),
        (" <|up|>\n<|left|> ", ["up", "left"], ["up", "left"]),
        ("<|up|> then <|left|>", ["up"], None),
        ("go <|up|>", [], None),
        ("<|UP|>", [], None),
        ("<| up |>", [], None),
        ("up", [], None),
        ("", [], None),
    ],
)
def test_moves(text, leading, parsed):
    assert leading_moves(text) == leading
    assert parse_moves(text) == parsed


@pytest.mark.parametrize("piece", ["<answer>", r"\boxed{", "{", "\\", "<|up|>", " ", "<think>", "</think>"])
def test_time_is_linear(piece):
    """A policy stuck on one piece must not stall the run: 50,000 characters of it take well below a second in each function."""
    text = piece * (50_000 // len(piece))
    started = time.process_time()
    answer_tag(text), boxed(text), parse_moves(text + "x")
    assert time.process_time() - started < 1.0
