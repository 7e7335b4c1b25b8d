"""A pipeline's definition: read from its JSON, and refused where the service would refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import ServiceError, refuse

KINDS = ("Processing", "Condition", "Fail")
TYPES: dict[str, type] = {"String": str, "Integer": int, "Float": float, "Boolean": bool}
STEP_NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")
PIECE = re.compile(r"\.([A-Za-z0-9_\-]+)|\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]")
EXECUTION_VARIABLES = (
    "StartDateTime", "CurrentDateTime", "PipelineName", "PipelineArn", "PipelineExecutionId", "PipelineExecutionArn",
)  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    default: Any = None
    allowed: tuple[Any, ...] = ()

    def read(self, text: Any) -> Any:
        """A value of this parameter's type; raises ValidationException for every other one."""
        value = text
        if isinstance(text, str) and self.kind != "String":
            try:
                value = json.loads(text.strip().lower() if self.kind == "Boolean" else text)
            except ValueError:
                value = None
        good = isinstance(value, TYPES[self.kind]) and (self.kind == "Boolean" or not isinstance(value, bool))
        if self.kind == "Float" and isinstance(value, int) and not isinstance(value, bool):
            value, good = float(value), True
        if not good:
            raise refuse(f"Value {text!r} of parameter {self.name} is not of type {self.kind}.")
        if self.allowed and value not in self.allowed:
            raise refuse(f"Value {text!r} of parameter {self.name} is not one of {list(self.allowed)}.")
        return value


@dataclass(frozen=True)
class Step:
    """`parent` is the condition step whose `branch` ("True" or "False") this step stands in."""

    name: str
    kind: str
    arguments: dict[str, Any]
    source: dict[str, Any]
    depends_on: frozenset[str]
    parent: str | None = None
    branch: str | None = None

    @property
    def property_files(self) -> dict[str, dict[str, str]]:
        return {item["PropertyFileName"]: item for item in self.source.get("PropertyFiles", ())}


@dataclass(frozen=True)
class Definition:
    text: str
    parameters: dict[str, Parameter]
    steps: dict[str, Step]

    def read_parameters(self, given: list[dict[str, str]]) -> dict[str, Any]:
        """The value of every parameter of one execution."""
        overrides = {item["Name"]: item["Value"] for item in given}
        unknown = sorted(set(overrides) - set(self.parameters))
        if unknown:
            raise refuse(f"Unknown parameters: {', '.join(unknown)}. Known: {', '.join(sorted(self.parameters))}.")
        values = {}
        for name, parameter in self.parameters.items():
            value = overrides.get(name, parameter.default)
            if value is None:
                raise refuse(f"Parameter {name} has no default and needs a value.")
            values[name] = parameter.read(value)
        return values


def read_definition(text: str) -> Definition:
    """Raises ValidationException where the definition cannot be executed."""
    try:
        found = json.loads(text)
        parameters = {item["Name"]: read_parameter(item) for item in found.get("Parameters", ())}
        steps: dict[str, Step] = {}
        for step in walk_steps(found["Steps"], None, None):
            if step.name in steps:
                raise refuse(f"Step names must be unique within a pipeline: {step.name}")
            steps[step.name] = step
    except ServiceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(f"Unable to parse pipeline definition: {type(error).__name__}: {error}") from error
    if not steps:
        raise refuse("A pipeline needs at least one step.")
    definition = Definition(text, parameters, steps)
    for step in steps.values():
        check_step(step, definition)
    check_cycles(steps)
    return definition


def read_parameter(item: dict[str, Any]) -> Parameter:
    if item["Type"] not in TYPES:
        raise refuse(f"Parameter {item['Name']} has the unknown type {item['Type']!r}.")
    made = Parameter(item["Name"], item["Type"], item.get("DefaultValue"), tuple(item.get("EnumValues") or ()))
    if made.default is not None:
        made.read(made.default)
    return made


def walk_steps(items: list[dict[str, Any]], parent: str | None, branch: str | None) -> Iterator[Step]:
    """Every step, those in the branches of a condition after it."""
    for item in items:
        name, kind, arguments = item["Name"], item["Type"], dict(item.get("Arguments") or {})
        if not STEP_NAME.fullmatch(name):
            raise refuse(f"Step name {name!r} must match {STEP_NAME.pattern}")
        if kind not in KINDS:
            raise refuse(f"Step {name} is of type {kind}; here only {', '.join(KINDS)} are executed.")
        branches = {"True": arguments.pop("IfSteps", None) or [], "False": arguments.pop("ElseSteps", None) or []}
        needed = {path.split(".")[1] for path in list_references(arguments) if path.startswith("Steps.")}
        needed |= set(item.get("DependsOn", ())) | ({parent} if parent else set())
        yield Step(name, kind, arguments, item, frozenset(needed), parent, branch)
        for outcome, nested in branches.items():
            yield from walk_steps(nested, name, outcome)


def list_references(value: Any) -> Iterator[str]:
    """The path of each {"Get": path} in a value."""
    if isinstance(value, dict):
        if set(value) == {"Get"} and isinstance(value["Get"], str):
            yield value["Get"]
            return
        for item in value.values():
            yield from list_references(item)
    elif isinstance(value, list):
        for item in value:
            yield from list_references(item)


def check_step(step: Step, definition: Definition) -> None:
    for name in step.depends_on:
        if name not in definition.steps:
            raise refuse(f"Step {step.name} depends on the step {name}, which is not in the pipeline.")
    for path in list_references(step.arguments):
        check_reference(step.name, path, definition)


def check_reference(name: str, path: str, definition: Definition) -> None:
    root, _, rest = path.partition(".")
    if root == "Parameters":
        if rest not in definition.parameters:
            raise refuse(f"Step {name} refers to the unknown parameter {rest}.")
    elif root == "Execution":
        if rest not in EXECUTION_VARIABLES:
            raise refuse(f"Step {name} refers to the unknown execution variable {rest}.")
    elif root == "Steps":
        other, _, inner = rest.partition(".")
        kind, _, file = inner.partition(".")
        if kind == "PropertyFiles" and file not in definition.steps[other].property_files:
            raise refuse(f"Step {name} refers to property file {file}, which step {other} does not declare.")
    else:
        raise refuse(f"Step {name} has the unknown reference {path!r}.")


def check_cycles(steps: dict[str, Step]) -> None:
    done: set[str] = set()
    while len(done) < len(steps):
        ready = {name for name, step in steps.items() if name not in done and step.depends_on <= done}
        if not ready:
            raise refuse(f"The steps {', '.join(sorted(set(steps) - done))} depend on each other in a circle.")
        done |= ready


def split_path(path: str) -> list[str | int]:
    """The pieces of `a.b['c'][0]`; raises ValueError for anything else."""
    path = path.removeprefix("$")
    rest = path if path.startswith((".", "[")) else f".{path}"
    pieces: list[str | int] = []
    while rest:
        found = PIECE.match(rest)
        if found is None:
            raise ValueError(f"{path!r} is not a path")
        pieces.append(int(found[4]) if found[4] else next(group for group in found.groups() if group is not None))
        rest = rest[found.end() :]
    return pieces
