"""What of a pipeline is a parameter of its SageMaker Pipeline: under which name, as which text.

A step's own parameter or source `step.name` is `step-name` there, as names have no dots; a pipeline's has its own name.
All are texts, read where the notebook runs by the type it declares, as -p's are.
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
    """A parameter of the Pipeline: `name` there, `key` as -p has it, who takes it and how its text is read."""

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
    """The Pipeline's parameters; and for each step which of its notebook's have their values from them. `jobs`
    are the steps that begin one, `small` whether the gate has one of its own: these have instances.
    """
    takers: dict[str, list[tuple[PlannedStep, str]]] = {}
    for step in active(plan):
        for name in step.parameters:
            if not step.notebook.parameters[name].secret:
                key = parameter_key(step.name, step.spec, name)
                takers.setdefault(key, []).append((step, name))
    found: dict[str, PipelineParameter] = {}
    taken: dict[str, set[str]] = {step.name: set() for step in active(plan)}
    for key, those in takers.items():
        text = _common_text([(step.parameters[name], step.notebook.parameters[name].type) for step, name in those])
        if text is None or not _NAME.match(named(key)):
            continue
        types = {step.spec.notebook: step.notebook.parameters[name].type for step, name in those}
        written = {notebook: None if type_ is None else str(type_) for notebook, type_ in types.items()}
        found[key] = PipelineParameter(name=named(key), key=key, default=text, types=written)
        for step, name in those:
            taken[step.name].add(name)
    others = {**sources, INSTANCE: settings(plan.pipeline).instance}
    if small:
        others[SMALL_INSTANCE] = SMALL
    for step in active(plan):
        if step.name in jobs and step.spec.sagemaker.instance is not None:
            others[f"{step.name}.{INSTANCE}"] = step.spec.sagemaker.instance
    findings = []
    for key, default in others.items():
        name = named(key)
        if key in found or not _NAME.match(name) or len(default) > LONGEST_VALUE:
            findings.append(f"{key}: cannot be a parameter of a Pipeline; give it another name (64 characters of A-Z).")
        found[key] = PipelineParameter(name=name, key=key, default=default)
    if findings:
        raise PipelineError(*findings)
    return list(found.values()), taken


def as_text(value: Value, type_: Type | None) -> str | None:
    """The text that is read back as this value by its declared type; None where there is none short enough."""
    if isinstance(value, str) and type_ is not None:
        text = value
    elif value is None:
        text = "null"
    else:
        text = msgspec.json.encode(value).decode()
    return text if len(text) <= LONGEST_VALUE and _reads(text, value, type_) else None


def _common_text(values: Sequence[tuple[Value, Type | None]]) -> str | None:
    """The text that each of them is read from by its type: `1` for the int 1 and the float 1.0."""
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
    """Those of the Pipeline's parameters that -p KEY sets: as in a run, a plain name goes to every step that takes it."""
    if "." in key:
        return [name for name in names if key_of(name) == key]
    return [name for name in names if name == key or name.rpartition("-")[2] == key]
