"""What a cell may do to the packages that are imported after it: what they read, or which they are.

Told from the cell's text. Where that is not plain, the answer is that it does: a mistake costs only speed.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from runner.notebook.parameters import syntax_tree
from runner.notebook.source import Cell, python_source

SETS_ENVIRONMENT = re.compile(
    r"\b(?:putenv|unsetenv|load_dotenv)\b|%\s*(?:set_env|dotenv)\b|%\s*env[ \t]+\w+[ \t]*(?:=|[ \t]\S)"
)
INSTALLS = re.compile(
    r"[!%]\s*(?:uv|pip3?|conda|mamba)\b|-m[\s'\",]+pip\b|\b(?:pip3?|conda|mamba)\s+(?:un)?install\b|\baddsitedir\b"
)
MAGIC_LINE = re.compile(r"(?m)^\s*[%!].*")
# functions and methods that only look at what they are given
LOOK = {
    "any",
    "all",
    "dict",
    "display",
    "enumerate",
    "len",
    "list",
    "pprint",
    "print",
    "repr",
    "set",
    "sorted",
    "str",
    "tuple",
}
LOOK_TOO = {"join", "pformat", "pprint"}


@dataclass(frozen=True)
class Shared:
    """A module's attribute that all packages see; `harmless` are its methods that change nothing for those imported
    later, `bare` the names that stand for it without the module, `named` tells it in text that cannot be parsed."""

    module: str
    name: str
    harmless: frozenset[str]
    bare: frozenset[str]
    named: re.Pattern[str]


ENVIRONMENT = Shared(
    "os", "environ", frozenset({"copy", "get", "items", "keys", "values"}), frozenset({"environ"}),
    re.compile(r"\benviron\b(?!\.get\b|\[[^\]\n]*\](?!.*(?<![=!<>])=(?!=)))"),
)  # fmt: skip
# what is put at its end hides nothing
PATH = Shared(
    "sys", "path", frozenset({"append", "copy", "count", "extend", "index"}), frozenset(),
    re.compile(r"\bsys\.path\b(?!\.(?:append|extend)\b)"),
)  # fmt: skip


def changes(cell: Cell) -> str:
    """What it may do to them; "" where that is nothing."""
    if SETS_ENVIRONMENT.search(cell.source) or _changes(ENVIRONMENT, cell):
        return "sets environment variables"
    if INSTALLS.search(cell.source) or _changes(PATH, cell):
        return "changes what is installed or found"
    return ""


def _changes(shared: Shared, cell: Cell) -> bool:
    """Whether something is done with it that is not plainly a look."""
    if shared.name not in cell.source:
        return False
    source = python_source(cell)
    if shared.named.search("\n".join(MAGIC_LINE.findall(cell.source)) if source else cell.source):
        return True
    try:
        tree = syntax_tree(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return shared.named.search(source) is not None
    inside = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    modules, names = {shared.module}, set(shared.bare)
    for node in inside:
        if isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.name == shared.module and alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == shared.module:
            names |= {alias.asname or alias.name for alias in node.names if alias.name == shared.name}

    def is_it(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute) and node.attr == shared.name:
            return getattr(node.value, "id", getattr(node.value, "attr", "")) in modules
        return isinstance(node, ast.Name) and node.id in names

    return any(is_it(node) and not _looks(node, inside, shared.harmless) for node in inside)


def _looks(it: Any, inside: dict[ast.AST, ast.AST], harmless: frozenset[str]) -> bool:
    around = inside[it]
    if isinstance(around, ast.Starred):
        it, around = around, inside[around]
    match around:
        case ast.Attribute():
            return around.attr in harmless
        case ast.Call():
            return getattr(around.func, "id", "") in LOOK or getattr(around.func, "attr", "") in LOOK_TOO
        case ast.Subscript():
            return isinstance(around.ctx, ast.Load)
        case ast.keyword():  # of a process that is started
            return around.arg == "env"
        case ast.Dict():
            return around.keys[around.values.index(it)] is None
        case ast.Compare() | ast.Expr() | ast.FormattedValue() | ast.BinOp() | ast.For() | ast.comprehension():
            return isinstance(it.ctx, ast.Load)
    return False
