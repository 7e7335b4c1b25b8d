"""What is different between two runs, or between a commit and the working tree.

Reads snapshots and git objects; executes nothing, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runner.audit import compare, revision
from runner.audit.cells import CellChange, How, cell_changes, edits, unified
from runner.errors import PipelineError, UsageError
from runner.gate import describe
from runner.manifest import RunManifest, StepState
from runner.notebook.source import Cell, Notebook, module_source, project_modules, read_notebook
from runner.notebook.types import DoesNotFit, check
from runner.pipeline.file import load
from runner.records import FORMAT, Metric, Pipeline, Record, Rule, StepSpec, Value
from runner.run import folder as run_folder
from runner.run.store import Store


class ModuleChange(Record, frozen=True, kw_only=True):
    """One project module, by its path relative to the notebook's folder."""

    name: str
    how: How
    diff: list[str]


class StepChange(Record, frozen=True, kw_only=True):
    """The code of one step. `text_cells` counts the cells of prose that were changed, added or removed."""

    step: str
    notebook: str
    how: How
    cells: list[CellChange]
    text_cells: int
    modules: list[ModuleChange]


class Change(Record, frozen=True, kw_only=True):
    """A named value; `before` is null where it was added, `after` where it was removed."""

    name: str
    how: How
    before: Value
    after: Value


class PackageChange(Record, frozen=True, kw_only=True):
    """An installed package; `imported` where a step of either run stands on it."""

    name: str
    before: str | None
    after: str | None
    imported: bool


class DataChange(Record, frozen=True, kw_only=True):
    """An input, `step.input`, that is not the same bytes or not from the same place; sha256 is null where absent.

    `outside` where it comes from outside the run, so that it is a cause and not a consequence.
    """

    name: str
    outside: bool
    source_before: str
    source_after: str
    before: str | None
    after: str | None


class MetricChange(Record, frozen=True, kw_only=True):
    """One metric, changed or not. `overlap`: the intervals have a number in common; null where there are none."""

    name: str
    before: Metric | None
    after: Metric | None
    difference: float | None
    direction: compare.Direction
    overlap: bool | None
    not_comparable: str


class RuleChange(Record, frozen=True, kw_only=True):
    """One rule of the gate with what became of it on each side; null where it was not asked."""

    rule: str
    before: str | None
    after: str | None


class Side(Record, frozen=True, kw_only=True):
    """What is compared: a run, or a state of the files."""

    name: str
    run: compare.RunFacts | None = None


class Difference(Record, frozen=True, kw_only=True):
    """Only what differs, but for `metrics` and `rules`, which are complete. Between files all from `data` on is empty."""

    format: int = FORMAT
    before: Side
    after: Side
    steps: list[StepChange]
    parameters: list[Change]
    pipeline: list[Change]
    data: list[DataChange] = []
    environment: list[Change] = []
    packages: list[PackageChange] = []
    rules: list[RuleChange] = []
    metrics: list[MetricChange] = []


@dataclass(frozen=True)
class _Code:
    """A step's notebook (None where the file is not there) with the ids of its cells, and its modules' text."""

    notebook: Notebook | None
    ids: tuple[str, ...]
    modules: dict[str, str]

    @property
    def cells(self) -> list[tuple[Cell, str]]:
        """The cells that run, each with its id."""
        cells = self.notebook.cells if self.notebook else ()
        return [(cell, id_) for cell, id_ in zip(cells, self.ids, strict=True) if cell.number is not None]

    @property
    def prose(self) -> list[str]:
        return [cell.source.strip() for cell in (self.notebook.cells if self.notebook else ()) if cell.kind != "code"]


@dataclass(frozen=True)
class _Files:
    """One state of the files: what `runner run` would have taken, or took."""

    pipeline: Pipeline
    code: dict[str, _Code]
    parameters: dict[str, Value]  # step.name


