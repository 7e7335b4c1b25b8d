"""The service's own limits, read from botocore's service model: lengths, patterns, list and map sizes, enums, ranges.

botocore checks types and required members before a request leaves; everything else is the service's to refuse.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from botocore.model import Shape

from .calls import load_model
from .errors import ServiceError

NUMBERS = ("integer", "long", "float", "double")


# classes of characters that Python writes out
JAVA_CLASSES = {
    "\\p{L}": r"\w",
    "\\p{N}": r"\d",
    "\\p{Z}": r" \u00a0\u2000-\u200a\u3000",
    "\\p{M}": r"\u0300-\u036f",
    "\\p{S}": r"$+<=>\^`|~\u00a2-\u00b4\u20a0-\u20bf\u2100-\u2bff",
    "\\p{P}": r"!-#%-*,-/:;?@\[-\]_{}\u00a1\u00a7\u00ab\u00bb\u00bf\u2010-\u205e",
    "\\p{Alnum}": r"A-Za-z0-9",
}
REPEATED_END = re.compile(r"\$\{\d+,\d+\}")  # some patterns repeat the end of the text


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """A pattern of the model, which is written for Java; None where Python has no words for it."""
    for java, python in JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    try:
        return re.compile(REPEATED_END.sub("$", pattern))
    except re.error:
        return None


def check(service: str, action: str, parameters: dict[str, Any]) -> None:
    """Raises ValidationException naming every field of a request that breaks a limit."""
    model = load_model(service)
    if model is None or action not in model.operation_names:
        return
    shape = model.operation_model(action).input_shape
    if shape is None:
        return
    found = list(walk(shape, parameters, ""))
    if not found:
        return
    errors = "error" if len(found) == 1 else "errors"
    raise ServiceError("ValidationException", f"{len(found)} validation {errors} detected: {'; '.join(found)}")


def walk(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """One sentence for each limit broken at or below `path`."""
    kind = shape.type_name
    if kind == "structure":
        if not isinstance(value, dict):
            yield say(value, path, "Member must be a structure")
            return
        for name in shape.required_members:
            if value.get(name) is None:
                yield say(None, join(path, name), "Member must not be null")
        for name, item in value.items():
            if name in shape.members and item is not None:
                yield from walk(shape.members[name], item, join(path, name))
    elif kind == "list":
        if not isinstance(value, list):
            yield say(value, path, "Member must be a list")
            return
        yield from walk_size(shape, value, path)
        for number, item in enumerate(value, 1):
            yield from walk(shape.member, item, f"{path}.{number}.member")
    elif kind == "map":
        if not isinstance(value, dict):
            yield say(value, path, "Member must be a map")
            return
        yield from walk_size(shape, value, path)
        for key, item in value.items():
            yield from walk(shape.key, key, f"{path}.key")
            yield from walk(shape.value, item, f"{path}.{key}.member")
    elif kind in NUMBERS:
        yield from walk_number(shape, value, path)
    elif kind == "string":
        yield from walk_string(shape, value, path)


def walk_size(shape: Shape, value: list[Any] | dict[str, Any] | str, path: str) -> Iterator[str]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if most is not None and len(value) > most:
        yield say(value, path, f"Member must have length less than or equal to {most}")
    if least is not None and len(value) < least:
        yield say(value, path, f"Member must have length greater than or equal to {least}")


def walk_number(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield say(value, path, "Member must be a number")
        return
    if isinstance(value, float) and shape.type_name in ("integer", "long"):
        yield say(value, path, "Member must be an integer")
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if most is not None and value > most:
        yield say(value, path, f"Member must have value less than or equal to {most}")
    if least is not None and value < least:
        yield say(value, path, f"Member must have value greater than or equal to {least}")


def walk_string(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield say(value, path, "Member must be a string")
        return
    yield from walk_size(shape, value, path)
    enum, pattern = shape.metadata.get("enum"), shape.metadata.get("pattern")
    if enum and value not in enum:
        yield say(
            value, path, f"Member must satisfy enum value set: [{', '.join(enum[:20])}{', …' * (len(enum) > 20)}]"
        )
    compiled = compile_pattern(pattern) if pattern else None
    if compiled is not None and not compiled.fullmatch(value):
        yield say(value, path, f"Member must satisfy regular expression pattern: {pattern}")


def join(path: str, name: str) -> str:
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name


def say(value: Any, path: str, constraint: str) -> str:
    shown = "null" if value is None else f"'{str(value)[:300]}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {constraint}"
