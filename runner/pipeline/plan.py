"""What exactly is to run: order, resolved parameters and sources, or every finding that prevents it.

`runner check` prints the findings of `plan`, and `runner run` starts from its result. Reads the file and the notebooks;
starts nothing, writes nothing.
"""

from __future__ import annotations

import graphlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from runner.errors import PipelineError, counted
from runner.notebook.parameters import Declared
from runner.notebook.source import Notebook, project_modules, read_notebook
from runner.notebook.strip_outputs import INJECTED
from runner.notebook.types import DoesNotFit, Type, check, read_text
from runner.pipeline import serving_image
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import APPROVED, AT_TARGET, examine, is_address, is_path, nearest
from runner.pipeline.registering import gated, needs_of, outlook, registers, registers_itself
from runner.records import Pipeline, StepSpec, Value

ENVIRONMENT = "env:"
LEFTOVER_TAGS = {INJECTED, "runner-debug"}  # papermill's cell, and that of `runner debug`


@dataclass(frozen=True)
class PlannedStep:
    """A step as it will run: `parameters` are those given, by type; the cell's defaults stay in the cell."""

    name: str
    spec: StepSpec
    notebook: Notebook
    parameters: dict[str, Value]
    modules: dict[str, Path] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    needs_verdict: bool = False  # runs only after a passing gate
    registers: bool = False  # calls runner.model.register, as far as its code says
    skip: str = ""  # why it does not run this time

    @property
    def secrets(self) -> dict[str, str]:
        """Secret parameter -> the environment variable that has its value."""
        declared = self.notebook.parameters
        secret = {name: value for name, value in self.parameters.items() if name in declared and declared[name].secret}
        return {name: str(value).removeprefix(ENVIRONMENT) for name, value in secret.items()}


@dataclass(frozen=True)
class Plan:
    file: Path
    pipeline: Pipeline  # sources from -p already in place
    steps: tuple[PlannedStep, ...]  # all of them, in an order that respects every need
    judges: bool  # every gate metric's step is among them
    warnings: tuple[str, ...]

    @property
    def root(self) -> Path:
        return self.file.parent

    @property
    def registering(self) -> list[str]:
        """The steps that register, as far as their code says."""
        return [step.name for step in self.steps if step.registers]

    @property
    def registers_itself(self) -> bool:
        """Whether a run that passes registers the model without a step; all that it takes for that runs."""
        model = self.pipeline.model
        if (
            model is None
            or not model.register
            or not self.judges
            or not registers_itself(self.pipeline, self.registering)
        ):
            return False
        return any(step.name == model.from_.partition(".")[0] and not step.skip for step in self.steps)

    @property
    def summary(self) -> str:
        """One line for whoever has just had it checked."""
        rules = len(self.pipeline.gate)
        order = " → ".join(step.name for step in self.steps)
        return f"{self.file.name} is sound: {order}; {counted(rules, 'gate rule')}"


