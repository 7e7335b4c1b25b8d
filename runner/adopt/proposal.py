"""Existing notebooks as the steps of a pipeline: what would be written, and what cannot be seen.

The order follows from who reads what another writes. Nothing is executed; only `write` writes.
"""

from __future__ import annotations

import graphlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from runner.adopt.copy import Copy, copied
from runner.adopt.found import File, Found, look
from runner.adopt.source import read_source
from runner.adopt.toml import is_short, pipeline_toml
from runner.content import atomic_write
from runner.errors import PipelineError, Refused, counted
from runner.notebook.source import Cell, cells_of, project_modules
from runner.pipeline.file import RESERVED_STEPS

LONGEST_STEP = 31


@dataclass(frozen=True)
class Step:
    """One notebook as a step; `metrics` say which way is better, "" where it is not known."""

    name: str
    original: Path
    notebook: str  # of the copy, relative to pipeline.toml
    copy: Copy
    inputs: dict[str, str]
    outputs: dict[str, str]
    parameters: dict[str, Any]
    metrics: dict[str, str]
    notes: tuple[str, ...]
    modules: dict[str, Path] = field(default_factory=dict)  # by the copy's path, relative to pipeline.toml


@dataclass(frozen=True)
class Proposal:
    """What adopting would write below `root`: copies, modules, pipeline.toml."""

    root: Path
    file: str
    steps: tuple[Step, ...]  # in their order
    toml: str

    @property
    def contents(self) -> dict[str, bytes]:
        """Every file, by its path relative to `root`."""
        files = {step.notebook: step.copy.content for step in self.steps}
        modules = {name: path.read_bytes() for step in self.steps for name, path in step.modules.items()}
        return {**files, **modules, self.file: self.toml.encode()}


def propose(notebooks: Sequence[Path], file: Path, *, folder: str = "notebooks") -> Proposal:
    """The steps that the notebooks become, for a pipeline file that is not there yet; copies go into `folder`.

    Raises PipelineError with a sentence for each notebook that cannot become a step, and for what exists already.
    """
    sources, findings = [], [*_doubles(notebooks)]
    for path in notebooks:
        try:
            sources.append(read_source(path))
        except PipelineError as error:
            findings += error.findings
    target = (file.absolute().parent / folder).resolve()
    findings += [
        f"{place} exists; nothing is overwritten. {remedy}"
        for place, remedy in (
            (file, "Name another with --pipeline FILE."),
            *((Path(folder) / path.name, "Choose another folder with --to.") for path in notebooks),
        )
        if (file.absolute().parent / place).exists()
    ]
    if findings:
        raise PipelineError(*dict.fromkeys(findings))
    names = _step_names([source.path for source in sources])
    found = dict(zip(names, map(look, sources), strict=True))
    made_by = _makers(found)
    order = _order(found, made_by)
    steps = [
        _step(name, found[name], found, made_by, root=file.absolute().parent.resolve(), target=target) for name in order
    ]
    return Proposal(
        file.absolute().parent, file.name, tuple(steps), pipeline_toml(_project(file), steps, _shared(steps))
    )


def write(proposal: Proposal) -> list[str]:
    """Write everything; the paths, relative to the proposal's root. Raises Refused, before anything is written, where
    one of them exists."""
    contents = proposal.contents
    for name in contents:
        if (proposal.root / name).exists():
            raise Refused(f"{proposal.root / name} exists; nothing is overwritten. Remove it, or use another folder.")
    for name, content in contents.items():
        (proposal.root / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(proposal.root / name, content)
    return list(contents)


def matched_cells(step: Step) -> tuple[list[tuple[Cell, str]], list[tuple[Cell, str]]]:
    """The cells that run in the original and in the copy; a cell has the same id in both."""
    before, now = (
        list(cells_of(json.loads(content)["cells"])) for content in (step.original.read_bytes(), step.copy.content)
    )
    ids = ["" if origin is None else str(origin) for origin in step.copy.origins]
    return (
        [(cell, str(place)) for place, cell in enumerate(before) if cell.number],
        [(cell, id_) for cell, id_ in zip(now, ids, strict=True) if cell.number],
    )


def _doubles(notebooks: Sequence[Path]) -> Iterator[str]:
    names = [path.name for path in notebooks]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        places = " and ".join(str(path) for path in notebooks if path.name == name)
        yield f"{places} have one name, and their copies lie in one folder. Rename one of them."


def _step_names(paths: Sequence[Path]) -> list[str]:
    """`data` of 01_data.ipynb; each once."""
    names: list[str] = []
    for path in paths:
        plain = re.sub(r"[^a-z0-9_]+", "-", path.stem.encode("ascii", "ignore").decode().lower()).strip("-_")
        base = plain.lstrip("0123456789-_. ")[: LONGEST_STEP - 3].strip("-_") or "step"
        base = f"{base}-step" if base in RESERVED_STEPS else base
        candidates = (base, *(f"{base}-{number}" for number in range(2, len(paths) + 2)))
        names.append(next(name for name in candidates if name not in names))
    return names


def _project(file: Path) -> str:
    name = file.absolute().parent.resolve().name.encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:63].strip("-") or "project"


