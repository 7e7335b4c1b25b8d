"""An existing notebook as its code says it is: each cell's syntax tree, with places that lead back into the source.

Refuses, in a sentence, what no step can be made of.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.errors import PipelineError
from runner.notebook.parameters import syntax_tree
from runner.notebook.source import PARAMETERS, Cell, Notebook, parsed, python_source, read_notebook

LARGEST_BYTES = 200_000_000
Node = ast.expr | ast.stmt


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of the source of the cell at `cell`, its place in the notebook's file."""

    cell: int
    start: int
    end: int


@dataclass(frozen=True)
class CodeCell:
    """A Python cell that runs."""

    place: int  # among all cells of the file
    cell: Cell
    tree: ast.Module

    @property
    def label(self) -> str:
        return f"cell [{self.cell.number}]"

    @cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        for line in self.cell.source.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        return starts

    def span(self, node: Node) -> Span | None:
        """Where the node stands in the source; None where its text there is not the node, as after odd line ends."""
        starts = self._line_starts
        if node.end_lineno is None or node.end_col_offset is None or node.end_lineno > len(starts):
            return None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        text = self.cell.source.encode()[start:end].decode(errors="replace")
        again = parsed(f"({text}\n)" if isinstance(node, ast.expr) else text)
        if again is None or len(again.body) != 1:
            return None
        found = (
            again.body[0].value if isinstance(again.body[0], ast.Expr) and isinstance(node, ast.expr) else again.body[0]
        )
        return Span(self.place, start, end) if ast.dump(found) == ast.dump(node) else None

    def own_lines(self, statement: ast.stmt) -> Span | None:
        """The lines of a statement that shares them with no other code; a comment behind it belongs to them.

        None also in a cell with a magic of its own, which may need a body.
        """
        span = self.span(statement)
        if span is None or self.cell.source.lstrip().startswith("%%"):
            return None
        source = self.cell.source.encode()
        start, stop = source.rfind(b"\n", 0, span.start) + 1, source.find(b"\n", span.end)
        stop = len(source) if stop < 0 else stop
        after = source[span.end : stop].strip()
        if source[start : span.start].strip() or (after and not after.startswith(b"#")):
            return None
        return Span(self.place, start, min(stop + 1, len(source)))


@dataclass(frozen=True)
class Source:
    """A notebook to adopt. `document` is its JSON."""

    path: Path
    notebook: Notebook
    document: dict[str, Any]
    cells: tuple[CodeCell, ...]

    @property
    def folder(self) -> Path:
        """What its relative paths are relative to."""
        return self.path.absolute().parent

    @property
    def declaring(self) -> CodeCell | None:
        """Its own parameters cell."""
        return next((cell for cell in self.cells if PARAMETERS in cell.cell.tags), None)

    def nodes(self) -> Iterator[tuple[CodeCell, ast.AST]]:
        """Every node of every cell, in the order of their places."""
        for cell in self.cells:
            nodes = [node for node in ast.walk(cell.tree) if hasattr(node, "lineno")]
            for node in sorted(nodes, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))):
                yield cell, node

    def top_level(self) -> Iterator[tuple[CodeCell, ast.stmt]]:
        """The statements that stand in no other."""
        for cell in self.cells:
            for statement in cell.tree.body:
                yield cell, statement


def read_source(path: Path) -> Source:
    """The notebook in the file.

    Raises PipelineError as `read_notebook`, and where it is too large, not in Python, without code, or has a cell that
    does not parse.
    """
    if path.is_file() and (size := path.stat().st_size) > LARGEST_BYTES:
        raise PipelineError(
            f"{path} has {size:,} bytes, more than {LARGEST_BYTES:,}. Clear its outputs, then adopt it."
        )
    notebook = read_notebook(path)
    if notebook.language.lower() != "python":
        raise PipelineError(f"{path} is written in {notebook.language}. Only Python is read; write its step by hand.")
    if notebook.tagging:
        raise PipelineError(f"{path}: {notebook.tagging}")
    if not notebook.code:
        raise PipelineError(f"{path} has no code cell, so there is nothing to run.")
    cells = tuple(_code_cells(notebook))
    return Source(path, notebook, json.loads(path.read_bytes()), cells)


def _code_cells(notebook: Notebook) -> Iterator[CodeCell]:
    for place, cell in enumerate(notebook.cells):
        if cell.number is None:
            continue
        source = python_source(cell)
        tree = parsed(source)
        if tree is None:
            raise PipelineError(
                f"{notebook.path}: cell [{cell.number}] is not Python: {_reason(source)}. Mend it first."
            )
        yield CodeCell(place, cell, tree)


def _reason(source: str) -> str:
    try:
        syntax_tree(source)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno}"
    except ValueError as error:  # a NUL
        return str(error)
    except (RecursionError, MemoryError):
        return "it is nested too deeply"
    return "it cannot be read"
