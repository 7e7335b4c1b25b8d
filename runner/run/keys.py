"""What a step's result depends on, and in words why two such keys differ. Reads only modules."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner import __version__
from runner.content import file_fact
from runner.errors import counted
from runner.notebook.source import PARAMETERS, Cell, Notebook, imported_names, module_source, python_source
from runner.pipeline.file import APPROVED
from runner.pipeline.plan import PlannedStep
from runner.records import CellFact, InputFact, Key, StepKey, Value
from runner.run import editable
from runner.run.packages import closure, provided
from runner.run.ports import Runtime

# what the modules of this package that a notebook imports stand on; all that this package requires would be too much
OURS = {"runner.scraps": {"scrapbook"}, "runner.model": {"xgboost", "pandas"}}
MOST_PACKAGES, NAMED_PACKAGES = 5, 3  # up to 5 that differ are all named; of more, the first 3
SINGLE = {"installed": "was installed", "removed": "was removed", "changed": "changed"}
SHORT = 12  # items of two lists that a sentence shows
CODE = "code"  # in the version of an editable package: the hash of its code follows
# packages that pandas imports only for such a file
PANDAS = re.compile(r"\b(?:read|to)_(parquet|feather|orc|excel|hdf|sql|html|xml|markdown)")
READERS = {
    "parquet": {"pyarrow"},
    "feather": {"pyarrow"},
    "orc": {"pyarrow"},
    "excel": {"openpyxl", "xlsxwriter", "python_calamine"},
    "hdf": {"tables"},
    "html": {"lxml", "bs4"},
    "markdown": {"tabulate"},
    "sql": {"sqlalchemy"},
    "xml": {"lxml"},
}


def step_key(
    step: PlannedStep,
    inputs: Mapping[str, InputFact],
    *,
    index_file: Path,
    runtime: Runtime | None = None,
    keys: Sequence[Key] = (),
) -> StepKey:
    """The key of a step with these inputs, here or on `runtime`; without prose, outputs, metadata and thread counts.

    A mapped step's `keys` stand in it as the value of their parameter.
    """
    if runtime is None:
        packages = packages_of(step, index_file=index_file)
        runtime = Runtime(f"{platform.python_implementation()} {platform.python_version()}", packages)
    return StepKey(
        code=[_code(cell, step.notebook) for cell in step.notebook.code],
        parameters=_resolved(step) | {parameter: list(keys) for parameter in step.spec.map},
        inputs={name: fact.artifact.sha256 if fact.artifact else "" for name, fact in sorted(inputs.items())},
        modules={name: file_fact(path).sha256 for name, path in step.modules.items()},
        outputs=dict(sorted(step.spec.outputs.items())),
        python=runtime.python,
        packages={**runtime.packages, "runner": __version__},
    )


def imports(step: PlannedStep) -> set[str]:
    """Every module that the notebook and its project modules import, and the packages that these use."""
    sources = [python_source(cell) for cell in step.notebook.code]
    sources += [module_source(path) for path in step.modules.values()]
    names = set().union(*map(imported_names, sources))
    names = names.union(*map(_readers, sources))
    return names.union(*(under for ours, under in OURS.items() if any(name.startswith(ours) for name in names)))


@functools.lru_cache(maxsize=1024)
def _readers(source: str) -> frozenset[str]:
    return frozenset().union(*(READERS[kind] for kind in PANDAS.findall(source)))


def packages_of(step: PlannedStep, *, index_file: Path) -> dict[str, str]:
    """The versions of the packages that the step imports with all they require, and the code of those without one."""
    versions = closure(imports(step), index_file=index_file)
    for name, place in written(step, index_file=index_file).items():
        if place is not None:
            versions[name] = f"{versions.get(name, '')} {CODE} {editable.digest(place)}".strip()
    return versions


def written(step: PlannedStep, *, index_file: Path) -> dict[str, Path | None]:
    """The step's imports that no installed package provides, with the place of their code."""
    own = {relative.partition("/")[0].removesuffix(".py") for relative in step.modules}
    return editable.places(imports(step), known=own | provided(index_file=index_file))


def of_one(key: StepKey, parameter: str, value: Key) -> StepKey:
    """The key of one key of a mapped step, from that of the whole step."""
    return msgspec.structs.replace(key, parameters={**key.parameters, parameter: value})


def digest(key: StepKey) -> str:
    """The key's hash, as a file name."""
    return hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()


