"""Some rows of a table as they stand: text from CSV, plain values from Parquet, JSON lines and Excel.

Of a large file parts are read, from its beginning to its end, so that memory is bounded. What a column means is not
decided here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runner.errors import UsageError, counted
from runner.init import delimited

Format = Literal["csv", "parquet", "jsonl", "excel"]
WHOLE_BYTES = 16_000_000  # of text, up to which every row is read; some hundred megabytes as values
PARTS = 8  # that are read of a larger file
MOST_COLUMNS = 2_000
MOST_VALUES = 3_000_000  # of a Parquet file, that are read
BINARY = {
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ\x00": "is compressed by xz; unpack it first",
    b"(\xb5/\xfd": "is compressed by zstd; unpack it first",
    b"\xd0\xcf\x11\xe0": "is a workbook of an old Excel, or a document; save it as .xlsx or CSV",
    b"%PDF": "is a PDF; bring the table as CSV, Parquet, JSON lines or Excel",
    b"SQLite format 3\0": "is a database; export the table as CSV",
    b"\x89HDF": "is HDF5; write the table as Parquet",
    b"ARROW1": "is an Arrow file; write the table as Parquet",
}


@dataclass(frozen=True)
class Sample:
    """`columns` are lists of equal length by name, in the table's order; None is a missing value.

    `rows` is how many the table has: counted where it is `whole` or `counted`, otherwise about. Of a table that was
    counted, `rare` has by column what no row of the sample has, and `blanks` how many there are and the first one's
    row, from 1. `padded`: most rows have a blank
    after their last delimiter, which the values here are without.
    """

    format: Format
    columns: dict[str, list[Any]]
    rows: int
    whole: bool = True
    encoding: str = "utf-8"
    delimiter: str = ","
    padded: bool = False
    counted: bool = False
    rare: dict[str, list[Any]] = field(default_factory=dict)
    blanks: dict[str, tuple[int, int]] = field(default_factory=dict)

    def values(self, name: str) -> list[Any]:
        """The column's values that are known, the rare ones last."""
        return [*self.columns[name], *self.rare.get(name, [])]

    @property
    def rows_read(self) -> int:
        return len(next(iter(self.columns.values())))


