"""From files and `--set` to one plain tree, with a note of who set what. Nothing here knows what the keys mean."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmrl.component import suggest
from mmrl.errors import RecipeError


@dataclass
class Tree:
    """A recipe as written: nested dicts, lists and scalars."""

    path: Path
    data: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted path -> the file or override that set it last."""

    def where(self, dotted: str) -> str:
        """ "file: dotted.path", by the file or override that set it or the nearest section around it."""
        prefix = dotted
        while prefix and prefix not in self.origins:
            prefix = prefix.rpartition(".")[0]
        return f"{self.origins.get(prefix, self.path)}: {dotted}"


def read_tree(path: Path, overrides: Sequence[str], defaults: Mapping[str, Any]) -> Tree:
    """Defaults, the recipe's base (at most one, relative to it), the recipe, overrides "a.b.0.c=value": each laid over the one before."""
    data = _read_yaml(path)
    base = data.pop("base", None)
    tree = Tree(path, copy.deepcopy(dict(defaults)))
    if base is not None:
        if not isinstance(base, str):
            raise RecipeError(f"{path}: base: got {base!r}; give the path of one recipe, relative to this file")
        base_path = path.parent / base
        base_data = _read_yaml(base_path, named_by=f"{path}: base")
        if "base" in base_data:
            raise RecipeError(f"{path}: base: {base_path} has a base itself; a base must stand alone")
        _lay_over(tree, tree.data, base_data, "", str(base_path))
    _lay_over(tree, tree.data, data, "", str(path))
    for override in overrides:
        _override(tree, override)
    return tree


def _lay_over(tree: Tree, under: dict[str, Any], over: dict[str, Any], prefix: str, origin: str) -> None:
    """Sections merge key by key; lists and scalars are replaced, and so is a component when another one is named."""
    for key, value in over.items():
        dotted = f"{prefix}{key}"
        tree.origins[dotted] = origin
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and value.get("use", below.get("use")) == below.get("use"):
            _lay_over(tree, below, value, f"{dotted}.", origin)
        else:
            under[key] = value
            for stale in [known for known in tree.origins if known.startswith(f"{dotted}.")]:
                del tree.origins[stale]


def _override(tree: Tree, override: str) -> None:
    dotted, equals, text = override.partition("=")
    origin = f"--set {override}"
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{origin}: expected key.path=value, for example optim.learning_rate=1e-5")
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: the value is not YAML: {_one_line(error)}") from error
    node: Any = tree.data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[_step(node, key, ".".join(keys[:depth]), origin)]
    last = _step(node, keys[-1], ".".join(keys[:-1]), origin)
    if last == "use" and node.get("use") != value:
        for old in set(node) - {"weight", "name"}:  # another component: the old one's fields go, its place in the sum stays
            del node[old]
    node[last] = value
    tree.origins[".".join(keys)] = origin


def _step(node: Any, key: str, parent: str, origin: str) -> str | int:
    """The key as this node understands it."""
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise RecipeError(f"{origin}: {parent} is {node!r}, which has no keys")
    if not key.isdecimal() or int(key) >= len(node):
        raise RecipeError(f"{origin}: {parent} is a list of {len(node)}; use an index 0 to {len(node) - 1}, or set {parent} as a whole")
    return int(key)


def _read_yaml(path: Path, named_by: str = "") -> dict[str, Any]:
    prefix = f"{named_by}: " if named_by else ""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"{prefix}{path}: no such file{suggest(path.name, near)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{prefix}{path}: cannot be read as text: {error}") from error
    try:
        data = parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not a recipe: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections (model, tasks, …); got {type(data).__name__}")
    return data


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "").split())


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars (1e-6 is a number, `no` is a string), each key once, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"alias *{event.anchor}: write the value out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(inf|nan)$", r"\1", node.value.lower())))


def parse(text: str) -> Any:
    """What a recipe makes of a text: plain data. yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: plain data only


class _Dumper(yaml.SafeDumper):
    """Quotes a string exactly where the loader would take it for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def dump(data: Mapping[str, Any]) -> str:
    """YAML that `read_tree` reads back to the same data, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": [1]}} -> {"a.b.0": 1}; empty lists and sections stay as they are."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    inside = {key: value for name, item in items for key, value in flat(item, f"{prefix}.{name}" if prefix else str(name)).items()}
    return inside or {prefix: tree}