def plan(
    file: Path,
    *,
    profile: str | None = None,
    overrides: Mapping[str, str] | None = None,
    targets: Sequence[str] = (),
    secrets_here: bool = True,
) -> Plan:
    """The plan for the pipeline in `file`. `overrides` are -p's texts; paths in them are from the working folder.

    `secrets_here`: the variables that have the values of secrets are those of this process.

    Raises PipelineError with every finding.
    """
    pipeline, findings = examine(file, profile)
    notebooks = _notebooks(pipeline, file.parent, findings)
    texts, pipeline = _overridden(pipeline, notebooks, overrides or {}, findings)
    modules = {name: project_modules(notebook) for name, notebook in notebooks.items()}
    registering = {name for name, notebook in notebooks.items() if registers(notebook, modules[name].values())}
    waiting = gated(pipeline, registering)
    graph = {name: needs_of(name, pipeline, waiting) for name in pipeline.steps}
    order, wanted = _order(graph, pipeline, targets, findings)
    steps: list[PlannedStep] = []
    warnings: list[str] = []
    for name in (name for name in order if name in notebooks):
        values = _values(
            name, pipeline, notebooks[name], texts.get(name, {}), findings, warnings, file.name, secrets_here
        )
        skip = ""
        if name in wanted:
            findings += _sources(name, pipeline.steps[name], file.parent)
        else:
            skip = f"the profile {profile} skips it" if name in pipeline.skip else "not asked for"
        steps.append(
            PlannedStep(
                name=name,
                spec=pipeline.steps[name],
                notebook=notebooks[name],
                parameters=values,
                modules=modules[name],
                needs=tuple(graph[name]),
                needs_verdict=name in waiting,
                registers=name in registering,
                skip=skip,
            )
        )
    declared = {key for notebook in notebooks.values() for key in notebook.parameters}
    if len(notebooks) == len(pipeline.steps) and not any(notebook.open for notebook in notebooks.values()):
        findings += [
            f"{file.name}: parameters.{key}: no notebook declares it{nearest(key, declared)}"
            for key in pipeline.parameters
            if key not in declared
        ]
    if findings:
        raise PipelineError(*dict.fromkeys(findings))
    judges = bool(pipeline.gate) and {rule.metric.partition(".")[0] for rule in pipeline.gate} <= wanted
    if pipeline.gate and all(rule.when for rule in pipeline.gate):
        warnings.append(f"{file.name}: every gate rule has `when`; where none is judged, the verdict is an error.")
    sentences = (*outlook(pipeline, registering), *serving_image.outlook(pipeline, notebooks))
    warnings += [f"{file.name}: {sentence}" for sentence in sentences]
    return Plan(file=file, pipeline=pipeline, steps=tuple(steps), judges=judges, warnings=tuple(warnings))


def _notebooks(pipeline: Pipeline, root: Path, findings: list[str]) -> dict[str, Notebook]:
    notebooks: dict[str, Notebook] = {}
    for name, step in pipeline.steps.items():
        path = root / step.notebook
        try:
            notebook = notebooks[name] = read_notebook(path)
        except PipelineError as error:
            findings += [f"steps.{name}: {finding}" for finding in error.findings]
            continue
        findings += _untakable(notebook, step)
        findings += _leftover_cells(step.notebook, notebook)
        if (path.parent / "runner.py").exists() or (path.parent / "runner" / "__init__.py").exists():
            findings.append(f"{step.notebook}: a `runner` module beside it would shadow the package; rename it.")
    return notebooks


def _untakable(notebook: Notebook, step: StepSpec) -> Iterator[str]:
    """Why the notebook cannot take any values at all, whatever their names are."""
    takes = bool(step.inputs or step.outputs or step.parameters)
    if notebook.tagging:
        yield f"{step.notebook}: {notebook.tagging}"
    elif not notebook.parameter_cells and takes:
        yield f"{step.notebook}: no code cell is tagged `parameters`; it needs exactly one."
    if notebook.language == "python" or not notebook.parameter_cells:
        return
    for parameter in notebook.parameters.values():
        if parameter.secret:
            yield (
                f"{step.notebook}: `{parameter.name}` is secret, and secrets are handed to Python notebooks only. "
                "Read the environment variable in the notebook instead."
            )
    if takes and not _is_translated(notebook):
        yield f"{step.notebook}: papermill cannot hand parameters to a notebook written in {notebook.language}."


def _is_translated(notebook: Notebook) -> bool:
    from papermill.exceptions import PapermillException  # half a second, and only for other languages than Python
    from papermill.translators import papermill_translators

    try:
        papermill_translators.find_translator(notebook.kernel_name, notebook.language)
    except PapermillException:
        return False
    return True


def _leftover_cells(file: str, notebook: Notebook) -> Iterator[str]:
    for cell in notebook.cells:
        for tag in LEFTOVER_TAGS & set(cell.tags):
            where = f"cell [{cell.number}]" if cell.number is not None else "a cell"
            yield (
                f"{file}: {where}, `{cell.first_line}`, is tagged `{tag}`: an earlier execution left it, and it "
                "would set other values than those that are recorded. Delete the cell."
            )


