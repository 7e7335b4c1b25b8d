"""The types a parameters cell declares, and values read by them.

A value is what Python, TOML and JSON can all say: bool, int, float, str, None, lists and
string-keyed tables of them. Text from the command line is read by the declared type, so that `007`
stays text for a `str`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from runner.records import Value

Kind = Literal["bool", "int", "float", "str", "None", "list", "dict", "union", "choice", "unsupported"]


@dataclass(frozen=True)
class Type:
    kind: Kind
    items: tuple[Type, ...] = ()  # of a list, a dict's values, a union's members
    choices: tuple[Any, ...] = ()  # of a Literal
    written: str = ""

    def __str__(self) -> str:
        return self.written or self.kind


class DoesNotFit(ValueError):
    """The value does not fit the declared type; the message says both."""


SIMPLE: dict[str, Kind] = {"bool": "bool", "int": "int", "float": "float", "str": "str", "None": "None"}
_INTEGER = re.compile(r"[+-]?\d+\Z")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\Z")


def parse_annotation(node: ast.expr) -> Type | None:
    """The type an annotation states; None where it says nothing about values (`Any`, unknown names)."""
    written = ast.unparse(node)
    if isinstance(node, ast.Constant) and node.value is None:
        return Type("None", written="None")
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in SIMPLE:
            return Type(SIMPLE[name], written=written)
        if name in ("list", "List", "dict", "Dict"):
            return Type("list" if name.lower() == "list" else "dict", written=written)
        # papermill hands over text where a Path is declared, and turns tuples and dates into text or fails
        if name in ("Path", "PurePath", "tuple", "Tuple", "set", "date", "datetime"):
            return Type("unsupported", written=written)
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([node.left, node.right], written)
    if isinstance(node, ast.Subscript):
        return _subscript(node, written)
    return None


def infer(default: Any) -> Type | None:
    """The type of an unannotated literal default; None for None and for what is not a plain value."""
    name = type(default).__name__
    if name in SIMPLE:
        return Type(SIMPLE[name], written=name)
    if name in ("list", "dict"):
        return Type("list" if name == "list" else "dict", written=name)
    return None


def read_text(text: str, type_: Type | None) -> Value:
    """`text` from a command line as the declared type. Raises DoesNotFit."""
    if type_ is None:
        try:
            return check(json.loads(text), None)
        except ValueError:
            return text
    if type_.kind == "union":
        for member in sorted(type_.items, key=lambda member: member.kind == "str"):
            try:
                return read_text(text, member)
            except DoesNotFit:
                continue
    if type_.kind == "choice":
        for choice in type_.choices:
            if text == str(choice):
                return choice  # type: ignore[no-any-return]
    if type_.kind == "str":
        return text
    if type_.kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if type_.kind == "int" and _INTEGER.match(text):
        return int(text)
    if type_.kind == "float" and (_NUMBER.match(text) or text.strip("+-").lower() in ("inf", "infinity", "nan")):
        return check(float(text), type_)
    if type_.kind == "None" and text.lower() in ("none", "null"):
        return None
    if type_.kind in ("list", "dict"):
        try:
            return check(json.loads(text), type_)
        except json.JSONDecodeError:
            raise DoesNotFit(f"{text!r} is not JSON, in which a {type_} is written") from None
    raise DoesNotFit(f"{text!r} does not fit {type_}")


def check(value: Any, type_: Type | None) -> Value:
    """`value` as the declared type (an int becomes a float where one is declared). Raises DoesNotFit."""
    if isinstance(value, float) and not math.isfinite(value) and type_ is not None:
        raise DoesNotFit(f"{value!r} is not a finite number, so it does not fit {type_}")
    if type_ is None:
        return _plain(value)
    if type_.kind == "union":
        for member in type_.items:
            if type(value).__name__ == member.kind or (value is None and member.kind == "None"):
                return check(value, member)
        for member in type_.items:
            try:
                return check(value, member)
            except DoesNotFit:
                continue
    if type_.kind == "choice" and any(value == choice and type(value) is type(choice) for choice in type_.choices):
        return value  # type: ignore[no-any-return]
    if type_.kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type_.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if type_.kind == "bool" and isinstance(value, bool):
        return value
    if type_.kind == "str" and isinstance(value, str):
        return value
    if type_.kind == "None" and value is None:
        return None
    if type_.kind == "list" and isinstance(value, list):
        return [check(item, type_.items[0] if type_.items else None) for item in value]
    if type_.kind == "dict" and isinstance(value, dict):
        return {_key(key): check(item, type_.items[0] if type_.items else None) for key, item in value.items()}
    raise DoesNotFit(f"{value!r} does not fit {type_}")


def _plain(value: Any) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise DoesNotFit(f"{value!r} is not a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    raise DoesNotFit(f"{value!r} ({type(value).__name__}) cannot be handed to a notebook; write it as text")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise DoesNotFit(f"{key!r} is a key, and a key is text")
    return key


def _union(nodes: list[ast.expr], written: str) -> Type | None:
    members: list[Type] = []
    for node in nodes:
        member = parse_annotation(node)
        if member is None:
            return None
        members.extend(member.items if member.kind == "union" else [member])
    return Type("union", items=tuple(members), written=written)


def _subscript(node: ast.Subscript, written: str) -> Type | None:
    base = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if base in ("list", "List") and len(inside) == 1:
        item = parse_annotation(inside[0])
        return Type("list", items=(item,) if item else (), written=written)
    if base in ("dict", "Dict") and len(inside) == 2:
        item = parse_annotation(inside[1])
        return Type("dict", items=(item,) if item else (), written=written)
    if base == "Optional" and len(inside) == 1:
        return _union([inside[0], ast.Constant(value=None)], written)
    if base == "Union":
        return _union(inside, written)
    if base == "Literal":
        try:
            return Type("choice", choices=tuple(ast.literal_eval(item) for item in inside), written=written)
        except (ValueError, TypeError):  # a member of an Enum: which values fit is not written here
            return None
    if base in ("tuple", "Tuple", "set"):
        return Type("unsupported", written=written)
    return None
