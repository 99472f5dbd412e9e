"""What the lab's options accept, and what they say of anything else."""

from pathlib import Path

import pytest

from mmrl.errors import RecipeError
from mmrl.lab.spec import read_advantage, read_component, read_rewards, split_values
from rewards.maze import MazePrefix
from rewards.trl import TRLFunction

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("0.2,0.28", ["0.2", "0.28"]),
        ("group, none", ["group", "none"]),
        ("[{use: a, x: 1}],[]", ["[{use: a, x: 1}]", "[]"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("one", ["one"]),
    ],
)
def test_values_are_split_outside_brackets_and_quotes(text, pieces):
    assert split_values(text) == pieces


def test_a_component_in_one_line():
    assert read_component("use=overlong,max_completion_length=9, cache=4", "x") == {
        "use": "overlong",
        "max_completion_length": 9,
        "cache": 4,
    }


def test_a_piece_that_is_no_field_is_named():
    with pytest.raises(RecipeError, match="--rewards: 'normalise' is no field=value"):
        read_component("use=maze_prefix,normalise", "--rewards")


def test_rewards_from_one_line_a_list_a_function_and_a_recipe():
    one = read_rewards("use=maze_prefix,normalise=true,weight=2").weighted()
    assert [(item.reward, item.weight, item.name) for item in one] == [(MazePrefix(normalise=True), 2.0, "maze_prefix")]
    two = read_rewards("[{use: maze_walker}, {use: action_format, weight: 0.1, name: form}]").weighted()
    assert [(item.name, item.weight) for item in two] == [("maze_walker", 1.0), ("form", 0.1)]
    (function,) = read_rewards("my_rewards:brevity", conversational=False).weighted()
    assert (function.reward, function.name) == (TRLFunction("my_rewards:brevity", conversational=False), "brevity")
    demo = read_rewards(str(ROOT / "configs" / "methods" / "demo.yaml")).weighted()
    assert [item.name for item in demo] == ["maze_prefix", "action_format", "think_format", "maze_reaches"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use=maze_prefix,normalize=true", "rewards.0.normalize: maze_prefix has no such field; did you mean 'normalise'"),
        ("use=maze_prefx", "did you mean 'maze_prefix'"),
        ("[{use: maze_walker}, {use: maze_walker}]", "'maze_walker' stands twice"),
        ("[{use: maze_walker]", "is not YAML"),
        ("maze_walker", "give a recipe's .yaml, use=name,field=value"),
        ("no/such.yaml", "no/such.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_named(text, said):
    with pytest.raises(RecipeError, match=said):
        read_rewards(text)


def test_an_advantage_in_one_line():
    assert read_advantage("use=grpo,scale_rewards=none").build().scale_rewards == "none"
    with pytest.raises(RecipeError, match="scale_rewards"):
        read_advantage("use=grpo,scale_rewards=nothing")
