"""Every line of the catalog leads to a class, and every axis is a protocol."""

import ast
from pathlib import Path

import pytest

import mmrl.protocols
from mmrl.catalog import CATALOG
from mmrl.component import UNREADABLE, axis_of, declaration

LINES = [(axis, name, target) for axis, names in CATALOG.items() for name, target in names.items()]


@pytest.mark.parametrize(("axis", "name", "target"), LINES, ids=[f"{axis}-{name}" for axis, name, _ in LINES])
def test_a_line_names_a_dataclass_that_a_recipe_can_fill(axis, name, target):
    declared = declaration(target)
    assert declared.doc, f"{target} has no docstring"
    for field in declared.fields.values():
        assert field.type is not UNREADABLE, f"{target}.{field.name}: {field.annotation} cannot be written in a recipe"
        assert field.name not in ("use", "weight", "name"), f"{target}.{field.name}: that key of a recipe means something else"


def test_every_axis_is_a_protocol():
    tree = ast.parse(Path(mmrl.protocols.__file__).read_text())
    protocols = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)}
    assert {axis_of(name) for name in protocols} == set(CATALOG)


def test_rewards_say_whether_they_score_one_completion_at_a_time():
    for target in CATALOG["reward"].values():
        assert isinstance(declaration(target).constants.get("per_completion"), bool), target
