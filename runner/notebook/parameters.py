"""What a parameters cell declares: names, types, defaults, and the range that a comment ends with.

Python is read by its syntax tree. Of other languages papermill can hand values to, each line that is plainly
`name = literal` in that language is read; a cell with anything else in it may declare more.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import threading
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import PipelineError
from runner.notebook.types import Type, infer, parse_annotation

_PARSING = threading.Lock()
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(
    rf"(?:(?P<open>above )?(?P<low>{_NUMBER})(?: to | and (?=below ))(?P<below>below )?(?P<high>{_NUMBER})"
    rf"|(?P<least>{_NUMBER}) or more|(?P<most>{_NUMBER}) or less"
    rf"|above (?P<above>{_NUMBER})|below (?P<under>{_NUMBER}))\Z"
)
_SECRET = re.compile(r"secret\s*(?:[,:]|\Z)", re.IGNORECASE)
# x=3, x <- 3, let x = 3; val x = 3 // so many
_LINE = re.compile(
    r"\s*(?:export |val |var |let |const |local |\$)?(?P<name>[A-Za-z_]\w*)(?:\s*:\s*\w+)?\s*(?:<-|=)\s*"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s#;/\"']*)\s*;?\s*(?:(?:#|//|--)\s*(?P<comment>.*))?\Z"
)
_REMARK = re.compile(r"\s*(?:(?:#|//|--).*)?\Z")
_WORDS = {"true": True, "false": False, "TRUE": True, "FALSE": False}


@dataclass(frozen=True)
class Range:
    """Where a number may lie, both ends included unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # `low` itself is outside
    below: bool = False  # `high` itself is outside
    written: str = ""

    def __contains__(self, value: float) -> bool:
        return not (
            value < self.low
            or value > self.high
            or (self.above and value == self.low)
            or (self.below and value == self.high)
        )


@dataclass(frozen=True)
class Declared:
    """One line of the parameters cell: `name: type = literal  # meaning, unit, range`."""

    name: str
    type: Type | None  # None where nothing can be said: any value fits
    default: Any
    has_literal_default: bool
    expression: str = ""  # the code of a default that is not a literal
    comment: str = ""
    inferred_from: str = ""  # the line's code where it states no type

    @property
    def secret(self) -> bool:
        """Marked `# secret` in its cell: its value comes from the environment and is written nowhere."""
        return bool(_SECRET.match(self.comment))

    @property
    def range(self) -> Range | None:
        """The range its comment ends with: `1 to 12`, `1 or more`, `above 0 and below 1`."""
        found = _RANGE.match(re.split(r"[,;]", self.comment)[-1].strip()) if self.comment else None
        if found is None:
            return None
        low, high = found["low"] or found["least"] or found["above"], found["high"] or found["most"] or found["under"]
        return Range(
            low=float(low) if low else -math.inf,
            high=float(high) if high else math.inf,
            above=bool(found["open"] or found["above"]),
            below=bool(found["below"] or found["under"]),
            written=found[0],
        )

    def outside(self, value: Any) -> str:
        """Why `value`, which has the declared type, is outside the range, in words; "" where it is not."""
        if isinstance(value, bool) or not isinstance(value, int | float) or self.range is None or value in self.range:
            return ""
        return f"{value!r} is outside its range, {self.range.written}"

    def origin(self, notebook: str) -> str:
        """Where its type comes from, as the end of a sentence about a value that does not fit."""
        if not self.inferred_from:
            return f"declared in {notebook}."
        hint = f"; write `{self.default}.0` or `{self.name}: float`" if type(self.default) is int else ""
        return f"inferred from `{self.inferred_from}` in {notebook}{hint}."


def declared(source: str, language: str, path: Path) -> tuple[dict[str, Declared], str]:
    """The parameters of the cell, and the code in it that declares none. Raises PipelineError."""
    return _python(source, path) if language == "python" else _other(source)


def syntax_tree(source: str) -> ast.Module:
    """What ast.parse gives, for any thread: Python 3.11 counts the depth of a tree being made for all threads together,
    and raises SystemError where two make one (https://github.com/python/cpython/issues/106905)."""
    with _PARSING:
        return ast.parse(source)


def _python(source: str, path: Path) -> tuple[dict[str, Declared], str]:
    try:
        tree = syntax_tree(source)
    except (SyntaxError, ValueError) as error:
        reason = f"{error.msg}, line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
        raise PipelineError(f"{path}: the parameters cell does not parse: {reason}.") from error
    except (RecursionError, MemoryError):
        raise PipelineError(f"{path}: the parameters cell is nested too deeply.") from None
    comments = _comments(source)
    parameters: dict[str, Declared] = {}
    rest: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation, value = node.target.id, node.annotation, node.value
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, annotation, value = node.targets[0].id, None, node.value
        else:
            rest.append(ast.unparse(node))
            continue
        try:
            default, literal = (ast.literal_eval(value), True) if value is not None else (None, False)
        except (ValueError, TypeError):  # a call, a name; a list as a key
            default, literal = None, False
        type_ = parse_annotation(annotation) if annotation is not None else infer(default)
        comment = comments.get(node.end_lineno or node.lineno, "")
        inferred = ast.unparse(node) if annotation is None else ""
        expression = ast.unparse(value) if value is not None and not literal else ""
        parameters[name] = Declared(name, type_, default, literal, expression, comment, inferred)
    return parameters, "\n".join(rest)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}


def _other(source: str) -> tuple[dict[str, Declared], str]:
    """Lines of another language than Python. Their types are not known: R's `x = 1` is not an integer, bash has text alone."""
    parameters: dict[str, Declared] = {}
    rest: list[str] = []
    for line in source.splitlines():
        if _REMARK.match(line):
            continue
        found = _LINE.match(line)
        if found is None:
            rest.append(line)
            continue
        try:
            default, literal = json.loads(found["value"]), True
        except ValueError:
            default = _WORDS.get(found["value"], found["value"].strip("'"))
            literal = found["value"] in _WORDS or found["value"].startswith("'")
        comment = (found["comment"] or "").rstrip()
        expression = "" if literal else found["value"]
        parameters[found["name"]] = Declared(found["name"], None, default, literal, expression, comment)
    return parameters, "\n".join(rest)
