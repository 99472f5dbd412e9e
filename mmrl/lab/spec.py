"""What the lab's options say: lists of values, components written in one line, and rewards from wherever they stand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from mmrl.check import Checker
from mmrl.component import Axis, Spec
from mmrl.errors import RecipeError
from mmrl.loop.score import WeightedReward
from mmrl.recipe import RewardEntry
from mmrl.recipe_file import parse, read_tree

SAME = "same"
"""In the place of a reward: the run's own."""
_CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Rewarding:
    """How a recipe makes advantages: the sections that a replay needs, whatever else the recipe says."""

    rewards: tuple[RewardEntry, ...]
    advantage: Annotated[Spec, Axis("advantage_estimator", "grpo")] = field(default_factory=lambda: Spec("advantage_estimator", "grpo"))

    def weighted(self) -> list[WeightedReward]:
        return [WeightedReward(entry.component.build(), entry.weight, entry.name) for entry in self.rewards]


def split_values(text: str) -> list[str]:
    """ "0.2,[1, 2],'a,b'" -> ["0.2", "[1, 2]", "'a,b'"]: at commas that no bracket and no quote holds."""
    pieces, waiting, quote = [""], "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _CLOSING:
            waiting = _CLOSING[letter] + waiting
        elif waiting.startswith(letter):
            waiting = waiting[1:]
        elif letter == "," and not waiting:
            pieces.append("")
            continue
        pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def read_value(text: str, origin: str) -> Any:
    """The YAML value of a text; RecipeError, beginning with `origin`, where it is none."""
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: {text!r} is not YAML: {' '.join(str(error).split())}") from error


def read_component(text: str, origin: str) -> dict[str, Any]:
    """ "use=grpo,scale_rewards=none" -> {"use": "grpo", "scale_rewards": "none"}."""
    fields = {}
    for piece in split_values(text):
        key, equals, value = piece.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"{origin}: {piece!r} is no field=value; a component is written use=name,field=value")
        fields[key.strip()] = read_value(value, origin)
    return fields


def read_rewards(text: str, *, conversational: bool = True) -> Rewarding:
    """The rewards that an option names, checked as those of a recipe are.

    A recipe's file (its `rewards`); a list as a recipe writes it, "[{use: a}, {use: b, weight: 0.1}]"; one component, "use=a,field=value";
    or "module:function", a reward function written for TRL, called with lists of messages or, unless `conversational`, with texts.
    """
    origin = f"--rewards {text}"
    if text.endswith((".yaml", ".yml")):
        tree = read_tree(Path(text), (), {})
        if "rewards" not in tree.data:
            raise RecipeError(f"{text}: has no rewards")
        return checked({"rewards": tree.data["rewards"]}, Checker(tree.where))
    if text.startswith("["):
        entries = read_value(text, origin)
    elif "=" in text:
        entries = [read_component(text, origin)]
    elif ":" in text:
        entries = [{"use": "trl", "function": text, "name": text.rpartition(":")[2], "conversational": conversational}]
    else:
        raise RecipeError(
            f"{origin}: give a recipe's .yaml, use=name,field=value, a list [{{use: a}}, {{use: b}}], a function for TRL as "
            f"module:function, or {SAME}"
        )
    return checked({"rewards": entries}, Checker(lambda dotted: f"{origin}: {dotted}"))


def read_advantage(text: str) -> Spec:
    """ "use=rloo" -> the checked component."""
    origin = f"--advantage {text}"
    checker = Checker(lambda dotted: f"{origin}: {dotted}")
    spec = checker.component(Axis("advantage_estimator"), read_component(text, origin), "advantage")
    if checker.problems:
        raise RecipeError("\n".join(checker.lines()))
    return spec


def checked(data: dict[str, Any], checker: Checker) -> Rewarding:
    """RecipeError lists every problem, a line each."""
    found = checker.section(Rewarding, data, "")
    if isinstance(found, Rewarding):
        names = [entry.name for entry in found.rewards]
        for index, name in enumerate(names):
            if name in names[:index]:
                checker.problem(f"rewards.{index}.name", f"{name!r} stands twice in rewards; give one of them another name")
    if checker.problems:
        raise RecipeError("\n".join(checker.lines()))
    return found
