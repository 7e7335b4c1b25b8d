"""Small tables for the notebooks of the tabular template, each with what columns.toml says of it."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.projects import ROOT, Project

TEMPLATE = ROOT / "runner" / "templates" / "tabular"


@dataclass(frozen=True)
class Table:
    """`rows` as the file has them, in text; `table` and `kinds` are the sections of columns.toml."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    table: Mapping[str, Any]
    kinds: Mapping[str, str]
    dates: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self.table.get("delimiter", ","), lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return text.getvalue().encode(self.table.get("encoding", "utf-8"))

    @property
    def columns(self) -> str:
        sections = {"table": self.table, "columns": self.kinds, "dates": self.dates}
        lines = [
            f"[{name}]\n" + "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in section.items())
            for name, section in sections.items()
            if section
        ]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """table.csv and columns.toml."""
        (folder / "table.csv").write_bytes(self.content)
        (folder / "columns.toml").write_text(self.columns, encoding="utf-8")

    def with_kind(self, **kinds: str) -> Table:
        return replace(self, kinds={**self.kinds, **kinds})

    def with_table(self, **table: Any) -> Table:
        return replace(self, table={**self.table, **table})

    def with_value(self, row: int, column: str, value: str) -> Table:
        """`row` counts from 1."""
        rows = [list(one) for one in self.rows]
        rows[row - 1][list(self.header).index(column)] = value
        return replace(self, rows=rows)

    def with_column(self, name: str, kind: str, values: Sequence[str]) -> Table:
        rows = [[*row, value] for row, value in zip(self.rows, values, strict=True)]
        return replace(self, header=[*self.header, name], rows=rows, kinds={**self.kinds, name: kind})

    def column(self, name: str) -> list[str]:
        at = list(self.header).index(name)
        return [row[at] for row in self.rows]


def loans(rows: int = 400) -> Table:
    """Two answers, a key, a number with blanks, a category with one rare value, a name to leave out."""
    chance = random.Random(1)
    lines = []
    for number in range(rows):
        income, years = round(chance.gauss(50, 15), 1), chance.randrange(1, 30)
        home = chance.choice(["own", "rent", "with parents"])
        risk = 1 / (1 + math.exp(0.09 * (income - 42) + (1.5 if home == "own" else 0)))
        shown = "" if chance.random() < 0.05 else str(income)
        repaid = "late" if chance.random() < risk else "in time"
        lines.append([f"L-{number}", shown, str(years), "boat" if number == 5 else home, f"Name {number}", repaid])
    header = ["loan", "income", "years", "home", "name", "repaid"]
    kinds = ("key", "number", "number", "category", "text", "target")
    table = {"target": "repaid", "task": "binary", "positive": "late", "key": "loan"}
    return Table(header, lines, table, dict(zip(header, kinds, strict=True)))


def flowers(rows: int = 240) -> Table:
    """Several answers, names with blanks in them, no key, one answer that is too rare."""
    chance, lines = random.Random(2), []
    for _ in range(rows):
        kind = chance.randrange(3)
        size = [round(chance.gauss(mean, 0.5), 1) for mean in (2 + kind, 5 - kind, 3)]
        lines.append([*map(str, size), chance.choice(["1", "1.0", "2"]), f"sort {'ABC'[kind]}"])
    lines[7][-1] = "sort D"
    header = ["length", "width", "height", "bed", "sort of flower"]
    kinds = ("number", "number", "number", "category", "target")
    table = {"target": "sort of flower", "task": "multiclass", "key": ""}
    return Table(header, lines, table, dict(zip(header, kinds, strict=True)))


def prices(rows: int = 300) -> Table:
    """A number, with a decimal comma, dates, a word for what is missing, in an older encoding."""
    chance, lines = random.Random(3), []
    for _ in range(rows):
        size, month, day = round(chance.uniform(30, 120), 1), chance.randrange(1, 13), chance.randrange(1, 29)
        price = 2 * size + (40 if month > 6 else 0) + chance.gauss(0, 10)
        shown = "k. A." if chance.random() < 0.05 else f"{size}"
        sold = "" if chance.random() < 0.05 else f"{day:02}.{month:02}.2024"
        place = chance.choice(["Köln", "Bonn"])
        lines.append([one.replace(".", ",") if one == f"{size}" else one for one in (shown, sold, place)])
        lines[-1].append(f"{price:.2f}".replace(".", ","))
    header = ["size", "sold", "place", "price"]
    kinds = ("number", "date", "category", "target")
    table = {"target": "price", "task": "regression", "encoding": "cp1252", "delimiter": ";", "decimal": ","}
    return Table(
        header, lines, {**table, "missing": ["k. A."]}, dict(zip(header, kinds, strict=True)), {"sold": "%d.%m.%Y"}
    )


def tabular_project(folder: Path, table: Table, name: str = "loans") -> Project:
    """The template's notebooks and pipeline.toml on this table."""
    project = Project(folder)
    shutil.copytree(TEMPLATE / "notebooks", folder / "notebooks")
    (folder / "data").mkdir()
    (folder / "data" / "table.csv").write_bytes(table.content)
    (folder / "columns.toml").write_text(table.columns, encoding="utf-8")
    toml = (TEMPLATE / "pipeline.toml").read_text(encoding="utf-8")
    for mark, value in {"name": name, "table": "table.csv", "address": '"./data/table.csv"', "keep": ""}.items():
        toml = toml.replace(f"{{{{{mark}}}}}", value)
    project.toml(toml)
    return project
