"""Captured requests as two Parquet tables, for a notebook: written in row groups, in bounded memory.

requests.parquet   time, version, id, status, seconds, rows, error
records.parquet    time, version, id, row (from 0), the columns, score; of several classes score_LABEL of each
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from runner.errors import UsageError
from runner.model.captured import Captured
from runner.model.signature import Column, Signature
from runner.records import Capture

if TYPE_CHECKING:
    import pyarrow as pa

REQUESTS, RECORDS = "requests.parquet", "records.parquet"
GROUP_ROWS = 100_000
MOST_TEXTS = 10_000  # of a column that are remembered as the model has them
OWN = ("time", "version", "id", "row", "score")


def captured_columns(signature: Signature, capture: Capture | None) -> list[Column]:
    """The columns of the records that a target keeps: the model's, without those it leaves out, and the further ones.

    Those that are hashed, or are not the model's, are text.
    """
    spec = capture or Capture()
    hidden = {*spec.hash}
    columns = [
        Column(name=one.name, kind="text") if one.name in hidden else one
        for one in signature.columns
        if one.name not in spec.leave_out
    ]
    names = {one.name for one in signature.columns}
    return [*columns, *(Column(name=name, kind="text") for name in spec.keep if name not in names)]


def to_parquet(
    captured: Iterable[Captured], folder: Path, columns: Sequence[Column], *, labels: Sequence[object] | None = None
) -> tuple[int, int]:
    """Write both tables into the folder; the numbers of requests and of records.

    A number or integer column becomes float64, a boolean one bool, and all others text. A category is written as the
    model has it, and one it has never seen as it came; a value that is none of its kind is missing. Columns that are
    not among `columns` are left out. `labels` are of several classes, by their numbers. Raises UsageError where a
    column has a name of the table's own.
    """
    if taken := [one.name for one in columns if one.name in OWN or one.name.startswith("score_")]:
        raise UsageError(f"The column {taken[0]!r} has the name of one that is added to captured records. Rename it.")
    requests, records = _Requests(folder / REQUESTS), _Records(folder / RECORDS, columns, labels)
    with requests, records:
        for one in captured:
            requests.add(one)
            if one.rows:
                records.add(one)
    return requests.count, records.count


class _Table(ABC):
    """A Parquet file that is written a row group at a time; it appears even where there are no rows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: Any = None
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and (self.held or self._writer is None):
                self.write()
        finally:
            if self._writer is not None:
                self._writer.close()

    @property
    @abstractmethod
    def held(self) -> int:
        """Rows that wait to be written."""

    @abstractmethod
    def write(self) -> None:
        """What is held, as a row group."""

    def _append(self, columns: dict[str, pa.Array]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)


class _Requests(_Table):
    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._rows: list[tuple[str, str, str, int, float | None, int, str]] = []

    @property
    def held(self) -> int:
        return len(self._rows)

    def add(self, one: Captured) -> None:
        self._rows.append((one.time, one.version, one.id, one.status, one.seconds, len(one.rows), one.error))
        self.count += 1
        if len(self._rows) >= GROUP_ROWS:
            self.write()

    def write(self) -> None:
        import pyarrow as pa

        names = ("time", "version", "id", "status", "seconds", "rows", "error")
        kinds = (pa.string(), pa.string(), pa.string(), pa.int16(), pa.float64(), pa.int32(), pa.string())
        values = list(zip(*self._rows, strict=True)) or [()] * len(names)
        arrays = {name: pa.array(one, kind) for name, one, kind in zip(names, values, kinds, strict=True)}
        self._rows = []
        self._append({**arrays, "time": arrays["time"].cast(pa.timestamp("ms", tz="UTC"))})


