"""What one notebook takes, reads, writes and measures, and what cannot be seen of it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from runner.adopt.files import FileUse, Role, UnknownPath, file_uses
from runner.adopt.metrics import Measured, Unnamed, metrics_of
from runner.adopt.names import Binding, Names, constants, is_free, is_plain, names_of
from runner.adopt.source import Source, Span
from runner.adopt.unseen import has_credential, secret_name, unseen

PICKLES = (".pkl", ".pickle", ".joblib", ".bin", ".sav", ".pt", ".pth")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|.*\\")
RECORDERS = ("metric", "glue")


@dataclass(frozen=True)
class File:
    """A file that the notebook reads or writes, under the name of the parameter that will have its path.

    `declared`: the name's own assignment, whose literal the path is.
    """

    name: str
    role: Role
    key: str  # as the notebook has it, normalized
    uses: tuple[FileUse, ...]
    declared: Binding | None

    @property
    def is_address(self) -> bool:
        return self.uses[0].is_address

    @property
    def is_folder(self) -> bool:
        return any(use.is_folder for use in self.uses)

    @property
    def base(self) -> str:
        return PurePosixPath(self.key).name

    def resolved(self, folder: Path) -> str:
        """The absolute path, seen from the notebook's folder; an address as it is."""
        return self.key if self.is_address else os.path.normpath(folder / Path(self.key).expanduser())


@dataclass(frozen=True)
class Constant:
    """A name with one plain value, which becomes a parameter."""

    binding: Binding
    value: Any
    lines: Span  # of its statement

    @property
    def name(self) -> str:
        return self.binding.name


@dataclass
class Found:
    """What was found in one notebook. `notes` are sentences about what was not, or is left as it is."""

    source: Source
    names: Names
    files: list[File] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    metrics: list[Measured] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)  # metrics that it records itself
    has_other_paths: bool = False  # that stay as they are
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter that is no file's path, with its default."""
        files = {file.name for file in self.files}
        declared = self.source.notebook.parameters.values()
        own = {item.name: item.default for item in declared if item.has_literal_default and is_plain(item.default)}
        moved = {constant.name: constant.value for constant in self.constants}
        return {name: value for name, value in {**own, **moved}.items() if name not in files}

    @property
    def inputs(self) -> list[File]:
        return [file for file in self.files if file.role == "input"]

    @property
    def outputs(self) -> list[File]:
        return [file for file in self.files if file.role == "output"]


def look(source: Source) -> Found:
    """Everything that the notebook's syntax says of it."""
    names = names_of(source)
    found = Found(source, names)
    kept = _add_files(found)
    _add_constants(found, kept)
    _add_metrics(found)
    found.notes += [f"{seen.cell.label} {seen.sentence}" for seen in unseen(source)]
    return found


def _add_files(found: Found) -> set[str]:
    """Fill `files`; the names that must keep the values they have."""
    by_key: dict[str, list[FileUse]] = {}
    kept: set[str] = set()
    for use in file_uses(found.source, found.names):
        if isinstance(use, UnknownPath):
            found.has_other_paths = True
            expression = use.expression if len(use.expression) <= 60 else f"{use.expression[:60]} …"
            found.notes.append(
                f"{use.cell.label} calls {use.call} on a path that is only known while it runs, `{expression}`: "
                "declare it as a parameter by hand."
            )
        else:
            by_key.setdefault(use.key, []).append(use)
    taken = {*found.names.used, *found.source.notebook.parameters}
    for key, uses in by_key.items():
        if why := _why_left(uses):
            found.notes.append(f"{uses[0].at.label} {why}")
            found.has_other_paths = True
            kept |= {name for use in uses for name in _leading(use)}
            continue
        declared = next((use.binding for use in uses if _declares(use, found)), None)
        name = declared.name if declared is not None else _new_name(PurePosixPath(key).name, taken)
        taken.add(name)
        role = uses[0].role
        assert role is not None
        found.files.append(File(name, role, key, tuple(uses), declared))
        kept |= {part for use in uses for part in use.found.uses}
        found.notes += _remarks(found.files[-1])
    return kept


