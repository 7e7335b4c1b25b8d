"""The names that a notebook binds: which have one value throughout, and which text a path's expression gives.

Looks at syntax alone. In doubt a name has no known value.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.adopt.source import CodeCell, Source

CHANGES_ITSELF = {
    "append",
    "extend",
    "insert",
    "update",
    "pop",
    "remove",
    "clear",
    "setdefault",
    "sort",
    "reverse",
    "add",
}
PATH_TYPES = {"Path", "PurePath", "PosixPath", "PurePosixPath"}
LONGEST_TEXT = 300  # characters of a text that may be a parameter
BOUND_BY_MAGIC = re.compile(r"(?m)^\s*(?:([\w, ]+?)\s*=\s*[!%]|%%capture\s+(\w+))")  # files = !ls
BINDS_ANY = re.compile(r"(?m)^\s*%(?:run|pylab)\b")
DEEPEST = 20  # names that lead to one another


@dataclass(frozen=True)
class Binding:
    """A name's only assignment, at the top level of a cell."""

    name: str
    cell: CodeCell
    statement: ast.Assign | ast.AnnAssign
    value: ast.expr


@dataclass(frozen=True)
class StaticText:
    """The text that an expression always gives; `constructor` is the code that makes a Path of it, "" for plain text.

    `uses` are the names it is put together from.
    """

    text: str
    constructor: str = ""
    uses: frozenset[str] = frozenset()


@dataclass
class Names:
    """What is known of a notebook's names."""

    bindings: dict[str, Binding] = field(default_factory=dict)  # of names that are bound once, at the top level
    used: set[str] = field(default_factory=set)  # all names in the code
    last_bound: dict[str, ast.AST] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)  # whose value is changed in place
    opaque_from: int | None = None  # the place of the first cell that may bind any name: `import *`, %run

    def become_opaque(self, cell: CodeCell) -> None:
        self.opaque_from = cell.place if self.opaque_from is None else min(self.opaque_from, cell.place)

    def may_move(self, binding: Binding) -> bool:
        """Whether the name means the same where its assignment stands in the first cell, and may be a parameter's."""
        seen = self.opaque_from is None or binding.cell.place < self.opaque_from
        return seen and is_free(binding.name)

    def text(self, node: ast.expr, depth: int = 0) -> StaticText | None:
        """What the expression gives, where that is known: literals, names of such, joined as paths are."""
        if depth > DEEPEST:
            return None
        match node:
            case ast.Constant(value=str(text)):
                return StaticText(text)
            case ast.Name(id=name):
                bound = self.bindings.get(name)
                found = self.text(bound.value, depth + 1) if bound is not None else None
                return None if found is None else StaticText(found.text, found.constructor, found.uses | {name})
            case ast.JoinedStr(values=parts):
                return _concatenated([self._part(part, depth) for part in parts])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                sides = [self.text(side, depth + 1) for side in (left, right)]
                return None if any(side is None or side.constructor for side in sides) else _concatenated(sides)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                sides = [self.text(side, depth + 1) for side in (left, right)]
                return _joined(sides) if sides[0] is not None and sides[0].constructor else None
            case ast.Attribute(value=inner, attr="parent"):
                found = self.text(inner, depth + 1)
                if found is None or not found.constructor:
                    return None
                return StaticText(posixpath.normpath(posixpath.join(found.text, "..")), found.constructor, found.uses)
            case ast.Call():
                return self._call(node, depth)
        return None

    def _part(self, part: ast.expr, depth: int) -> StaticText | None:
        """A part of an f-string."""
        if isinstance(part, ast.FormattedValue):
            if part.conversion != -1 or part.format_spec is not None:
                return None
            match self.bindings.get(part.value.id) if isinstance(part.value, ast.Name) else None:
                case Binding(name=name, value=ast.Constant(value=int() as number)) if type(number) is int:
                    return StaticText(str(number), uses=frozenset({name}))
            return self.text(part.value, depth + 1)
        return self.text(part, depth + 1)

    def _call(self, node: ast.Call, depth: int) -> StaticText | None:
        function = ast.unparse(node.func)
        arguments = [self.text(argument, depth + 1) for argument in node.args]
        if node.keywords:
            return None
        if function.rpartition(".")[2] in PATH_TYPES:
            found = _joined(arguments) if arguments else StaticText(".")
            return None if found is None else StaticText(found.text, function, found.uses)
        if function.endswith(".cwd") and function.split(".")[-2] in PATH_TYPES and not arguments:
            return StaticText(".", function.removesuffix(".cwd"))
        if function in ("os.path.join", "path.join", "osp.join") and arguments:
            found = _joined(arguments)
            return None if found is None else StaticText(found.text, "", found.uses)
        if function in ("str", "os.fspath") and len(arguments) == 1 and arguments[0] is not None:
            return StaticText(arguments[0].text, "", arguments[0].uses)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "joinpath" and arguments:
            base = self.text(node.func.value, depth + 1)
            return _joined([base, *arguments]) if base is not None and base.constructor else None
        return None