class _Records(_Table):
    def __init__(self, file: Path, columns: Sequence[Column], labels: Sequence[object] | None) -> None:
        super().__init__(file)
        self._values = [_Values(one) for one in columns]
        self._labels, self._classes = labels, -1  # of the first request, -1 until it comes: 0 is a single score
        self._about: list[tuple[str, str, str, int]] = []  # time, version, id, row
        self._columns: tuple[str, ...] = ()  # of the rows that are held
        self._rows: list[Sequence[Any]] = []
        self._scores: list[Any] = []

    @property
    def held(self) -> int:
        return len(self._rows)

    def add(self, one: Captured) -> None:
        if one.columns != self._columns:
            if self._rows:
                self.write()
            self._columns = one.columns
        for at in range(0, len(one.rows), GROUP_ROWS):
            some = one.rows[at : at + GROUP_ROWS]
            self._about += [(one.time, one.version, one.id, row) for row in range(at, at + len(some))]
            self._rows += some
            self._scores += one.scores[at : at + GROUP_ROWS]
            if len(self._rows) >= GROUP_ROWS:
                self.write()
        self.count += len(one.rows)

    def write(self) -> None:
        import pyarrow as pa

        kinds = (pa.string(), pa.string(), pa.string(), pa.int32())
        about = list(zip(*self._about, strict=True)) or [()] * len(kinds)
        names = ("time", "version", "id", "row")
        arrays = {name: pa.array(one, kind) for name, one, kind in zip(names, about, kinds, strict=True)}
        arrays["time"] = arrays["time"].cast(pa.timestamp("ms", tz="UTC"))
        held = dict(zip(self._columns, zip(*self._rows, strict=True), strict=True)) if self._rows else {}
        for values in self._values:
            arrays[values.name] = values.array(held.get(values.name) or [None] * len(self._rows))
        self._append({**arrays, **self._score_arrays()})
        self._about, self._rows, self._scores = [], [], []

    def _score_arrays(self) -> dict[str, pa.Array]:
        import pyarrow as pa

        if self._classes < 0:
            first = self._scores[0] if self._scores else None
            self._classes = len(first) if isinstance(first, list) else 0
        if not self._classes:
            return {"score": pa.array([None if isinstance(one, list) else one for one in self._scores], pa.float64())}
        names = self._labels if self._labels and len(self._labels) == self._classes else range(self._classes)
        alike = [one if isinstance(one, list) and len(one) == self._classes else None for one in self._scores]
        return {
            f"score_{name}": pa.array([one and one[at] for one in alike], pa.float64()) for at, name in enumerate(names)
        }


class _Values:
    """Makes an array of a column's values, by the rule that the model reads them by."""

    def __init__(self, column: Column) -> None:
        from runner.scoring.inference import ColumnReader, category  # numpy

        self._category = category
        self.name, self._kind = column.name, column.kind
        self._reader = ColumnReader(msgspec.to_builtins(column), "missing")
        self._texts: dict[tuple[type, Any], str | None] = {}

    def array(self, values: Sequence[Any]) -> pa.Array:
        import pyarrow as pa

        if self._kind == "boolean":
            numbers = map(self._number, values)
            return pa.array([None if one is None else bool(one) for one in numbers], pa.bool_())
        if self._kind in ("number", "integer"):
            try:
                if not any(isinstance(one, bool) for one in values[:1]):
                    return pa.array(values, pa.float64())
            except (pa.ArrowException, TypeError, OverflowError):
                pass  # text among them, or a whole number that float64 does not hold
            return pa.array(list(map(self._number, values)), pa.float64())
        return pa.array(list(map(self._text, values)), pa.string())

    def _number(self, value: Any) -> float | None:
        try:
            number = self._reader.number(value, 1)
        except ValueError:  # what the model would refuse
            return None
        return number if number == number else None

    def _text(self, value: Any) -> str | None:
        if value is None or value == "":
            known = self._reader.known
            return "" if value == "" and "" in known else None
        try:
            return self._texts[type(value), value]
        except (KeyError, TypeError):
            pass
        text = value if isinstance(value, str) else self._category(value)
        if self._kind == "category" and (code := self._number(value)) is not None:
            text = self._reader.known[int(code)]
        text = text.encode(errors="replace").decode()  # half a character
        if len(self._texts) < MOST_TEXTS:
            self._texts[type(value), value] = text
        return text
