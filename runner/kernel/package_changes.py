"""Whether a cell may change the packages that are imported after it: the environment they read, or which they are.

Decided by the cell's text. In doubt the answer is yes: a mistake costs only speed.
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
# functions and methods that only read their arguments
READING_FUNCTIONS = {
    "any", "all", "dict", "display", "enumerate", "len", "list",
    "pprint", "print", "repr", "set", "sorted", "str", "tuple",
}  # fmt: skip
READING_METHODS = {"join", "pformat", "pprint"}


@dataclass(frozen=True)
class SharedAttribute:
    """A module's attribute that all packages see; `harmless` are its methods that change nothing for packages imported
    later, `bare` its names without the module, `named` matches a change in text that cannot be parsed."""

    module: str
    name: str
    harmless: frozenset[str]
    bare: frozenset[str]
    named: re.Pattern[str]


ENVIRONMENT = SharedAttribute(
    "os", "environ", frozenset({"copy", "get", "items", "keys", "values"}), frozenset({"environ"}),
    re.compile(r"\benviron\b(?!\.get\b|\[[^\]\n]*\](?!.*(?<![=!<>])=(?!=)))"),
)  # fmt: skip
# a folder at its end hides nothing
PATH = SharedAttribute(
    "sys", "path", frozenset({"append", "copy", "count", "extend", "index"}), frozenset(),
    re.compile(r"\bsys\.path\b(?!\.(?:append|extend)\b)"),
)  # fmt: skip


def changes(cell: Cell) -> str:
    """The change that the cell may make, as the end of a sentence; "" if it makes none."""
    if SETS_ENVIRONMENT.search(cell.source) or _changes(ENVIRONMENT, cell):
        return "sets environment variables"
    if INSTALLS.search(cell.source) or _changes(PATH, cell):
        return "changes what is installed or found"
    return ""


def _changes(shared: SharedAttribute, cell: Cell) -> bool:
    """Whether the cell does more with the attribute than read it."""
    if shared.name not in cell.source:
        return False
    source = python_source(cell)
    if shared.named.search("\n".join(MAGIC_LINE.findall(cell.source)) if source else cell.source):
        return True
    try:
        tree = syntax_tree(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return shared.named.search(source) is not None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    modules, names = {shared.module}, set(shared.bare)
    for node in parents:
        if isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.name == shared.module and alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == shared.module:
            names |= {alias.asname or alias.name for alias in node.names if alias.name == shared.name}

    def is_it(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute) and node.attr == shared.name:
            return getattr(node.value, "id", getattr(node.value, "attr", "")) in modules
        return isinstance(node, ast.Name) and node.id in names

    return any(is_it(node) and not _only_reads(node, parents, shared.harmless) for node in parents)


def _only_reads(it: Any, parents: dict[ast.AST, ast.AST], harmless: frozenset[str]) -> bool:
    parent = parents[it]
    if isinstance(parent, ast.Starred):
        it, parent = parent, parents[parent]
    match parent:
        case ast.Attribute():
            return parent.attr in harmless
        case ast.Call():
            return (
                getattr(parent.func, "id", "") in READING_FUNCTIONS
                or getattr(parent.func, "attr", "") in READING_METHODS
            )
        case ast.Subscript():
            return isinstance(parent.ctx, ast.Load)
        case ast.keyword():  # of a process that is started
            return parent.arg == "env"
        case ast.Dict():
            return parent.keys[parent.values.index(it)] is None
        case ast.Compare() | ast.Expr() | ast.FormattedValue() | ast.BinOp() | ast.For() | ast.comprehension():
            return isinstance(it.ctx, ast.Load)
    return False
