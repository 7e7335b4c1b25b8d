"""A project made: the table looked at, the files put together, all of them placed."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runner.errors import UsageError
from runner.init import columns, project, shipped
from runner.init.answer import guessed_target
from runner.init.delimited import first_line
from runner.init.guess import Guess, guess
from runner.init.project import Content
from runner.init.rare import with_rare_values
from runner.init.sample import Sample, excel_rows, read

WITH_TABLE = ("tabular",)  # templates that are made for a table
LARGEST_COPY = 200_000_000  # bytes of a table that comes into the project; a larger one stays where it is
SUFFIXES = {"csv": ".csv", "excel": ".csv", "parquet": ".parquet", "jsonl": ".jsonl"}  # by which `predict` reads it


@dataclass(frozen=True)
class Asked:
    """What the command line says of the table."""

    data: Path | None = None
    target: str | None = None
    key: str | None = None
    positive: str | None = None
    names: list[str] = field(default_factory=list)


class Person(Protocol):
    """Who can be asked, with the answer that is guessed."""

    def target(self, names: list[str], guessed: str) -> str: ...

    def positive(self, answers: list[str], guessed: str) -> str: ...


@dataclass(frozen=True)
class NewProject:
    folder: Path
    template: str
    files: list[str]
    table: str = ""  # its name, as it was given
    guess: Guess | None = None
    remarks: list[str] = field(default_factory=list)


def make(folder: Path, template: str, asked: Asked, *, aws: bool = False, person: Person | None = None) -> NewProject:
    """Make the project. Nothing is written where anything is wrong.

    Raises UsageError for a folder that is taken, a table that cannot be read, and a question that nobody answers.
    """
    name = project.project_name(folder)
    if template not in WITH_TABLE:
        if asked != Asked():
            raise UsageError(f"--template {template} brings its own table. Leave --data and what belongs to it out.")
        files = project.files(template, {"name": name, "file": "FILE.csv"}, aws=aws)
        project.place(folder, files)
        return NewProject(folder, template, sorted(files))
    with tempfile.TemporaryDirectory(prefix="runner-init-") as scratch:
        source, asked = _source(asked)
        found = _guess(source, asked, person)
        table, content, remarks = _table(source, found.sample, asked.names, Path(scratch))
        values = {
            "name": name,
            "table": table,
            "address": _toml(table),
            "file": f"{table.removeprefix('./')}{_form(found.sample)}",
            "target": found.target,
            "task": found.answer.task,
            "keep": f", keep = [{_toml(found.key)}]" if found.key else "",
        }
        contents: dict[str, Content] = {**project.files(template, values, aws=aws)}
        contents["columns.toml"] = columns.text(found, source.name).encode()
        if content is not None:
            contents[table.removeprefix("./")] = content
        project.place(folder, contents)
        return NewProject(folder, template, sorted(contents), source.name, found, remarks)


def _source(asked: Asked) -> tuple[Path, Asked]:
    """The table, or the example that ships, with what is known of it."""
    if asked.data is not None:
        return asked.data, asked
    if asked != Asked():
        raise UsageError("--target and its like are for a table: name it with --data FILE.")
    (example,) = shipped.template("example").values()
    return example, Asked(target="late")


def _guess(source: Path, asked: Asked, person: Person | None) -> Guess:
    sample = read(source, asked.names)
    if not sample.whole and sample.format != "excel":
        sample = with_rare_values(source, sample, header=not asked.names)
    names, target = list(sample.columns), asked.target
    if target is None:
        if person is None:
            shown = ", ".join(names[:20]) + ", …" * (len(names) > 20)
            raise UsageError(
                f"Which column is to be predicted? Say it with --target COLUMN; {source.name} has {shown}."
            )
        target = person.target(names, guessed_target(names))
    ask = None if person is None else person.positive
    return guess(sample, target=target, key=asked.key, positive=asked.positive, ask_positive=ask)


def _table(source: Path, sample: Sample, names: list[str], scratch: Path) -> tuple[str, Content | None, list[str]]:
    """(the table's path in pipeline.toml, what lies there, remarks); nothing lies there where the table stays away."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).strip("-.") or "table"
    place = f"./data/{stem}{SUFFIXES[sample.format]}"
    if sample.format == "excel":
        copy = scratch / "table.csv"
        _write_csv(source, copy)
        return place, copy, [f"The first sheet of {source.name} stands in {place[2:]} as CSV; the project reads that."]
    if names:
        copy = scratch / "table.csv"
        with copy.open("wb") as file, source.open("rb") as rows:
            mark, header = first_line(sample.delimiter.join(names), rows.read(3), sample.encoding)
            file.write(mark + header)
            rows.seek(len(mark))
            shutil.copyfileobj(rows, file, 1 << 20)
        return place, copy, [f"{place[2:]} has the names in its first line."]
    if source.stat().st_size > LARGEST_COPY:
        remark = (
            f"{source.name} is large and stays where it is: pipeline.toml has its path. Other machines need an address."
        )
        return str(source.absolute()), None, [remark]
    return place, source, []


def _form(sample: Sample) -> str:
    """The options by which `runner predict` reads such a file."""
    if sample.format != "csv":
        return ""
    delimiter = "" if sample.delimiter == "," else f" --delimiter {shlex.quote(sample.delimiter)}"
    return delimiter + ("" if sample.encoding in ("utf-8", "utf-8-sig") else f" --encoding {sample.encoding}")


def _write_csv(workbook: Path, target: Path) -> None:
    import csv

    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(excel_rows(workbook))


def _toml(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