def names_of(source: Source) -> Names:
    """What the notebook's code says of its names."""
    names, count = Names(), Counter[str]()
    for cell, node in source.nodes():
        for name in _bound_by(node):
            count[name] += 1
            names.last_bound[name] = node
        _note_use(node, names)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            names.become_opaque(cell)
    for cell in source.cells:
        for match in BOUND_BY_MAGIC.finditer(cell.cell.source):
            count.update(re.findall(r"\w+", match[1] or match[2]) * 2)
        if BINDS_ANY.search(cell.cell.source):
            names.become_opaque(cell)
    names.used |= count.keys()
    for cell, statement in source.top_level():
        binding = _binding(cell, statement)
        if binding is not None and count[binding.name] == 1:
            names.bindings[binding.name] = binding
    return names


def _note_use(node: ast.AST, names: Names) -> None:
    match node:
        case ast.Name(id=name):
            names.used.add(name)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in CHANGES_ITSELF:
            names.changed.add(name)
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            names.changed.add(name)


def constants(names: Names) -> Iterator[tuple[Binding, Any]]:
    """The names that are bound to a plain value once and never changed, each with its value, in their order."""
    for binding in sorted(names.bindings.values(), key=lambda bound: (bound.cell.place, bound.statement.lineno)):
        try:
            value = ast.literal_eval(binding.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if names.may_move(binding) and binding.name not in names.changed and is_plain(value):
            yield binding, value


def is_free(name: str) -> bool:
    """Whether the name may be a parameter's: not private, no keyword, nothing of Python's own."""
    taken = keyword.iskeyword(name) or hasattr(builtins, name)
    return name.isidentifier() and name.isascii() and not name.startswith("_") and not taken


def is_plain(value: Any) -> bool:
    """Whether the value says something that one might want to set from outside, in TOML too."""
    match value:
        case bool() | int():
            return True
        case float():
            return math.isfinite(value)
        case str():
            return 0 < len(value) <= LONGEST_TEXT and "\n" not in value
        case list():
            return bool(value) and all(is_plain(item) for item in value)
        case dict():
            return bool(value) and all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return False


def _binding(cell: CodeCell, statement: ast.stmt) -> Binding | None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return Binding(name, cell, statement, value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return Binding(name, cell, statement, value)
    return None


def _bound_by(node: ast.AST) -> Sequence[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.partition(".")[0] for alias in aliases]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.Global(names=several) | ast.Nonlocal(names=several):
            return several
    return []


def _concatenated(parts: Sequence[StaticText | None]) -> StaticText | None:
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    return StaticText("".join(part.text for part in known), "", frozenset().union(*(part.uses for part in known)))


def _joined(parts: Sequence[StaticText | None]) -> StaticText | None:
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    text = os.path.join(*(part.text for part in known))  # noqa: PTH118 - as the notebook joins them, `./` included
    constructor = next((part.constructor for part in known if part.constructor), "")
    return StaticText(text, constructor, frozenset().union(*(part.uses for part in known)))
