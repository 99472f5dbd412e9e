"""Components by name: what a recipe says (`{use: name, field: value}`), what the class declares, and how the one becomes the other.

A class is *read*, not imported: its source is found and parsed, so a recipe is checked in milliseconds although a loss term imports torch.
"""

import ast
import importlib
import importlib.util
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from mmrl.catalog import CATALOG
from mmrl.errors import MmrlError, RecipeError

UNREADABLE = "<set in code>"
"""Stands for a default that cannot be read without running code."""

_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "None": None}


@dataclass(frozen=True)
class Axis:
    """Marks a field that holds a component: which table of the catalog names it, and the name that stands when the recipe is silent."""

    name: str
    default: str | None = None


@dataclass(frozen=True)
class Spec:
    """A checked component that has not been built."""

    axis: str
    use: str
    """Catalog name, or "package.module:Class"."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Field name -> value, readable defaults included; a component among them is a Spec."""
    where: str = field(default="", compare=False)
    """ "recipe.yaml: losses.0", for messages."""

    @property
    def target(self) -> str:
        """ "package.module:Class"."""
        return target_of(self.axis, self.use)

    def build(self) -> Any:
        """Import the class and construct it, nested components first. Raises RecipeError where the class refuses its values."""
        module, _, name = self.target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        values = {key: _built(value) for key, value in self.fields.items()}
        try:
            return cls(**values)
        except (ValueError, MmrlError) as error:
            raise RecipeError(f"{self.where}: {error}") from error


