"""Writes the reference part of docs/recipes.md from the code: `python scripts/recipe_docs.py` (`--check` only compares)."""

import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mmrl import recipe
from mmrl.catalog import CATALOG
from mmrl.check import axis_mark
from mmrl.component import UNREADABLE, Declaration, Spec, declaration

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
START, END = "<!-- reference: written by scripts/recipe_docs.py -->", "<!-- end of reference -->"
TYPES = {
    "PositiveInt": "int ≥ 1", "Count": "int ≥ 0", "Positive": "float > 0", "NonNegative": "float ≥ 0", "Finite": "float",
    "Share": "float in [0, 1]", "Decay": "float in [0, 1)", "Nucleus": "float in (0, 1]", "Text": "str",
}  # fmt: skip


def reference() -> str:
    hints = get_type_hints(recipe.Recipe, include_extras=True)
    lines = ["## Sections", ""]
    for item in fields(recipe.Recipe):
        parts = _sections(hints[item.name])
        top = declaration("mmrl.recipe:Recipe").fields[item.name]
        if axis_mark(hints[item.name]) is not None:
            default = _default(hints[item.name], item)
            lines += [f"### `{item.name}`", "", f"{top.doc} Default: {default}." if default else top.doc, ""]
        for axis in _listed(hints[item.name]):
            lines += [f"### `{item.name}`", "", f"{top.doc} Each is a component of the axis {axis}.", ""]
        for part in parts:
            lines += _section(item.name + ("[]" if part is not hints[item.name] else ""), part, top.doc)
    lines += ["## Components", ""]
    for axis, names in CATALOG.items():
        if names:
            lines += [f"### {axis}", "", "| `use` | what it is | fields |", "|---|---|---|"]
            lines += [f"| `{name}` | {_summary(declaration(target))} | {_fields(declaration(target))} |" for name, target in names.items()]
            lines.append("")
    return "\n".join(lines)


def _sections(hint: Any) -> list[Any]:
    """The section classes in an annotation."""
    return [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part) and part is not Spec]


def _listed(hint: Any) -> list[str]:
    """The axis of the components in a list or a mapping of them, if it is one."""
    marks = [axis_mark(part) for part in get_args(hint)] if get_origin(hint) in (tuple, dict) else []
    return [mark.name for mark in marks if mark is not None]


def _section(title: str, cls: type, doc: str) -> list[str]:
    hints, declared = get_type_hints(cls, include_extras=True), declaration(f"mmrl.recipe:{cls.__name__}").fields
    intro = " ".join(((cls.__doc__ or "") + " " + doc).split())
    rows = [f"### `{title}`", "", intro, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for item in fields(cls):
        hint = hints[item.name]
        nested = _sections(hint)
        key = "`use`, …" if item.name == "component" else f"`{item.name}`"
        type_text = _type(declared[item.name].annotation)
        rows.append(f"| {key} | {type_text} | {_default(hint, item)} | {_cell(declared[item.name].doc)} |")
        for part in nested:
            below += _section(f"{title}.{item.name}", part, "")
    return [*rows, "", *below]


def _type(annotation: str) -> str:
    text = re.sub(r"Annotated\[Spec, Axis\('(\w+)'(?:, '\w+')?\)\]", r"\1", annotation)
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", '"').replace(", ", " | "), text)
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", text).replace("None", "null")
    text = re.sub(r"(\w+)Section", "section", text)
    for name, meaning in TYPES.items():
        text = re.sub(rf"\b{name}\b", meaning, text)
    return _cell(text)


def _default(hint: Any, item: Any) -> str:
    axis = axis_mark(hint)
    if axis is not None and axis.default is not None:
        return f"`{{use: {axis.default}}}`"
    if item.default is MISSING:
        return "" if axis is not None and item.name == "success" else "required" if item.default_factory is MISSING else ""
    return {"": "see there", "()": "`[]`", "None": "`null`"}.get(str(item.default), f"`{_yaml(item.default)}`")


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def _summary(declared: Declaration) -> str:
    """First sentence of the docstring."""
    text = " ".join(declared.doc.split("\n\n")[0].split())
    return _cell(re.split(r"(?<!\beq)(?<!\beqs)(?<=\S)\.\s", text + " ")[0].rstrip(" .") + ".")


def _fields(declared: Declaration) -> str:
    shown = []
    for item in declared.fields.values():
        default = "" if item.required else f" = {_short(item.default)}" if item.default is not UNREADABLE else " = …"
        shown.append(f"`{item.name}: {_words(item.type)}{default}`")
    return ", ".join(shown).replace("|", "\\|") or "none"


def _words(hint: Any) -> str:
    """A component's field type as a recipe would put it."""
    if (axis := axis_mark(hint)) is not None:
        return axis.name
    if hint is None or hint is type(None):
        return "null"
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(repr(word) for word in arguments)
    if get_origin(hint) in (tuple, list):
        return f"list of {_words(arguments[0])}"
    if get_origin(hint) is dict:
        return f"mapping to {_words(arguments[1])}"
    return " | ".join(map(_words, arguments)) if arguments else hint.__name__


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 40 else text[:37] + "…'"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    wanted = f"{before}{START}\n\n{reference()}\n{END}{after}"
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != page:
        sys.exit(f"{PAGE} does not say what the code says; run: python scripts/recipe_docs.py")


if __name__ == "__main__":
    main()
