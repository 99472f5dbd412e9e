"""From a plain tree to frozen dataclasses, with every problem found on the way, not only the first."""

import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union

from pydantic import TypeAdapter, ValidationError

from mmrl.catalog import CATALOG
from mmrl.component import UNREADABLE, Axis, Declared, Spec, declaration, suggest, target_of

BAD = object()
"""Stands where a value was wrong; no dataclass is made with it."""


class Checker:
    """Collects problems as (dotted path, message) while it converts."""

    def __init__(self, where: Callable[[str], str]) -> None:
        """`where`: dotted path -> "file: dotted.path"."""
        self.where = where
        self.problems: list[tuple[str, str]] = []

    def problem(self, path: str, message: str) -> Any:
        self.problems.append((path, message))
        return BAD

    def lines(self) -> list[str]:
        return [f"{self.where(path)}: {message}" for path, message in self.problems]

    def section(self, cls: type, value: Any, path: str) -> Any:
        """A dataclass of the recipe from a mapping; BAD if anything in it is wrong."""
        hints = _hints(cls)
        if not isinstance(value, Mapping):
            return self.problem(path, f"got {_shown(value)}; expected a mapping with the keys {', '.join(hints)}")
        values: dict[str, Any] = {}
        for item in fields(cls):
            where = f"{path}.{item.name}" if path else item.name
            if item.name in value:
                values[item.name] = self.value(hints[item.name], value[item.name], where)
            elif item.default is MISSING and item.default_factory is MISSING:
                values[item.name] = self._missing(hints[item.name], where)
        for key in [key for key in value if key not in hints]:
            values[key] = self.problem(f"{path}.{key}" if path else key, f"no such key{suggest(key, hints)}")
        return BAD if _any_bad(values.values()) else cls(**values)

    def _missing(self, hint: Any, path: str) -> Any:
        if is_dataclass(hint):
            return self.section(typing.cast(type, hint), {}, path)
        axis = axis_mark(hint)
        if axis is not None and axis.default is not None:
            return self.component(axis, {}, path)
        return self.problem(path, "missing, and it has no default")

    def entry(self, cls: type, value: Any, path: str) -> Any:
        """A flat item of a list: the entry's own keys (weight, name) and its component's side by side."""
        if not isinstance(value, Mapping):
            return self.problem(path, f"got {_shown(value)}; a component is written {{use: name, field: value}}")
        hints = _hints(cls)
        axis = axis_mark(hints["component"])
        assert axis is not None
        beside = [key for key in hints if key != "component"]
        own = {key: item for key, item in value.items() if key in beside}
        component = self.component(axis, {key: item for key, item in value.items() if key not in own}, path, beside)
        values = {key: self.value(hints[key], item, f"{path}.{key}") for key, item in own.items()}
        if component is BAD or _any_bad(values.values()):
            return BAD
        return cls(**{"name": component.use.rpartition(":")[2], **values, "component": component})

    def value(self, hint: Any, value: Any, path: str) -> Any:
        """What an annotation makes of a value."""
        members = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and type(None) in members:
            return None
        plain = []
        for member in members:
            if (axis := axis_mark(member)) is not None:
                if isinstance(value, Mapping) or len(members) == 1 + (type(None) in members):
                    return self.component(axis, value, path)
            elif is_dataclass(member):
                return self.section(typing.cast(type, member), value, path)
            elif typing.get_origin(member) in (tuple, list) and _holds_components(typing.get_args(member)[0]):
                return self._items(typing.get_args(member)[0], value, path)
            elif typing.get_origin(member) is dict and (axis := axis_mark(typing.get_args(member)[1])) is not None:
                return self._named(axis, value, path)
            else:
                plain.append(member)
        return self._leaf(Union[tuple(plain)], value, path)  # noqa: UP007 - the members are only known now

    def _items(self, hint: Any, value: Any, path: str) -> Any:
        if not isinstance(value, list):
            return self.problem(path, f"got {_shown(value)}; expected a list of {{use: name, field: value}}")
        if is_dataclass(hint) and not value:
            return self.problem(path, "got an empty list; at least one {use: name, field: value} is needed")
        read = self.entry if is_dataclass(hint) else self.value
        items = tuple(read(typing.cast(type, hint), item, f"{path}.{index}") for index, item in enumerate(value))
        return BAD if _any_bad(items) else items

    def _named(self, axis: Axis, value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self.problem(path, f"got {_shown(value)}; expected a mapping name: {{use: name, field: value}}")
        named = {name: self.component(axis, item, f"{path}.{name}") for name, item in value.items()}
        return BAD if _any_bad(named.values()) else named

    def component(self, axis: Axis, value: Any, path: str, beside: Sequence[str] = ()) -> Any:
        """A Spec from `{use: name, field: value}`; `beside` names the keys that may stand next to its fields."""
        if not isinstance(value, Mapping):
            return self.problem(path, f"got {_shown(value)}; a component is written {{use: name, field: value}}")
        use = value.get("use", axis.default)
        if not isinstance(use, str):
            came = "missing" if use is None else f"got {_shown(use)}, not a name"
            return self.problem(f"{path}.use", came + suggest("", CATALOG[axis.name]))
        try:
            declared = declaration(target_of(axis.name, use)).fields
        except ValueError as error:
            return self.problem(f"{path}.use", str(error))
        values: dict[str, Any] = {}
        for name, item in declared.items():
            if name in value:
                values[name] = self._declared(item, value[name], use, f"{path}.{name}")
            elif item.required:
                values[name] = self.problem(f"{path}.{name}", f"missing; {use} needs {name}: {item.annotation}")
            elif item.default is not UNREADABLE and item.type is not UNREADABLE:
                values[name] = item.default
        for key in [key for key in value if key not in declared and key != "use"]:
            values[key] = self.problem(f"{path}.{key}", f"{use} has no such field{suggest(key, [*declared, *beside])}")
        return BAD if _any_bad(values.values()) else Spec(axis.name, use, values, self.where(path))

    def _declared(self, item: Declared, value: Any, use: str, path: str) -> Any:
        if item.type is UNREADABLE:
            return self.problem(path, f"{use} declares it as {item.annotation}, which a recipe cannot write")
        return self.value(item.type, value, path)

    def _leaf(self, hint: Any, value: Any, path: str) -> Any:
        """A number, a word, a list of them. Strict: "3" is no number and true is no 1, but 3 is a float."""
        try:
            return _adapter(hint).validate_json(json.dumps(value), strict=True)  # from JSON a list may become a tuple even so
        except ValidationError as error:
            found = error.errors()
        inside = "".join(f".{part}" for part in found[0]["loc"] if isinstance(part, int))
        expected = " or ".join(dict.fromkeys(item["msg"].replace("Input should", "should", 1) for item in found))
        near = suggest(value, _words(hint))
        return self.problem(f"{path}{inside}", f"got {_shown(found[0]['input'])}, {expected}{near if 'did you mean' in near else ''}")


def axis_mark(hint: Any) -> Axis | None:
    """The Axis of `Annotated[Spec, Axis(…)]`; None for any other annotation."""
    marks = hint.__metadata__ if typing.get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Axis)), None)


def _holds_components(hint: Any) -> bool:
    return axis_mark(hint) is not None or is_dataclass(hint)


def _words(hint: Any) -> list[str]:
    """The strings of the Literals in an annotation."""
    if typing.get_origin(hint) is Literal:
        return [word for word in typing.get_args(hint) if isinstance(word, str)]
    return [word for member in typing.get_args(hint) for word in _words(member)]


def _any_bad(values: typing.Iterable[Any]) -> bool:
    return any(value is BAD for value in values)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
