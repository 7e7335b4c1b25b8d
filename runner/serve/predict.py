"""A file of raw records in, the same rows with `prediction` and `probability` out: a part at a time, in bounded memory.

Knows the formats; the records are read by `runner.scoring.inference`, as from a request.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from runner.errors import UsageError
from runner.escape import csv_cell, may_compute
from runner.model import table
from runner.model.signature import BadRecords

if TYPE_CHECKING:
    from runner.scoring.inference import Rows, Scorer
    from runner.serve.capture import RequestCapture

ROWS = 10_000  # at a time
FORMATS = {".csv": "csv", ".txt": "csv", ".jsonl": "lines", ".ndjson": "lines", ".parquet": "parquet"}
ADDED = ("prediction", "probability")


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is written; a byte order mark before UTF-8 is no part of it."""

    encoding: str = "utf-8-sig"
    delimiter: str = ","


@dataclass(frozen=True)
class Part:
    """Some rows of the file: all their values, and as the model takes them."""

    names: Sequence[str]
    rows: Iterable[Sequence[Any]]
    table: Rows
    records: list[dict[str, Any]] | None = None  # as they stand in a file of JSON lines
    batch: Any = None  # pyarrow's, of a Parquet file


class Writer(Protocol):
    guarded: int  # cells that a spreadsheet would have computed

    def __init__(self, file: Any) -> None: ...

    def write(self, part: Part, predictions: list[Any], probabilities: list[float] | None) -> None: ...

    def close(self) -> None: ...


def format_of(path: Path) -> str:
    """Raises UsageError for an ending that says none."""
    format_name = FORMATS.get(path.suffix.lower())
    if format_name is None:
        raise UsageError(f"{path}: write the format as its ending, {', '.join(FORMATS)}.")
    return format_name


def source_format(path: Path) -> str:
    """As `format_of`; with any other ending a file that is text is CSV. Raises OSError where it cannot be read."""
    if path.suffix.lower() not in FORMATS and path.is_file():  # what a pipe holds could be read only once
        with path.open("rb") as file:
            beginning = file.read(4096)
        if beginning and b"\0" not in beginning:
            return "csv"
    return format_of(path)


def csv_form(delimiter: str, encoding: str) -> CsvForm:
    """Raises UsageError for a delimiter or an encoding that there is not."""
    try:
        name = codecs.lookup(encoding).name
        csv.reader((), delimiter=delimiter)
    except LookupError as error:
        raise UsageError(
            f"--encoding {encoding}: there is none of that name; utf-8, utf-16, cp1252 are some."
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"--delimiter {delimiter!r}: it is one character, such as ; or a tab.") from error
    return CsvForm(CsvForm.encoding if name == "utf-8" else name, delimiter)


def predict(
    scorer: Scorer,
    source: Path,
    writer: Writer,
    *,
    on_rows: Callable[[int, float], None],
    form: CsvForm = CsvForm(),
    capture: RequestCapture | None = None,
) -> int:
    """Score the file; the number of rows. `on_rows` is told rows done and the part of the file, 0 to 1; `capture` keeps
    each part for monitoring.

    Raises BadRecords naming row (from 1, the header not counted) and column; rows before it may be written by then.
    """
    import numpy as np

    from runner.scoring.inference import BadInput

    done = 0
    readers: dict[str, Callable[[Path, Scorer], Iterator[tuple[Part, float]]]] = {
        "csv": partial(_csv, form=form),
        "lines": _lines,
        "parquet": _parquet,
    }
    parts = readers[source_format(source)](source, scorer)
    try:
        for part, part_done in parts:
            twice = [name for name in ADDED if name in part.names]
            if twice:
                raise UsageError(f"{source} has a column {twice[0]} already, which would be added. Rename it.")
            count, began = len(part.table), time.perf_counter()
            scores = scorer.score(part.table) if count else np.empty(0, dtype="float32")
            if capture is not None and count:
                capture.part(part.table, _further(part, capture.more), scores, time.perf_counter() - began)
            writer.write(part, *scorer.answers(scores))
            done += count
            on_rows(done, part_done)
    except BadInput as error:
        raise BadRecords(f"{source}: {table.message(error, done)}") from error  # counted from the part's first
    except UnicodeDecodeError as error:
        raise BadRecords(f"{source}: after row {done} it is not {_encoding(form)}: {error.reason}.") from error
    if not done:
        raise BadRecords(f"{source} has no record.")
    return done