def between_runs(before: RunManifest, after: RunManifest, store: Store) -> Difference:
    """From one run to another. Raises PipelineError where a snapshot is gone."""
    sides = [_files_of_run(manifest, store) for manifest in (before, after)]
    both = compare.compare([before, after])
    names = [compare.step_packages(manifest) for manifest in (before, after)]
    return Difference(
        before=Side(name=before.run, run=both.runs[0]),
        after=Side(name=after.run, run=both.runs[1]),
        steps=list(_steps(*sides)),
        parameters=_changes(sides[0].parameters, sides[1].parameters),
        pipeline=_changes(_flat(*sides), _flat(*reversed(sides))),
        data=list(_data(before, after)),
        environment=_changes(_machine(before), _machine(after)),
        packages=[
            PackageChange(
                name=change.name,
                before=_text(change.before),
                after=_text(change.after),
                imported=any(change.name in used for used in names),
            )
            for change in _changes(before.environment.packages, after.environment.packages)
        ],
        rules=list(_rules(before, after)),
        metrics=[_metric(row) for row in both.metrics],
    )


def since_commit(file: Path, name: str) -> Difference:
    """From a git revision to the working tree, for the pipeline in `file`.

    Raises UsageError where git, the repository, the revision or the pipeline in it is not there.
    """
    root = file.absolute().parent
    commit = revision.commit(root, name)
    with tempfile.TemporaryDirectory(prefix="diff-") as scratch:
        try:
            before = _files(revision.check_out(root, file.name, commit, Path(scratch)))
        except PipelineError as error:
            raise UsageError(f"At {name}: {str(error).replace(f'{scratch}/', '')}") from error
    now = _files(file)
    return Difference(
        before=Side(name=commit[:12] if commit.startswith(name) else f"{name} ({commit[:12]})"),
        after=Side(name="working tree"),
        steps=list(_steps(before, now)),
        parameters=_changes(before.parameters, now.parameters),
        pipeline=_changes(_flat(before, now), _flat(now, before)),
    )


def _steps(before: _Files, now: _Files) -> Iterator[StepChange]:
    """The steps whose code differs, in the order of `now`; then those that are gone."""
    nothing = _Code(None, (), {})
    for name in dict.fromkeys([*now.code, *before.code]):
        old, new = before.code.get(name, nothing), now.code.get(name, nothing)
        how: How = "added" if name not in before.code else "removed" if name not in now.code else "changed"
        cells, text_cells = cell_changes(old.cells, new.cells), edits(old.prose, new.prose)
        modules = [
            ModuleChange(
                name=change.name, how=change.how, diff=unified(_text(change.before) or "", _text(change.after) or "")
            )
            for change in _changes(old.modules, new.modules)
        ]
        if cells or text_cells or modules or how != "changed":
            spec = (now if name in now.code else before).pipeline.steps[name]
            yield StepChange(
                step=name, notebook=spec.notebook, how=how, cells=cells, text_cells=text_cells, modules=modules
            )


def _changes(before: Mapping[str, Value], now: Mapping[str, Value]) -> list[Change]:
    found: list[Change] = []
    for name in sorted({*before, *now}):
        how: How = "added" if name not in before else "removed" if name not in now else "changed"
        if how != "changed" or not compare.equal(before[name], now[name]):
            found.append(Change(name=name, how=how, before=before.get(name), after=now.get(name)))
    return found


def _flat(files: _Files, other: _Files) -> dict[str, Value]:
    """pipeline.toml as dotted keys, without parameters and without the steps that `other` lacks."""
    raw: dict[str, Any] = msgspec.to_builtins(files.pipeline)
    raw.pop("parameters")
    raw["steps"] = {
        name: {key: value for key, value in step.items() if key != "parameters"}
        for name, step in raw["steps"].items()
        if name in other.code
    }
    rules: dict[str, list[str]] = {}
    for rule in files.pipeline.gate:
        rules.setdefault(rule.metric, []).append(_rule_text(rule))
    raw["gate"] = {metric: "; ".join(texts) for metric, texts in rules.items()}
    return dict(_leaves(raw, ""))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Value]]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield from _leaves(part, f"{prefix}{key}.")
        elif part not in (None, {}, []):
            yield f"{prefix}{key}", part


def _rule_text(rule: Rule) -> str:
    return describe(rule) + (f" when {rule.when}" if rule.when else "")


def _files_of_run(manifest: RunManifest, store: Store) -> _Files:
    code: dict[str, _Code] = {}
    parameters: dict[str, Value] = {}
    for state in manifest.steps:
        folder = run_folder.step_folder(store, manifest.run, state.name)
        modules = {
            name.removeprefix(f"{run_folder.MODULES}/"): folder / name
            for name in state.snapshot
            if name.startswith(f"{run_folder.MODULES}/")
        }
        code[state.name] = _code(folder / run_folder.SOURCE, modules)
        spec = manifest.pipeline.steps[state.name]
        parameters |= _resolved(state.name, spec, code[state.name].notebook, state.parameters)
    return _Files(manifest.pipeline, code, parameters)