def _overridden(
    pipeline: Pipeline, notebooks: Mapping[str, Notebook], overrides: Mapping[str, str], findings: list[str]
) -> tuple[dict[str, dict[str, str]], Pipeline]:
    """-p's texts by step and parameter; and the pipeline with the sources that -p replaces."""
    texts: dict[str, dict[str, str]] = {}
    steps = dict(pipeline.steps)
    for key, text in overrides.items():
        step, dot, name = key.partition(".")
        if not dot:
            takers = [other for other, notebook in notebooks.items() if _is_parameter(key, steps[other], notebook)]
            findings += _not_plain(key, takers, steps, notebooks)
            for other in takers:
                texts.setdefault(other, {}).setdefault(key, text)
        elif step not in steps:
            findings.append(f"-p {key}: there is no step `{step}`{nearest(step, steps)}")
        elif name in steps[step].inputs and text.startswith("http://") and not is_address(text):
            findings.append(
                f"-p {key}: plain http is for this machine alone, without user and password, and {public(text)} is "
                "another address: use https://…"
            )
        elif name in steps[step].inputs:
            as_written = is_address(text) or not text or text.startswith((APPROVED, *AT_TARGET))
            source = text if as_written else str(Path(text).absolute())
            spec = msgspec.structs.replace(steps[step].inputs[name], from_=source)
            steps[step] = msgspec.structs.replace(steps[step], inputs={**steps[step].inputs, name: spec})
        elif name in steps[step].outputs:
            findings.append(f"-p {key}: is an output; the runner decides where it is written.")
        elif step in notebooks and name not in notebooks[step].parameters and not notebooks[step].open:
            valid = set(notebooks[step].parameters) - set(steps[step].outputs)
            findings.append(f"-p {key}: {steps[step].notebook} does not declare `{name}`{nearest(name, valid)}")
        else:
            texts.setdefault(step, {})[name] = text
    return texts, msgspec.structs.replace(pipeline, steps=steps)


def _not_plain(
    key: str, takers: Sequence[str], steps: Mapping[str, StepSpec], notebooks: Mapping[str, Notebook]
) -> Iterator[str]:
    """Why -p's key needs a step's name before it, or is no parameter of any."""
    inputs = [step for step in steps if key in steps[step].inputs]
    if inputs:
        yield f"-p {key}: is an input; write -p {inputs[0]}.{key}=…"
    elif not takers:
        valid = {name for step, book in notebooks.items() for name in book.parameters if name not in steps[step].inputs}
        yield f"-p {key}: no notebook declares it{nearest(key, valid)}"


def _is_parameter(name: str, spec: StepSpec, notebook: Notebook) -> bool:
    declared = name in notebook.parameters or (notebook.open and name in spec.parameters)
    return declared and name not in spec.inputs and name not in spec.outputs


def _order(
    graph: Mapping[str, list[str]], pipeline: Pipeline, targets: Sequence[str], findings: list[str]
) -> tuple[list[str], set[str]]:
    """All steps, needs (`graph`) first and otherwise in the file's order; and those that are to run."""
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        findings.append(f"the steps form a cycle: {' → '.join(error.args[1])}.")
        return [], set()
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted({*ready, *sorter.get_ready()}, key=list(pipeline.steps).index)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    for name in targets:
        if name not in graph:
            findings.append(f"there is no step `{name}`{nearest(name, graph)}")
    wanted: set[str] = set()
    pending = [name for name in targets if name in graph] if targets else list(graph)
    pending = [name for name in pending if name not in pipeline.skip]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += graph[name]
    for name in order:
        skipped = [need for need in graph[name] if need in pipeline.skip]
        if name in wanted and skipped:
            findings.append(f"step {name} needs {skipped[0]}, which the profile skips.")
    return order, wanted


