"""Writing values into a notebook's parameters cell, as the defaults it runs with by hand."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path

from runner.content import atomic_write
from runner.notebook.parameters import syntax_tree
from runner.notebook.source import PARAMETERS, Cell, python_source
from runner.records import Value


def write_defaults(path: Path, values: Mapping[str, Value]) -> None:
    """Make these the defaults in the notebook's parameters cell, a Python one; its types and comments stay."""
    document = json.loads(path.read_bytes())
    for cell in document["cells"]:
        if PARAMETERS in (cell.get("metadata") or {}).get("tags", ()):
            source = with_defaults("".join(cell["source"]), values)
            cell["source"] = source if isinstance(cell["source"], str) else source.splitlines(keepends=True)
    atomic_write(path, json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def with_defaults(source: str, values: Mapping[str, Value]) -> str:
    """The cell's source with other literals where it assigns these names."""
    lines = source.encode().splitlines(keepends=True)  # a syntax tree counts in bytes
    for node in reversed(syntax_tree(python_source(Cell("code", source))).body):
        match node:
            case ast.AnnAssign(ast.Name(name), value=ast.expr() as default) | ast.Assign([ast.Name(name)], default):
                if name in values:
                    first, last = default.lineno - 1, (default.end_lineno or default.lineno) - 1
                    head, tail = lines[first][: default.col_offset], lines[last][default.end_col_offset :]
                    lines[first : last + 1] = [head + _literal(values[name]).encode() + tail]
    return b"".join(lines).decode()


def _literal(value: Value) -> str:
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)