def differences(
    before: StepKey,
    now: StepKey,
    sources: Mapping[str, str],
    objects: Callable[[str, str], str | None] = lambda *_: None,
) -> Iterator[str]:
    """Why `now` is not `before`: "cell [7] changed", "max_depth 5 → 6", "input source changed", "numpy 2.4 → 2.5".

    `sources` says where each input comes from, `objects` how two listings differ, by their hashes.
    """
    yield from _cells(before, now)
    yield from _values(before.parameters, now.parameters)
    for name in sorted({*before.inputs, *now.inputs}):
        old, new = before.inputs.get(name), now.inputs.get(name)
        if old != new:
            if not old and sources.get(name, "").startswith(APPROVED):
                yield "an approved model now exists to compare with"
                continue
            how = "is there now" if not old else "is gone" if not new else "changed"
            changed_objects = objects(old, new) if old and new else None
            if changed_objects is not None:
                yield f"input {name}: {changed_objects}"
                continue
            where = sources.get(name, "")
            yield f"input {name} {how}" + (f" ({where})" if "." in where and "/" not in where else "")
    yield from _files(before.modules, now.modules)
    if before.outputs != now.outputs:
        yield "the declared outputs changed"
    if before.python != now.python:
        yield f"{before.python} → {now.python}"
    yield from _packages(before.packages, now.packages)


def _packages(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each package that differs; for many, one with their number and the first three."""
    groups = {
        "installed": [f"{name} {now[name]}" for name in sorted({*now} - {*before})],
        "removed": sorted({*before} - {*now}),
        "changed": [
            f"the code of {name}"
            if CODE in before[name] and CODE in now[name]
            else f"{name} {before[name]} → {now[name]}"
            for name in sorted({*before} & {*now})
            if before[name] != now[name]
        ],
    }
    many = sum(map(len, groups.values())) > MOST_PACKAGES
    for change, names in groups.items():
        if many and len(names) > NAMED_PACKAGES:
            first = ", ".join(names[:NAMED_PACKAGES])
            yield f"{len(names)} packages were {change} since the last run: {first} …"
        else:
            yield from (name if "→" in name else f"{name} {SINGLE[change]}" for name in names)


def _cells(before: StepKey, now: StepKey) -> Iterator[str]:
    old, new = [cell.sha256 for cell in before.code], [cell.sha256 for cell in now.code]
    if old == new:
        return
    if len(old) == len(new):
        changed = [f"[{number}]" for number, (a, b) in enumerate(zip(old, new, strict=True), 1) if a != b]
        yield f"cell{'s' if len(changed) > 1 else ''} {', '.join(changed)} changed"
        return
    added = [f"[{number}]" for number, sha in enumerate(new, 1) if sha not in old]
    removed = sum(sha not in new for sha in old)
    if added:
        yield f"cell{'s' if len(added) > 1 else ''} {', '.join(added)} {'changed or added' if removed else 'added'}"
    elif removed:
        yield f"{counted(removed, 'cell')} removed"
    else:
        yield "cells were moved or repeated"


def _values(before: Mapping[str, Value], now: Mapping[str, Value]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in before:
            yield f"parameter {name} added"
        elif name not in now:
            yield f"parameter {name} removed"
        elif before[name] != now[name] or type(before[name]) is not type(now[name]):
            if isinstance(old := before[name], list) and isinstance(new := now[name], list) and len(old + new) > SHORT:
                yield f"{name} {_list_change(old, new)}"
            else:
                yield f"{name} {before[name]!r} → {now[name]!r}"


def _list_change(before: list[Any], now: list[Any]) -> str:
    old, new = {repr(item) for item in before}, {repr(item) for item in now}
    counts = {f"{len(new - old):,} added": len(new - old), f"{len(old - new):,} removed": len(old - new)}
    return f"({', '.join(words for words, count in counts.items() if count) or 'in another order'})"


def _files(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield f"{name} {'added' if name not in before else 'removed' if name not in now else 'changed'}"


def _resolved(step: PlannedStep) -> dict[str, Value]:
    """Declared parameters that are neither inputs nor outputs, with the values they will have."""
    values: dict[str, Any] = dict(step.parameters)  # also those that a cell in another language does not declare
    for name, declared in step.notebook.parameters.items():
        if name in step.spec.inputs or name in step.spec.outputs:
            continue
        literal = declared.default if declared.has_literal_default else declared.expression
        values[name] = step.parameters.get(name, literal)
    return dict(sorted(values.items()))


def _code(cell: Cell, notebook: Notebook) -> CellFact:
    """The cell's code; of the parameters cell only what is not a parameter, as parameters count by value."""
    if PARAMETERS not in cell.tags:
        return CellFact(sha256=_digest(cell.source), first_line=cell.first_line)
    return CellFact(sha256=_digest(notebook.rest) if notebook.rest else "", first_line="")


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()