def _why_left(uses: list[FileUse]) -> str:
    """Why the file becomes neither input nor output, as a sentence after the cell's name; "" where it does."""
    first, roles = uses[0], [use.role for use in uses]
    text = first.found.text
    if has_credential(text):
        return "names an address with a credential in it; it is left as it is."
    if first.is_address:
        if roles != ["input"] * len(roles) or not text.startswith(("https://", "s3://")):
            return f"opens {text}, which a run cannot take as an input; it is left as it is."
        return ""
    if WINDOWS.match(text):
        return f"opens {text!r}, a path of Windows; write it with `/`."
    if any(use.cell.span(use.place) is None for use in uses):
        return f"opens {text} where the code cannot be changed for certain, as in an f-string; it is left as it is."
    if None in roles:
        return f"opens {text} to add to it or to change it; a run's files are written once. It is left as it is."
    if roles[0] == "input" and "output" in roles:
        return (
            f"reads {text}, and later code writes it anew; a run has it as an input or an output. It is left as it is: "
            "write another name."
        )
    return ""


def _remarks(file: File) -> Iterator[str]:
    label, text = file.uses[0].at.label, file.uses[0].found.text
    if not file.is_address and text.startswith(("/", "~")):
        missing = "" if os.path.exists(os.path.expanduser(text)) else "; it is not on this machine"  # noqa: PTH110, PTH111
        yield f"{label} has an absolute path, {text}{missing}. Others will need the file at that place."
    if file.role == "output" and PurePosixPath(text).suffix in PICKLES:
        yield (
            f"{label} writes {text}, which is likely a pickle: a run keeps it, and registers none. "
            "`runner.model.save` writes a model that can be registered and served."
        )


def _declares(use: FileUse, found: Found) -> bool:
    """Whether a name's whole value is the path's literal, so that the name can be the parameter."""
    binding, declaring = use.binding, found.source.declaring
    if binding is None or not isinstance(use.place, ast.Constant):
        return False
    if declaring is not None:
        return binding.cell is declaring
    return found.names.may_move(binding) and binding.cell.own_lines(binding.statement) is not None


def _leading(use: FileUse) -> set[str]:
    return set(use.found.uses) | ({use.binding.name} if use.binding is not None else set())


def _new_name(base: str, taken: set[str]) -> str:
    """A parameter's name made of a file's: `train_csv` of train.csv."""
    name = re.sub(r"[\W_]+", "_", base.encode("ascii", "ignore").decode()).strip("_").lower() or "file"
    name = f"file_{name}" if name[0].isdigit() else name
    name = name if is_free(name) else f"{name}_file"
    return next(
        candidate
        for candidate in (name, *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
        if candidate not in taken
    )


def _add_constants(found: Found, kept: set[str]) -> None:
    if found.source.declaring is not None:  # its author has chosen
        return
    files = {file.declared.name for file in found.files if file.declared is not None}
    for binding, value in constants(found.names):
        lines = binding.cell.own_lines(binding.statement)
        hidden = secret_name(binding.name, value) or (isinstance(value, str) and has_credential(value))
        if lines is not None and not hidden and binding.name not in kept | files:
            found.constants.append(Constant(binding, value, lines))


def _add_metrics(found: Found) -> None:
    for _, node in found.source.nodes():
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]):
                if name in RECORDERS:
                    found.recorded.append(text)
    for metric in metrics_of(found.source, found.names):
        if isinstance(metric, Unnamed):
            found.notes.append(
                f"{metric.cell.label} shows `{_short(metric.expression)}` without a name: give it one to judge by."
            )
        elif metric.name not in found.recorded:
            found.metrics.append(metric)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]} …"