def _makers(found: Mapping[str, Found]) -> dict[str, tuple[str, File]]:
    """Absolute path -> the step that writes it; the first where several do."""
    makers: dict[str, tuple[str, File]] = {}
    for name, notebook in found.items():
        for file in notebook.outputs:
            maker = makers.setdefault(file.resolved(notebook.source.folder), (name, file))
            if maker[0] != name:
                notebook.notes.append(f"it writes {file.key}, as {maker[0]} does; what reads it gets {maker[0]}'s.")
    return makers


def _order(found: Mapping[str, Found], made_by: Mapping[str, tuple[str, File]]) -> list[str]:
    """Who writes before who reads, otherwise as they were named. Raises PipelineError for a circle."""
    graph = {name: {maker for maker, _ in _sources(name, found, made_by).values()} for name in found}
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise PipelineError(f"each of these notebooks reads what the one before it writes: {circle}.") from None
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted({*ready, *sorter.get_ready()}, key=list(found).index)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def _sources(
    name: str, found: Mapping[str, Found], made_by: Mapping[str, tuple[str, File]]
) -> dict[str, tuple[str, File]]:
    """The step's inputs that another step writes."""
    folder = found[name].source.folder
    makers = {file.name: made_by.get(file.resolved(folder)) for file in found[name].inputs}
    return {key: maker for key, maker in makers.items() if maker is not None and maker[0] != name}


def _step(
    name: str,
    notebook: Found,
    found: Mapping[str, Found],
    made_by: Mapping[str, tuple[str, File]],
    *,
    root: Path,
    target: Path,
) -> Step:
    folder = notebook.source.folder.resolve()
    linked = _sources(name, found, made_by)
    inputs, defaults, notes = dict[str, str](), dict[str, str](), [*notebook.notes]
    for file in notebook.inputs:
        path = file.resolved(folder)
        if file.name in linked:
            maker, output = linked[file.name]
            inputs[file.name] = f"{maker}.{output.name}"
            defaults[file.name] = _by_hand(maker, output, found[maker])
        elif file.is_address:
            inputs[file.name] = defaults[file.name] = file.key
        else:
            absolute = file.uses[0].found.text.startswith(("/", "~"))
            inputs[file.name] = path if absolute else _relative(path, root)
            defaults[file.name] = path if absolute else os.path.relpath(path, target).replace(os.sep, "/")
            notes += _missing(file, path, made_by)
    defaults |= {file.name: _by_hand(name, file, notebook) for file in notebook.outputs}
    outputs = {file.name: _inside(file, notebook) for file in notebook.outputs}
    copies = target.relative_to(root).as_posix() if target.is_relative_to(root) else str(target)
    modules = {f"{copies}/{relative}": path for relative, path in project_modules(notebook.source.notebook).items()}
    notes += [f"{path.name}, which it imports, is copied beside it." for path in modules.values()]
    if notebook.has_other_paths and folder != target:
        notes.append(
            f"a relative path that stays leads from {copies}/ now, and not from {notebook.source.path.parent}/."
        )
    return Step(
        name=name,
        original=notebook.source.path,
        notebook=f"{copies}/{notebook.source.path.name}",
        copy=copied(notebook, defaults),
        inputs=inputs,
        outputs=outputs,
        parameters=notebook.parameters,
        metrics={**dict.fromkeys(notebook.recorded, ""), **{metric.name: metric.better for metric in notebook.metrics}},
        notes=tuple(dict.fromkeys(notes)),
        modules=modules,
    )


def _by_hand(step: str, file: File, notebook: Found) -> str:
    """Where the copy writes a file when it runs by hand."""
    return f"work/{step}/{_inside(file, notebook)}".rstrip("/")


def _inside(file: File, notebook: Found) -> str:
    """The output's path below its step: the file's name, or more of its path where two have one name."""
    names = [other.base for other in notebook.outputs]
    parts = [part for part in PurePosixPath(file.key).parts if part not in ("..", ".", "/")]
    path = file.base if names.count(file.base) == 1 else "/".join(parts)
    return f"{path}/" if file.is_folder else path


def _relative(path: str, root: Path) -> str:
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    return relative if relative.startswith("../") else f"./{relative}"


def _missing(file: File, path: str, made_by: Mapping[str, tuple[str, File]]) -> Iterator[str]:
    if os.path.exists(path):  # noqa: PTH110 - of a text
        return
    like = next((maker for other, (maker, _) in made_by.items() if os.path.basename(other) == file.base), None)  # noqa: PTH119
    hint = f", though {like} writes a {file.base} in another folder" if like is not None else ""
    yield f"{file.uses[0].at.label} reads {file.key}, and there is no such file{hint}."


def _shared(steps: Sequence[Step]) -> dict[str, Any]:
    """The parameters that several notebooks have, with one value."""
    names = dict.fromkeys(name for step in steps for name in step.parameters)
    values = {name: [step.parameters[name] for step in steps if name in step.parameters] for name in names}
    return {
        name: found[0]
        for name, found in values.items()
        if len(found) > 1 and is_short(found[0]) and all(repr(other) == repr(found[0]) for other in found)
    }


def summary(proposal: Proposal) -> str:
    """One line: the order."""
    return f"{counted(len(proposal.steps), 'step')}: {' → '.join(step.name for step in proposal.steps)}"
