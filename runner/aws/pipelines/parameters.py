"""The parameters of a SageMaker Pipeline: their names and texts.

A step's own parameter or source `step.name` is `step-name` there, as names have no dots; a pipeline's has its own name.
All are texts, read where the notebook runs by the type that it declares, as those of -p are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from runner.aws.settings import settings
from runner.errors import PipelineError
from runner.notebook.types import DoesNotFit, Type, read_text
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import Record, StepSpec, Value

INSTANCE, SMALL_INSTANCE = "InstanceType", "SmallInstanceType"
INSTANCES = (INSTANCE, SMALL_INSTANCE)
SMALL = "ml.t3.medium"  # of a gate with a job of its own
LONGEST_VALUE = 256  # of an environment variable (botocore: ProcessingEnvironmentValue)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class PipelineParameter(Record, frozen=True, kw_only=True):
    """A parameter of the Pipeline: `name` there, `key` as -p has it, the notebooks that take it and their types."""

    name: str
    key: str
    default: str
    types: dict[str, str | None] = {}  # notebook -> the declared type; empty for addresses and instances


def active(plan: Plan) -> list[PlannedStep]:
    return [step for step in plan.steps if not step.skip]


def parameter_key(step: str, spec: StepSpec, name: str) -> str:
    """-p's key for the notebook's parameter: the step's own where pipeline.toml gives it a value for this step."""
    return f"{step}.{name}" if name in spec.parameters else name


def pipeline_parameters(
    plan: Plan, sources: Mapping[str, str], *, jobs: Collection[str], small: bool
) -> tuple[list[PipelineParameter], dict[str, set[str]]]:
    """(the Pipeline's parameters, step -> those of its notebook that have their values from them).

    `jobs` are the first steps of jobs, `small` says whether the gate has a job of its own: these have instances.
    """
    parameters, taken = _notebook_parameters(plan)
    others = {**sources, INSTANCE: settings(plan.pipeline).instance}
    if small:
        others[SMALL_INSTANCE] = SMALL
    for step in active(plan):
        if step.name in jobs and step.spec.sagemaker.instance is not None:
            others[f"{step.name}.{INSTANCE}"] = step.spec.sagemaker.instance
    findings = [
        f"{key}: cannot be a parameter of a Pipeline; give it another name (64 characters of A-Z)."
        for key, default in others.items()
        if key in parameters or not _NAME.match(named(key)) or len(default) > LONGEST_VALUE
    ]
    if findings:
        raise PipelineError(*findings)
    parameters |= {key: PipelineParameter(name=named(key), key=key, default=text) for key, text in others.items()}
    return list(parameters.values()), taken


def _notebook_parameters(plan: Plan) -> tuple[dict[str, PipelineParameter], dict[str, set[str]]]:
    """(by key, those of the notebooks' parameters whose values a text can hold; step -> the names of its own)."""
    takers: dict[str, list[tuple[PlannedStep, str]]] = {}
    for step in active(plan):
        for name in step.parameters:
            if not step.notebook.parameters[name].secret:
                takers.setdefault(parameter_key(step.name, step.spec, name), []).append((step, name))
    parameters: dict[str, PipelineParameter] = {}
    taken: dict[str, set[str]] = {step.name: set() for step in active(plan)}
    for key, steps in takers.items():
        text = _common_text([(step.parameters[name], step.notebook.parameters[name].type) for step, name in steps])
        if text is None or not _NAME.match(named(key)):
            continue
        types = {step.spec.notebook: step.notebook.parameters[name].type for step, name in steps}
        written = {notebook: None if type_ is None else str(type_) for notebook, type_ in types.items()}
        parameters[key] = PipelineParameter(name=named(key), key=key, default=text, types=written)
        for step, name in steps:
            taken[step.name].add(name)
    return parameters, taken


def as_text(value: Value, type_: Type | None) -> str | None:
    """The text that its declared type reads as this value; None where there is none short enough."""
    if isinstance(value, str) and type_ is not None:
        text = value
    elif value is None:
        text = "null"
    else:
        text = msgspec.json.encode(value).decode()
    return text if len(text) <= LONGEST_VALUE and _reads(text, value, type_) else None


def _common_text(values: Sequence[tuple[Value, Type | None]]) -> str | None:
    """The text that each type reads as its value, such as `1` for the int 1 and the float 1.0."""
    for text in dict.fromkeys(as_text(value, type_) for value, type_ in values):
        if text is not None and all(_reads(text, value, type_) for value, type_ in values):
            return text
    return None


def _reads(text: str, value: Value, type_: Type | None) -> bool:
    try:
        again = read_text(text, type_)
    except DoesNotFit:
        return False
    return (again, type(again)) == (value, type(value))


def named(key: str) -> str:
    """The Pipeline's name for -p's key."""
    return key.replace(".", "-")


def key_of(name: str) -> str:
    """-p's key for the Pipeline's name; names of notebooks' parameters have no `-`."""
    step, dash, parameter = name.rpartition("-")
    return f"{step}.{parameter}" if dash else name


def taking(key: str, names: Sequence[str]) -> list[str]:
    """The names of the Pipeline's parameters that -p KEY sets; a plain name sets it for every step that takes it."""
    if "." in key:
        return [name for name in names if key_of(name) == key]
    return [name for name in names if name == key or name.rpartition("-")[2] == key]
