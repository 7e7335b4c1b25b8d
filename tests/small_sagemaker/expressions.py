"""What a definition leaves open until an execution: references, joins, values out of JSON files, conditions."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from .definition import split_path

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": operator.eq,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqualTo": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqualTo": operator.le,
}
ITEM_NAMES = ("OutputName", "InputName")


class ExpressionError(Exception):
    """What cannot be resolved; the message is the step's reason of failure."""


class Scope:
    """The values one execution knows. `steps` holds the properties of steps that have succeeded.

    `read_file` gives the content of a step's property file.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        variables: Mapping[str, str],
        steps: Mapping[str, Mapping[str, Any]],
        read_file: Callable[[str, str], bytes],
        read_uri: Callable[[str], bytes],
    ) -> None:
        self._parameters = parameters
        self._variables = variables
        self._steps = steps
        self._read_file = read_file
        self._read_uri = read_uri

    def resolve(self, value: Any) -> Any:
        """The value without anything left open; raises ExpressionError."""
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"Get"}:
            return self._get(value["Get"])
        if set(value) == {"Std:Join"}:
            join = value["Std:Join"]
            return join["On"].join(write(self.resolve(item)) for item in join["Values"])
        if set(value) == {"Std:JsonGet"}:
            return self._get_json(value["Std:JsonGet"])
        return {key: self.resolve(item) for key, item in value.items()}

    def _get(self, path: str) -> Any:
        root, _, rest = path.partition(".")
        if root == "Parameters":
            return self._parameters[rest]
        if root == "Execution":
            return self._variables[rest]
        name, _, inner = rest.partition(".")
        if name not in self._steps:
            raise ExpressionError(f"ClientError: Step {name} has no properties; it was not executed")
        return walk(self._steps[name], inner, path)

    def _get_json(self, wanted: dict[str, Any]) -> Any:
        if "PropertyFile" in wanted:
            _, step, _, file = wanted["PropertyFile"]["Get"].split(".", 3)
            place, content = f"property file {file} of step {step}", self._read_file(step, file)
        else:
            uri = self.resolve(wanted["S3Uri"])
            place, content = uri, self._read_uri(uri)
        try:
            found = json.loads(content, parse_constant=refuse_constant)
        except ValueError as error:
            raise ExpressionError(f"ClientError: The {place} is not valid JSON: {error}") from error
        return walk(found, self.resolve(wanted["Path"]), place)

    def decide(self, condition: dict[str, Any]) -> bool:
        """Whether a condition holds; raises ExpressionError."""
        kind = condition["Type"]
        if kind == "Not":
            return not self.decide(condition["Condition"])
        if kind == "Or":
            return any(self.decide(item) for item in condition["Conditions"])
        if kind == "In":
            return self.resolve(condition["QueryValue"]) in self.resolve(condition["Values"])
        if kind not in COMPARISONS:
            raise ExpressionError(f"ClientError: Unknown condition type {kind}")
        left, right = self.resolve(condition["LeftValue"]), self.resolve(condition["RightValue"])
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (left, right)]
        if type(left) is not type(right) and not all(numbers):
            raise ExpressionError(f"ClientError: Cannot compare {left!r} with {right!r}: they are of different types")
        return COMPARISONS[kind](left, right)


def write(value: Any) -> str:
    """A value as Std:Join writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def walk(value: Any, path: str, place: str) -> Any:
    """The value at `path`; items of inputs and outputs also go by their name."""
    try:
        pieces = split_path(path)
    except ValueError as error:
        raise ExpressionError(f"ClientError: {error}") from error
    for piece in pieces:
        value = step_into(value, piece)
        if value is None:
            raise ExpressionError(f"ClientError: Unable to find {path!r} in {place}")
    return value


def step_into(value: Any, piece: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(str(piece))
    if isinstance(value, list) and isinstance(piece, int):
        return value[piece] if piece < len(value) else None
    if isinstance(value, list):
        return next((item for item in value if any(item.get(name) == piece for name in ITEM_NAMES)), None)
    return None
