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
            made = with_defaults("".join(cell["source"]), values)
            cell["source"] = made if isinstance(cell["source"], str) else made.splitlines(keepends=True)
    atomic_write(path, json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def with_defaults(source: str, values: Mapping[str, Value]) -> str:
    """The cell's source with other literals where it assigns these names."""
    lines = source.encode().splitlines(keepends=True)  # a syntax tree counts in bytes
    for node in reversed(syntax_tree(python_source(Cell("code", source))).body):
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or targets[0].id not in values or value is None:
            continue
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        head, tail = lines[first][: value.col_offset], lines[last][value.end_col_offset :]
        lines[first : last + 1] = [head + _literal(values[targets[0].id]).encode() + tail]
    return b"".join(lines).decode()


def _literal(value: Value) -> str:
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)