def _files(file: Path) -> _Files:
    """The pipeline in the file with its notebooks. Raises PipelineError."""
    pipeline = load(file)
    code: dict[str, _Code] = {}
    parameters: dict[str, Value] = {}
    for name, spec in pipeline.steps.items():
        path = file.parent / spec.notebook
        code[name] = _code(path) if path.exists() else _Code(None, (), {})
        parameters |= _resolved(name, spec, code[name].notebook, {**pipeline.parameters, **spec.parameters})
    return _Files(pipeline, code, parameters)


def _code(path: Path, modules: Mapping[str, Path] | None = None) -> _Code:
    notebook = read_notebook(path)
    ids = tuple(str(cell.get("id") or "") for cell in json.loads(path.read_bytes())["cells"])
    found = project_modules(notebook) if modules is None else modules
    return _Code(notebook, ids, {name: module_source(file) for name, file in found.items()})


def _resolved(
    step: str, spec: StepSpec, notebook: Notebook | None, given: Mapping[str, Value]
) -> Iterator[tuple[str, Value]]:
    """`step.name` with its value, of every declared parameter; a default that is not a literal is left to the code."""
    for name, declared in (notebook.parameters if notebook else {}).items():
        if name in spec.inputs or name in spec.outputs:
            continue
        if name in given:
            with contextlib.suppress(DoesNotFit):  # `runner check` says so; here it is still what is written
                yield f"{step}.{name}", check(given[name], declared.type)
                continue
            yield f"{step}.{name}", given[name]
        elif declared.has_literal_default:
            yield f"{step}.{name}", declared.default


def _data(before: RunManifest, after: RunManifest) -> Iterator[DataChange]:
    """Inputs of the steps that both runs have started."""
    steps = {state.name: state for state in before.steps}
    for state in after.steps:
        earlier = steps.get(state.name)
        if earlier is None or earlier.job is None or state.job is None:
            continue
        old, new = _read(earlier), _read(state)
        for name in sorted({*old, *new}):
            was, is_ = old.get(name, ("", None)), new.get(name, ("", None))
            if was != is_:
                key = f"{state.name}.{name}"
                outside = key in before.sources or key in after.sources or "/" in name
                yield DataChange(
                    name=key,
                    outside=outside,
                    source_before=was[0],
                    source_after=is_[0],
                    before=was[1],
                    after=is_[1],
                )


def _read(state: StepState) -> dict[str, tuple[str, str | None]]:
    """Input, or undeclared file that was read -> (where from, sha256)."""
    assert state.job is not None
    found = {
        name: (fact.source, fact.artifact.sha256 if fact.artifact else None) for name, fact in state.job.inputs.items()
    }
    opened = state.result.opened if state.result else {}
    return found | {f"./{name}": ("not declared as an input", fact.sha256) for name, fact in opened.items()}


def _machine(manifest: RunManifest) -> dict[str, Value]:
    made = manifest.environment
    facts: dict[str, Value] = {name: getattr(made, name) for name in ("implementation", "python", "platform", "cpus")}
    return facts | dict(made.variables)


def _rules(before: RunManifest, after: RunManifest) -> Iterator[RuleChange]:
    sides = [
        {_rule_text(result.rule): result.outcome for result in manifest.verdict.rules} if manifest.verdict else {}
        for manifest in (before, after)
    ]
    for text in dict.fromkeys([*sides[1], *sides[0]]):
        yield RuleChange(rule=text, before=sides[0].get(text), after=sides[1].get(text))


def _metric(row: compare.MetricRow) -> MetricChange:
    before, after = row.values
    both = before is not None and after is not None
    why = next((why for why in row.not_comparable if why), "")
    return MetricChange(
        name=row.name,
        before=before,
        after=after,
        difference=after.value - before.value if before and after else None,
        direction=compare.direction(before, after) if before and after and not why else "unknown",
        overlap=compare.overlap(before, after) if before and after else None,
        not_comparable=why if both else "",
    )


def _text(value: Value) -> str | None:
    return value if isinstance(value, str) else None