def _further(part: Part, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The values of these columns, of those that the file has."""
    columns: dict[str, Sequence[Any]] = {}
    for name in names:
        if part.records is not None:
            columns[name] = [record.get(name) for record in part.records]
        elif name in part.names and part.batch is not None:
            columns[name] = part.batch.column(part.batch.schema.get_field_index(name)).to_pylist()
        elif name in part.names:
            at = part.names.index(name)
            columns[name] = [row[at] for row in part.rows]
    return columns


@contextmanager
def writing(target: Path | None, stdout: TextIO, *, raw: bool = False) -> Iterator[Writer]:
    """What writes to the file, by its ending, or CSV to `stdout`. The file appears when all rows are in it.

    In CSV, cells that a spreadsheet would take for formulas get an apostrophe, unless it is `raw`.
    """
    if target is None:
        yield CsvWriter(stdout, raw=raw)
        stdout.flush()
        return
    writers: dict[str, type[Writer]] = {"lines": LinesWriter, "parquet": ParquetWriter}
    kind = format_of(target)
    # two at work on one file must not write into each other's
    beside = target.with_name(f".{target.name}-{secrets.token_hex(4)}.part")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder, so {target.name} cannot be written there. Make it first.")
    try:
        with open(beside, "wb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = CsvWriter(text, raw=raw) if kind == "csv" else writers[kind](file if kind == "parquet" else text)
            yield writer
            writer.close()
            text.flush()
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


class CsvWriter:
    def __init__(self, file: Any, *, raw: bool = False) -> None:
        self._file, self._raw = file, raw
        self._begun = False
        self.guarded = 0

    def write(self, part: Part, predictions: list[Any], probabilities: list[float] | None) -> None:
        texts = [one if isinstance(one, str) else json.dumps(one) for one in predictions]
        rows: list[list[Any]] = []
        if not self._begun and part.names:
            self._begun = True
            rows.append([*part.names, *(ADDED if probabilities is not None else ADDED[:1])])
        if probabilities is None:
            rows += [[*row, one] for row, one in zip(part.rows, texts, strict=True)]
        else:
            rows += [[*row, one, chance] for row, one, chance in zip(part.rows, texts, probabilities, strict=True)]
        text = csv_text(rows)
        if not self._raw and may_compute(text):
            text = csv_text([[self._guard(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])
        self._file.write(text)

    def close(self) -> None:
        pass

    def _guard(self, cell: str) -> str:
        guarded = csv_cell(cell)
        self.guarded += guarded is not cell
        return guarded


class LinesWriter:
    guarded = 0

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, part: Part, predictions: list[Any], probabilities: list[float] | None) -> None:
        records = part.records or (dict(zip(part.names, row, strict=True)) for row in part.rows)
        for at, record in enumerate(records):
            added = {"prediction": predictions[at]}
            if probabilities is not None:
                added["probability"] = probabilities[at]
            self._file.write(json.dumps({**record, **added}, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        pass


class ParquetWriter:
    guarded = 0

    def __init__(self, file: Any) -> None:
        self._file = file
        self._writer: Any = None

    def write(self, part: Part, predictions: list[Any], probabilities: list[float] | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if part.batch is None:
            columns = [list(column) for column in zip(*part.rows, strict=True)] or [[] for _ in part.names]
            table = pa.table(dict(zip(part.names, columns, strict=True)))
        else:
            table = pa.Table.from_batches([part.batch])
        table = table.append_column("prediction", pa.array(predictions))
        if probabilities is not None:
            table = table.append_column("probability", pa.array(probabilities, type=pa.float64()))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        try:
            self._writer.write_table(table.cast(self._writer.schema))
        except (pa.ArrowInvalid, ValueError) as error:
            raise UsageError(f"The columns change their types along the file; write CSV instead. {error}") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def csv_text(rows: list[list[Any]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _encoding(form: CsvForm) -> str:
    return "UTF-8" if form.encoding == CsvForm.encoding else form.encoding


def _csv(source: Path, scorer: Scorer, form: CsvForm) -> Iterator[tuple[Part, float]]:
    from runner.scoring.inference import BadInput, other_delimiter

    header: list[str] | None = None
    size, first = source.stat().st_size or 1, True
    with open(source, "rb") as file:
        text = io.TextIOWrapper(file, encoding=form.encoding, newline="")
        reader = csv.reader(text, delimiter=form.delimiter, strict=True)
        while True:
            try:
                rows = list(islice(reader, ROWS))
            except csv.Error as error:
                with open(source, encoding=form.encoding, newline="") as again:
                    mark = other_delimiter(again.readline(), error) if form.delimiter == "," else ""
                remedy = f" {_separated_by(mark)}" if mark else ""
                raise BadInput(f"Line {reader.line_num} is not CSV: {error}.{remedy}") from None
            if not rows:
                return
            rows = scorer.without_blank_lines(rows)
            if first and rows:
                if len(rows[0]) == 1 < len(scorer.names) and (marks := [one for one in ";\t|" if one in rows[0][0]]):
                    raise BadInput(f"Line 1 is one field. {_separated_by(marks[0])}")
                # a file's first line that names all columns is a header, whatever could be read into it
                whole = set(scorer.names) <= {name.strip() for name in rows[0]} | set(rows[0])
                first, table = False, scorer.fields(rows, "present" if whole else "")
                if len(table) < len(rows):
                    header, rows = rows[0], rows[1:]
            else:
                table = scorer.fields([header, *rows] if header else rows, "present" if header else "absent")
            yield Part(header or scorer.names, rows, table), file.tell() / size


def _separated_by(mark: str) -> str:
    return f"Its fields are separated by {mark!r}: add --delimiter {'$' * (mark < ' ')}{mark!r}."  # a tab as in bash


def _lines(source: Path, scorer: Scorer) -> Iterator[tuple[Part, float]]:
    from runner.scoring.inference import BadInput

    size, done, number, names = source.stat().st_size or 1, 0, 0, None
    with open(source, encoding="utf-8-sig", newline="\n") as file:
        while lines := list(islice(file, ROWS)):
            done += sum(map(len, lines))
            at = range(number + 1, number + 1 + len(lines))
            number += len(lines)
            items = [scorer.read_json(line, f"Line {n}: ") for n, line in zip(at, lines, strict=True) if line.strip()]
            table = scorer.records(items)
            records = [one if isinstance(one, dict) else dict(zip(scorer.names, one, strict=True)) for one in items]
            names = names or list(dict.fromkeys(name for record in records for name in record))
            for row, record in enumerate(records, start=1):
                if not record.keys() <= set(names):
                    more = next(name for name in record if name not in names)
                    raise BadInput(f"Row {row} has {more}, which none of the first {ROWS} records has.", row, more)
            rows = ([record.get(name) for name in names or ()] for record in records)
            yield Part(names, rows, table, records=records), min(1.0, done / size)


def _parquet(source: Path, scorer: Scorer) -> Iterator[tuple[Part, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise BadRecords(f"{source} is not a Parquet file: {error}") from error
    size, done = file.metadata.num_rows or 1, 0
    if twice := [name for name in scorer.names if file.schema_arrow.names.count(name) > 1]:
        raise BadRecords(f"{source}: Column {twice[0]} is there twice.")
    with file:
        batches = file.iter_batches(batch_size=ROWS)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise BadRecords(f"{source}: after row {done} it is damaged: {error}") from error
            if batch is None:
                return
            places = {name: at for at, name in enumerate(batch.schema.names)}
            scorer.check_complete(places)
            done += batch.num_rows
            columns = [batch.column(places[name]) for name in scorer.names]
            plain = [one.cast(pa.float64()) if pa.types.is_decimal(one.type) else one for one in columns]
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            table = list(zip(*(_values(one) for one in plain), strict=True))
            yield Part(batch.schema.names, rows, table, batch=batch), done / size


def _values(column: Any) -> list[Any]:
    """Of an Arrow array; times as text of ISO 8601, the form in which JSON has them."""
    import pyarrow as pa

    values: list[Any] = column.to_pylist()
    if not pa.types.is_timestamp(column.type):
        return values
    return [None if value is None else value.isoformat() for value in values]