def read(path: Path, names: Sequence[str] = ()) -> Sample:
    """The sample; `names` are the columns of a CSV file without a header.

    Raises UsageError, one sentence, for whatever is no table of at least two columns and two rows.
    """
    first_bytes = _first_bytes(path)
    for start, reason in BINARY.items():
        if first_bytes.startswith(start):
            raise UsageError(f"{path} {reason}.")
    if first_bytes.startswith(b"PAR1"):
        sample = _parquet(path)
    elif first_bytes.startswith(b"PK\x03\x04"):
        sample = _excel(path)
    elif first_bytes.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        sample = _json_lines(path)
    elif first_bytes.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[{", b"[\n", b"[\r", b"[ ")):
        raise UsageError(f"{path} is one JSON document. Write it as JSON lines, one object on each line.")
    else:
        sample = _csv(path, list(names))
    _check(path, sample)
    return sample


def _first_bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder. Name the table in it.")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is not a regular file: what it holds could be read only once. Save it as a file.")
        with path.open("rb") as file:
            first_bytes = file.read(64)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if not first_bytes:
        raise UsageError(f"{path} is empty. It needs a header and rows.")
    return first_bytes


def _check(path: Path, sample: Sample) -> None:
    if len(sample.columns) > MOST_COLUMNS:
        raise UsageError(
            f"{path} has {len(sample.columns):,} columns; the notebooks take {MOST_COLUMNS:,} at most. "
            "Leave out what cannot matter."
        )
    if len(sample.columns) < 2:
        raise UsageError(
            f"{path} has one column, {next(iter(sample.columns), '')!r}. A target and a column to learn from are "
            "needed; in CSV they are separated by a comma, semicolon, tab or |."
        )
    if sample.rows_read < 2:
        raise UsageError(f"{path} has a header and {counted(sample.rows_read, 'row')}. Rows to learn from are needed.")


def named(path: Path, header: Sequence[str]) -> list[str]:
    """The header's names. Raises UsageError for a name that is there twice, or that no record can have."""
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        what = f"{twice[0]!r}" if twice[0] else "a blank name"
        raise UsageError(f"{path}: the header has {what} {Counter(header)[twice[0]]} times. Keep one of that name.")
    for name in header:
        if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
            raise UsageError(f"{path}: the column {name!r} has a NUL or half a character in its name. Rename it.")
    return list(header)


def _csv(path: Path, names: list[str]) -> Sample:
    parts = list(_parts(path))
    size = path.stat().st_size
    whole = size <= WHOLE_BYTES
    text = delimited.decode(parts[0][1], path, whole=whole)
    delimiter = delimited.delimiter(text.text)
    header, rows = delimited.rows(text.text, delimiter, path, header=names)
    if not names and delimited.is_data(header):
        shown = ", ".join(header[:4])
        raise UsageError(
            f"{path} has no header: its first line looks like a row, {shown}{', …' * (len(header) > 4)}. "
            f"Name its {len(header)} columns: --names first,second,…."
        )
    named(path, header)
    for start, more in parts[1:] if delimited.by_lines(text.encoding) else []:
        with contextlib.suppress(UsageError):  # it began within quotes; the others will do
            one_part = delimited.decode(more, path, encoding=text.encoding, start=start).text
            rows += delimited.rows(one_part, delimiter, path, header=header)[1]
    seen = len(parts[0][1]) if not delimited.by_lines(text.encoding) else sum(len(part) for _, part in parts)
    return Sample(
        format="csv",
        columns={name: [_value(row[at]) for row in rows] for at, name in enumerate(header)},
        rows=len(rows) if whole else _about(len(rows) * size / seen),
        whole=whole,
        encoding=text.encoding,
        delimiter=delimiter,
        padded=2 * sum(row[-1].startswith(" ") for row in rows) > len(rows),
    )


def _about(rows: float) -> int:
    """An estimate without more digits than it deserves."""
    return int(float(f"{rows:.2g}"))


def _value(cell: str) -> str | None:
    return cell.strip() or None


def _parts(path: Path) -> Iterator[tuple[int, bytes]]:
    """(where it begins, bytes) of parts of the file, each of whole lines; all of a small file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            yield 0, file.read()
            return
        for number in range(PARTS):
            start = number * (size // PARTS)
            file.seek(start)
            content = file.read(WHOLE_BYTES // PARTS)
            begin = content.find(b"\n") + 1 if number else 0
            end = content.rfind(b"\n") + 1
            if end > begin:
                yield start + begin, content[begin:end]


def _json_lines(path: Path) -> Sample:
    columns: dict[str, list[Any]] = {}
    rows = 0
    parts = list(_parts(path))
    for start, content in parts:
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}" if not start else str(path)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where} is not JSON: {error}. Write one object on each line.") from error
            if not isinstance(record, dict):
                raise UsageError(f"{where}: a {type(record).__name__} stands there instead of an object.")
            for name in record:
                columns.setdefault(name, [None] * rows)
            if len(columns) > MOST_COLUMNS:
                break
            for name, values in columns.items():
                value = record.get(name)
                values.append(value.strip() or None if isinstance(value, str) else value)
            rows += 1
    named(path, list(columns))
    whole = path.stat().st_size <= WHOLE_BYTES
    estimate = rows * path.stat().st_size / sum(len(content) for _, content in parts)
    return Sample(format="jsonl", columns=columns, rows=rows if whole else _about(estimate), whole=whole)


def _parquet(path: Path) -> Sample:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = named(path, file.schema_arrow.names)
            total, width = file.metadata.num_rows, max(len(names), 1)
            if width > MOST_COLUMNS:
                return Sample(format="parquet", columns={name: [] for name in names}, rows=total)
            most = max(MOST_VALUES // width, 1_000)
            groups = range(file.num_row_groups)
            chosen = groups if total <= most else groups[:: max(len(groups) // PARTS, 1)]
            each = -(-most // max(len(chosen), 1))
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for group in chosen:
                for batch in file.iter_batches(batch_size=max(each, 1), row_groups=[group]):
                    for name, column in zip(names, batch.columns, strict=True):
                        columns[name] += column.to_pylist()
                    if total > most:  # the beginning of each group will do
                        break
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} begins as a Parquet file and cannot be read as one: {error}.") from error
    return Sample(format="parquet", columns=columns, rows=total, whole=total <= most)


def _excel(path: Path) -> Sample:
    """The first sheet. Its rows are those that `as_csv` writes."""
    sheet = excel_rows(path)
    header = named(path, next(sheet))
    rows = list(itertools.islice(sheet, MOST_VALUES // max(len(header), 1)))
    further = sum(1 for _ in sheet)
    columns = {name: [_value(row[at]) for row in rows] for at, name in enumerate(header)}
    return Sample(format="excel", columns=columns, rows=len(rows) + further, whole=not further)


def excel_rows(path: Path) -> Iterator[list[str]]:
    """The header and the rows of a workbook's first sheet, as CSV has them. Raises UsageError."""
    try:
        from openpyxl import load_workbook  # an extra: 0.2 s, for this format alone
    except ImportError as error:
        raise UsageError(f"{path} is an Excel workbook, for which openpyxl is needed: pip install openpyxl.") from error
    try:
        with path.open("rb") as file:
            sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
            rows = ([_cell(value) for value in row] for row in sheet if any(value is not None for value in row))
            header = next(rows, None)
            if header is None:
                raise UsageError(f"{path}: the first sheet is empty. It needs a header and rows.")
            width = max((at for at, name in enumerate(header, start=1) if name), default=0)
            yield header[:width]
            for row in rows:
                yield [*row[:width], *[""] * (width - len(row))]
    except (KeyError, OSError, ValueError, IndexError, SyntaxError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is a ZIP file and no workbook that Excel wrote: {error}.") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    midnight = hasattr(value, "hour") and hasattr(value, "date") and not (value.hour or value.minute or value.second)
    return str(value.date()) if midnight else str(value).strip()
