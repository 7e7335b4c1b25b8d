"""What every notebook that ships keeps to: its size, its parameters cell, its beginning and its end."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

KERNEL = {"display_name": "Python (runner)", "language": "python", "name": "runner"}


def cells(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def check(path: Path) -> None:
    """All of them."""
    check_size(path)
    check_commit(path)
    check_frame(path)
    check_parameters(path)
    check_code(path)


def check_size(path: Path) -> None:
    code = [source(cell).splitlines() for cell in cells(path, "code")]
    assert 15 <= len(cells(path)) <= 30
    assert max(len(lines) for lines in code) <= 15
    assert sum(len(lines) for lines in code) <= 150


def check_commit(path: Path) -> None:
    """It is committed without outputs, and with ids that can be read."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert document["metadata"]["kernelspec"] == KERNEL
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path, "code"))
    ids = [cell["id"] for cell in cells(path)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", one) for one in ids)


def check_frame(path: Path) -> None:
    """It begins with its title and kernel, and ends with its metrics and a link."""
    first, *_, last = cells(path)
    assert source(first).startswith("# ")
    assert "**Python (runner)**" in source(first)
    assert re.search(r"\]\(\d\d_\w+\.ipynb\)", source(last))
    assert "metric(" in source(cells(path, "code")[-1])


def check_parameters(path: Path) -> None:
    """Each has a type, a literal and a meaning."""
    (tagged,) = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    for line in source(tagged).splitlines():
        assert re.fullmatch(r"\w+: (str|int|float) = \S+  # \S.*", line)
    for statement in ast.parse(source(tagged)).body:
        assert isinstance(statement, ast.AnnAssign)
        assert statement.value is not None
        ast.literal_eval(statement.value)


def check_code(path: Path) -> None:
    """It installs nothing, and leaves the shell and the environment alone."""
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    assert not re.search(r"^\s*[%!]|\bpip\b|subprocess|os\.system|sagemaker|getenv|environ", code, re.MULTILINE)