def _values(
    name: str,
    pipeline: Pipeline,
    notebook: Notebook,
    texts: Mapping[str, str],
    findings: list[str],
    warnings: list[str],
    file: str,
    secrets_here: bool,
) -> dict[str, Value]:
    """The step's parameters by name: the file's values for all steps, then those for this one, then -p's `texts`."""
    spec = pipeline.steps[name]
    declared = {**notebook.parameters}
    if notebook.open:  # a parameter that its cell does not show is handed over as it is
        declared = {**{key: Declared(key, None, None, False) for key in (*spec.parameters, *texts)}, **declared}
    for role, keys in (("inputs", spec.inputs), ("outputs", spec.outputs), ("parameters", spec.parameters)):
        findings += [finding for key in keys for finding in _role(name, role, key, notebook, spec)]
    findings += [
        f"{spec.notebook}: `{key}` is secret, so its default must be empty text."
        for key, parameter in declared.items()
        if parameter.secret and _is_parameter(key, spec, notebook) and parameter.default not in ("", None)
    ]
    tables = ((pipeline.parameters, "parameters"), (spec.parameters, f"steps.{name}.parameters"))
    assignments: list[tuple[str, str, Any, Callable[[Any, Type | None], Value]]] = [
        (f"{file}: {where}.{key}", key, value, check)
        for table, where in tables
        for key, value in table.items()
        if key in declared and _is_parameter(key, spec, notebook)
    ]
    assignments += [(f"-p {key}", key, text, read_text) for key, text in texts.items()]
    values: dict[str, Value] = {}
    for where, key, value, convert in assignments:
        parameter = declared[key]
        if parameter.secret:
            findings += _secret(value, where, secrets_here)
            values[key] = value
            continue
        try:
            values[key] = _in_range(convert(value, parameter.type), parameter)
        except DoesNotFit as error:
            findings.append(f"{where}: {error}, {parameter.origin(spec.notebook)}")
            continue
        if convert is check:
            warnings += _drift(parameter, values[key], spec.notebook, file)
    warnings += [
        f"{spec.notebook}: the value of `{key}` looks like it lets one in, and a run records it; mark it `# secret`."
        for key, value in values.items()
        if isinstance(value, str) and "://" in value and not is_public(value)
    ]
    return dict(sorted(values.items()))


def _in_range(value: Value, declared: Declared) -> Value:
    if outside := declared.outside(value):
        raise DoesNotFit(outside)
    return value


def _secret(value: Value, where: str, here: bool) -> Iterator[str]:
    """A secret's value stays in the environment: here it would be in the shell's history and the run's manifest."""
    variable = value.removeprefix(ENVIRONMENT) if isinstance(value, str) and value.startswith(ENVIRONMENT) else ""
    if not variable.isidentifier():
        yield f"{where}: is secret; write {ENVIRONMENT}NAME, the environment variable that has its value."
    elif here and variable not in os.environ:
        yield f"{where}: there is no environment variable {variable}."


def _role(step: str, role: str, key: str, notebook: Notebook, spec: StepSpec) -> Iterator[str]:
    where = f"steps.{step}.{role}.{key}"
    if notebook.parameter_cells != 1:
        return
    if not key.isidentifier():
        yield f"{where}: is not a Python name."  # papermill writes names into the notebook as code
    elif key not in notebook.parameters:
        if not notebook.open:
            near = nearest(key, notebook.parameters)
            yield f"{where}: {spec.notebook} does not declare it in its parameters cell{near}"
    elif (type_ := notebook.parameters[key].type) is not None and type_.kind == "unsupported":
        yield f"{where}: declared as {type_}, which papermill cannot hand over; declare it `str` and convert it below."
    elif role != "parameters" and type_ is not None and type_.kind != "str":
        yield f"{where}: declared as {type_}; a path arrives as text, so declare it `str`."
    if [key in names for names in (spec.inputs, spec.outputs, spec.parameters)].count(True) > 1:
        yield f"{where}: `{key}` has more than one role; one name is an input, an output or a parameter."


def _drift(declared: Declared, value: Value, notebook: str, file: str) -> Iterator[str]:
    if declared.has_literal_default and declared.default != value:
        name = PurePosixPath(notebook).name
        yield f"{declared.name} is {declared.default!r} in {name}, {value!r} in {file}; this run uses {value!r}."


def _sources(name: str, spec: StepSpec, root: Path) -> Iterator[str]:
    """What is wrong with local sources, and addresses that the notebook must not be given."""
    for key, source in spec.inputs.items():
        if source.as_ == "uri" and not is_public(source.from_):
            yield (
                f"steps.{name}.inputs.{key}: {public(source.from_)} is signed or has a password, and with "
                '`as = "uri"` it would stand in the executed notebook. Have it fetched (without `as`), or make it a '
                "parameter marked `# secret`."
            )
        if not is_path(source.from_):
            continue
        path = root / Path(source.from_).expanduser()
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if not source.optional:
                yield f"steps.{name}.inputs.{key}: there is no file or folder {path}."
        except OSError as error:  # a loop of links among them
            yield f"steps.{name}.inputs.{key}: {path}: {error.strerror}."
        else:
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                yield f"steps.{name}.inputs.{key}: {path} is neither a file nor a folder."
