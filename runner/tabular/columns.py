"""columns.toml, as the notebooks read it: what each column of the table means, and what is to be predicted.

[table] says how the file is written and what its target is, [columns] names every column in the table's order with its
kind, [dates] has the format of each date. Knows no table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from runner.errors import UsageError
from runner.records import Record

Kind = Literal["number", "category", "boolean", "date", "text", "key", "target", "ignore"]
Task = Literal["binary", "multiclass", "regression"]
ROW_HASH = "row_hash"  # the column that stands for a key where there is none
MOST_ROWS, MOST_VALUES = 500_000, 10_000_000  # of a part


class _Table(Record, frozen=True, kw_only=True):
    target: str
    task: Task
    format: Literal["csv", "parquet", "jsonl"] = "csv"
    encoding: str = "utf-8"
    delimiter: str = ","
    decimal: Literal[".", ","] = "."
    missing: list[str] = []
    positive: str = ""
    key: str = ""


class Columns(Record, frozen=True, kw_only=True):
    """What columns.toml says. `kinds` has every column of the table, in its order; `dates` the formats of dates."""

    table: _Table
    kinds: dict[str, Kind] = msgspec.field(name="columns")
    dates: dict[str, str] = {}

    @property
    def target(self) -> str:
        """The column that is predicted."""
        return self.table.target

    @property
    def task(self) -> Task:
        """binary, multiclass or regression."""
        return self.table.task

    @property
    def key(self) -> str:
        """The column by which the rows are split: the declared one, or `row_hash`, which 01_data adds."""
        return self.table.key or ROW_HASH

    @property
    def numbers(self) -> list[str]:
        """The columns of numbers that the model learns from."""
        return [name for name, kind in self.kinds.items() if kind == "number"]

    @property
    def categories(self) -> list[str]:
        """The columns of categories that the model learns from; yes and no are two of them."""
        return [name for name, kind in self.kinds.items() if kind in ("category", "boolean")]

    @property
    def part_rows(self) -> int:
        """Rows of a part of a table: 500,000, of more than 20 columns fewer. A few parts are in memory at a time."""
        return min(MOST_ROWS, max(1, MOST_VALUES // len(self.kinds)))

    @property
    def used(self) -> list[str]:
        """All columns of a raw record that the model learns from, in the table's order."""
        return [name for name, kind in self.kinds.items() if kind in ("number", "category", "boolean", "date")]


def read_columns(path: str | Path) -> Columns:
    """What columns.toml at `path` says.

    Raises UsageError, naming the line of the file that is wrong and what may stand there.
    """
    try:
        columns = msgspec.toml.decode(Path(path).read_bytes(), type=Columns)
    except FileNotFoundError:
        raise UsageError(f"There is no {path}. `runner init` writes it beside pipeline.toml.") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path}: {error}. Kinds are {', '.join(Kind.__args__)}.") from None  # type: ignore[attr-defined]
    table = columns.table
    for part, name in (("target", table.target), ("key", table.key)):
        declared = [column for column, kind in columns.kinds.items() if kind == part]
        if declared != [name] * bool(name):
            raise UsageError(
                f'{path}: [table] has {part} = "{name}", and in [columns] {declared or "no column"} is "{part}". '
                "Make both the same."
            )
    if taken := {table.target, table.key} & {"prediction", "probability"}:
        raise UsageError(f"{path}: {taken.pop()} is what a prediction is called. Rename that column in the table.")
    undated = [name for name, kind in columns.kinds.items() if kind == "date" and name not in columns.dates]
    if undated:
        raise UsageError(f"{path}: the date {undated[0]} has no format. Add it to [dates], such as %Y-%m-%d.")
    if table.task == "binary" and not table.positive:
        raise UsageError(f"{path}: positive is missing in [table]: the answer that a probability is of.")
    if not table.key and ROW_HASH in columns.kinds:
        raise UsageError(f"{path}: {ROW_HASH} is the name of what stands for a key. Rename that column, or name a key.")
    if not columns.used:
        raise UsageError(
            f"{path}: no column is a number, category, boolean or date, so there is nothing to learn from."
        )
    return columns
