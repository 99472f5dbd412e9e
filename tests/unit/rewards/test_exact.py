import numpy as np
import pytest

from mmrl.types import Task
from rewards.exact import ExactMatch


def task(solution: str) -> Task:
    return Task("toy/1", (), (), solution, {})


@pytest.mark.parametrize(
    ("reward", "solution", "text", "expected"),
    [
        (ExactMatch(), "two cats", "<think>t</think><answer> two\n cats </answer>", 1),
        (ExactMatch(), "two cats", "<answer>twocats</answer>", 0),
        (ExactMatch(), "two cats", "two cats", 0),  # not in the tag
        (ExactMatch(), "Two", "<answer>two</answer>", 0),
        (ExactMatch(ignore_case=True), "Two", "<answer>tWO</answer>", 1),
        (ExactMatch(answer="boxed"), "1/2", r"\boxed{1/2}", 1),
        (ExactMatch(answer="boxed"), "0.5", r"\boxed{1/2}", 0),
        (ExactMatch(answer="text"), "7", "<think>5</think> 7", 1),
        (ExactMatch(answer="text"), "7", "17", 0),
        (ExactMatch(answer="text"), "7", "<think>7", 0),
    ],
)
def test_exact(reward, solution, text, expected):
    assert reward.value(task(solution), text) == expected


def test_empty_solution_is_an_error_not_a_gift():
    """An empty <answer></answer> must not be right because the data set has a hole."""
    with pytest.raises(ValueError, match="task toy/1: the solution is empty"):
        ExactMatch().value(task("  "), "<answer></answer>")


def test_unknown_place_names_the_known_ones():
    with pytest.raises(ValueError, match="answer must be one of answer, boxed, text; got 'tag'"):
        ExactMatch(answer="tag")  # type: ignore[arg-type]


def test_group_of_float32(make_group):
    values = ExactMatch()(make_group(["<answer>7</answer>", "<answer>8</answer>"], "7"))
    assert values.dtype == np.float32
    assert values.tolist() == [1, 0]