def _built(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.build()
    return tuple(_built(item) for item in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Declared:
    """One field of a component's class."""

    name: str
    type: Any
    """What typing makes of the annotation; a component is `Annotated[Spec, Axis(…)]`. UNREADABLE if a recipe cannot say it."""
    annotation: str
    required: bool
    default: Any
    """UNREADABLE if it takes code to know."""
    doc: str


@dataclass(frozen=True)
class Declaration:
    """What a component's class says about itself."""

    target: str
    doc: str
    fields: Mapping[str, Declared]
    constants: Mapping[str, Any]
    """Class variables with a literal value, e.g. min_generations."""


def suggest(name: object, known: typing.Iterable[str]) -> str:
    """ "; did you mean 'x'?" or, where nothing is close, "; known: a, b"."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def target_of(axis: str, use: str) -> str:
    """Catalog name or "package.module:Class" -> "package.module:Class". ValueError for an unknown name."""
    if ":" in use:
        return use
    names = CATALOG[axis]
    if use not in names:
        raise ValueError(f"no {axis.replace('_', ' ')} is called {use!r}{suggest(use, names)} (your own: 'package.module:Class')")
    return names[use]


@cache
def declaration(target: str) -> Declaration:
    """Read the class behind "package.module:Class" from its source. ValueError says what is missing."""
    module, _, name = target.partition(":")
    return _Source.of(module).declaration(name)


def source_path(module: str) -> Path:
    """File of a module, found without importing any part of it. ValueError if there is none."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None:
        raise ValueError(f"no Python package {top!r} is installed or in the current folder")
    if not rest:
        candidates = [Path(spec.origin)] if spec.origin else []
    else:
        bases = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
        candidates = [path for base in bases for path in (base.with_name(base.name + ".py"), base / "__init__.py")]
    for path in candidates:
        if path.is_file():
            return path
    raise ValueError(f"no Python module {module!r}; looked for {', '.join(map(str, candidates)) or 'a package folder'}")


class _Source:
    """One parsed module: its classes, its constants and where its imported names come from."""

    def __init__(self, module: str, path: Path) -> None:
        self.module, self.path = module, path
        self.classes: dict[str, ast.ClassDef] = {}
        self.constants: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        except SyntaxError as error:
            raise ValueError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
        for node in _top_level(tree.body):
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})

    @staticmethod
    @cache
    def of(module: str) -> "_Source":
        return _Source(module, source_path(module))

    def declaration(self, name: str) -> Declaration:
        if name not in self.classes:
            raise ValueError(f"no class {name!r} in {self.path}{suggest(name, self.classes)}")
        node = self.classes[name]
        if not _is_dataclass(node):
            raise ValueError(f"{name} in {self.path} is not a dataclass; a component's fields are what a recipe may set")
        fields: dict[str, Declared] = {}
        constants: dict[str, Any] = {}
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in self.classes and _is_dataclass(self.classes[base.id]):
                inherited = self.declaration(base.id)
                fields |= inherited.fields
                constants |= inherited.constants
        for index, item in enumerate(node.body):
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if _head(item.annotation) == "ClassVar":
                constants[item.target.id] = self.literal(item.value)
            elif (declared := self._field(item, _docstring_at(node.body, index + 1))) is not None:
                fields[declared.name] = declared
        return Declaration(f"{self.module}:{name}", ast.get_docstring(node) or "", fields, constants)

    def _field(self, item: ast.AnnAssign, doc: str) -> Declared | None:
        """None for a field that the constructor does not take."""
        default = item.value
        if isinstance(default, ast.Call) and _head(default.func) == "field":
            options = {keyword.arg: keyword.value for keyword in default.keywords}
            if "init" in options and self.literal(options["init"]) is False:
                return None
            default = options.get("default", options.get("default_factory"))
            value = self.literal(default) if "default" in options else UNREADABLE
        else:
            value = self.literal(default)
        assert isinstance(item.target, ast.Name)
        annotation = ast.unparse(item.annotation)
        return Declared(item.target.id, self.type(item.annotation), annotation, default is None, value, doc)

    def literal(self, node: ast.expr | None) -> Any:
        """Value of an expression of literals and of this module's (or an imported) constants; UNREADABLE for anything else."""
        if isinstance(node, ast.Name):
            return self._follow(node.id, lambda source, found: source.literal(found), UNREADABLE)
        if node is None:
            return UNREADABLE
        try:
            return ast.literal_eval(node)
        except ValueError:
            return UNREADABLE

    def _follow(self, name: str, read: typing.Callable[["_Source", ast.expr], Any], otherwise: Any) -> Any:
        if name in self.constants:
            return read(self, self.constants[name])
        if name in self.imported:
            module, original = self.imported[name]
            try:
                source = _Source.of(module)
            except ValueError:  # a compiled or builtin module: nothing to read there
                return otherwise
            return source._follow(original, read, otherwise)
        return otherwise

    def type(self, node: ast.expr) -> Any:
        """The annotation as a typing object that a recipe value can be checked against, or UNREADABLE."""
        match node:
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=str(text)):
                return self.type(ast.parse(text, mode="eval").body)
            case ast.Name(id=name) if name in _PLAIN:
                return _PLAIN[name]
            case ast.Name() | ast.Attribute() if (axis := axis_of(_head(node))) is not None:
                return Annotated[Spec, Axis(axis)]
            case ast.Name(id=name):
                return self._follow(name, lambda source, found: source.type(found), UNREADABLE)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return _union(self.type(left), self.type(right))
            case ast.Subscript(value=head, slice=inner):
                return self._generic(_head(head), inner.elts if isinstance(inner, ast.Tuple) else [inner])
        return UNREADABLE

    def _generic(self, head: str, arguments: list[ast.expr]) -> Any:
        if head == "Literal":
            values = tuple(self.literal(argument) for argument in arguments)
            return UNREADABLE if UNREADABLE in values else Literal[values]
        if head == "Annotated":
            return self.type(arguments[0])
        types = [... if isinstance(a, ast.Constant) and a.value is ... else self.type(a) for a in arguments]
        if UNREADABLE in types:
            return UNREADABLE
        match head:
            case "tuple" | "Tuple":
                return tuple[*types]
            case "list" | "List" | "Sequence":
                return list[types[0]]
            case "dict" | "Dict" | "Mapping":
                return dict[types[0], types[1]]
            case "Optional":
                return _union(types[0], None)
            case "Union":
                return typing.Union[tuple(types)]  # noqa: UP007 - the members are only known now
        return UNREADABLE


def axis_of(protocol: str) -> str | None:
    """ "LossTerm" -> "loss_term", if the catalog has that axis."""
    name = "".join("_" + letter.lower() if letter.isupper() else letter for letter in protocol).lstrip("_")
    return name if name in CATALOG else None


def _union(left: Any, right: Any) -> Any:
    return UNREADABLE if UNREADABLE in (left, right) else typing.Union[left, right]  # noqa: UP007 - Annotated | None is not defined


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:` is where a component's imports often are
            yield from _top_level(node.body)
        else:
            yield node


def _head(node: ast.expr) -> str:
    """Last name of `a.b.C[...]` or `C(...)`: "C"."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=inner) | ast.Call(func=inner):
            return _head(inner)
    return ""


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_head(decorator) == "dataclass" for decorator in node.decorator_list)


def _docstring_at(body: list[ast.stmt], index: int) -> str:
    node = body[index] if index < len(body) else None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
