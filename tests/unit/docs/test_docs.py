"""What the documentation shows is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import mmrl.recipe as recipe_module
from mmrl.component import declaration
from mmrl.recipe import load_recipe

ROOT = Path(__file__).parents[3]


def test_the_reference_of_recipes_says_what_the_code_says():
    command = [sys.executable, "scripts/recipe_docs.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_every_key_of_a_recipe_is_explained():
    sections = [name for name in vars(recipe_module) if name.endswith(("Section", "Entry"))]
    assert len(sections) >= 10
    for name in [*sections, "Recipe"]:
        for field in declaration(f"mmrl.recipe:{name}").fields.values():
            section = field.annotation.endswith("Section")
            assert field.doc or section, f"{name}.{field.name} has no docstring"


def test_the_example_method_checks_and_builds(tmp_path, monkeypatch):
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", (ROOT / "docs" / "writing-a-method.md").read_text(), re.DOTALL))
    (tmp_path / "my_method.py").write_text(blocks["python"])
    (tmp_path / "my_method.yaml").write_text(blocks["yaml"])
    monkeypatch.syspath_prepend(tmp_path)
    recipe = load_recipe(tmp_path / "my_method.yaml")
    assert repr(recipe.rewards[1].component.build()) == "Brevity(power=0.5)"
    assert repr(recipe.losses[0].component.build()) == "Reinforce()"
