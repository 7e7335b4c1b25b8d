"""A CSV file as text, some rows at a time: what a table larger than memory is checked and split by.

Arrow parses, which is fast. Where it would have to guess, at quotes that are not plain or rows of another width,
Python's csv module reads that text instead, strictly, and says what is wrong and where. Knows no columns.toml.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tabular.beside import ahead

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PART_ROWS = 500_000  # of a part; a few parts are in memory at a time
CHUNK = 1 << 22  # bytes that are read at a time: 4 MiB
LONGEST = 1 << 26  # characters without an end of a row, from which on the quotes are taken to be wrong


@dataclass(frozen=True)
class CsvFile:
    """A CSV file, how it is written, and what it must hold.

    `check` takes the header's names and gives those of the columns; it raises where they are not the known ones.
    `advice` says what to do where the bytes are not the encoding.
    """

    path: Path
    check: Callable[[list[str]], list[str]]
    advice: str
    encoding: str = "utf-8"
    delimiter: str = ","

    @property
    def plain(self) -> re.Pattern[str]:
        """A quoted field as every reader reads it."""
        ends = rf"{re.escape(self.delimiter)}\r\n"
        return re.compile(rf'(?:^|(?<=[{ends}]))"[^"]*"(?=[{ends}]|$)')


def read_blocks(
    source: str | Path, columns: Sequence[str], *, encoding: str = "utf-8", rows: int = PART_ROWS
) -> Iterator[pd.DataFrame]:
    """The table's rows as stripped text, at most `rows` at a time, in the order of `columns`; "" where one is blank.

    Every block but the last has exactly `rows` rows; the index counts them through the table, from 0. A blank line is
    not a row. Memory is bounded by two blocks, whatever the size of the file. Raises ValueError for bytes that are not
    the encoding, a header that does not have exactly these columns, a row of another width, quotes that do not end and
    a table without rows, naming where; what stands before has been given out by then.
    """
    import pandas as pd

    source = Path(source)

    def check(header: list[str]) -> list[str]:
        refuse_repeated(source, header)
        missing, unexpected = [c for c in columns if c not in header], [c for c in header if c not in columns]
        if missing or unexpected:
            raise ValueError(
                f"{source}: the columns are not the known {len(columns)}.\n- missing: {missing}\n"
                f"+ unexpected: {unexpected}"
            )
        return header

    advice = "Set the parameter `encoding` to what the table was written with."
    start = 0
    tables = cut_tables(read_tables(CsvFile(source, check, advice, encoding)), rows)
    for frame in ahead(_frame(table, columns) for table in tables):
        frame.index = pd.RangeIndex(start, start + len(frame))
        start += len(frame)
        yield frame


def read_tables(file: CsvFile) -> Iterator[pa.Table]:
    """The file's rows as columns of text, as they stand, some megabytes at a time.

    Raises ValueError for bytes that are not the encoding, a row of another width, quotes that do not end and a table
    without rows, naming where; what stands before has been given out by then.
    """
    header: list[str] = []
    names: list[str] = []
    lines = rows = 0
    for text in _whole_rows(_text(file)):
        body = text
        if not header:
            opened = io.StringIO(text, newline="")
            first = next(_rows(file, iter(opened.readline, ""), lines), None)
            if first is None:
                lines += text.count("\n")
                continue
            header, body = first[1], opened.read()
            names = file.check(header)
        table = _parsed(file, body, names, lines + text.count("\n") - body.count("\n"))
        yield table
        rows, lines = rows + len(table), lines + text.count("\n")
    if not header:
        raise ValueError(f"{file.path} is empty. It needs a header and rows.")
    if not rows:
        raise ValueError(f"{file.path} has a header and no rows.")


def cut_tables(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, so many at a time; fewer in the last table alone."""
    import pyarrow as pa

    ready: list[pa.Table] = []
    for table in tables:
        ready.append(table)
        while sum(map(len, ready)) >= rows:
            whole = pa.concat_tables(ready)
            yield whole.slice(0, rows)
            ready = [whole.slice(rows)]
    if sum(map(len, ready)):
        yield pa.concat_tables(ready)


def refuse_repeated(path: Path, header: Sequence[str]) -> None:
    """Raises ValueError for a name that the header has twice."""
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{path}: the header has {twice} more than once. Keep one column of that name.")


def parse_numbers(text: pd.DataFrame) -> pd.DataFrame:
    """Columns of text as numbers: int64 where all are whole and none is missing, else float64, NaN for what is none."""
    return text.apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    there = pa.array(column, type=pa.large_string())
    if pc.any(blank := pc.equal(there, "")).as_py():
        there = pc.if_else(blank, None, there)
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = there.cast(kind)
        except pa.ArrowInvalid:
            continue
        if kind == pa.int64() and numbers.null_count:
            continue
        return pd.Series(numbers.to_numpy(zero_copy_only=False), index=column.index, name=column.name)
    return pd.to_numeric(column, errors="coerce")


def _frame(table: pa.Table, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.compute as pc

    return pd.DataFrame({name: pc.utf8_trim_whitespace(table[name]).to_pandas() for name in columns})


def _text(file: CsvFile) -> Iterator[str]:
    """The file's text, chunk by chunk, without a byte order mark. Raises ValueError at a byte that is none, or NUL."""
    path = file.path
    try:
        decoder = codecs.getincrementaldecoder(file.encoding)()
    except LookupError:
        raise ValueError(f"{path} is not {file.encoding}. {file.advice}") from None
    offset = lines = 0
    with path.open("rb") as opened:
        while True:
            chunk = opened.read(CHUNK)
            kept = decoder.getstate()[0]
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset - len(kept) + error.start
                byte = f"byte {at} is {error.object[error.start]:#04x}"
                raise ValueError(f"{path} is not {file.encoding}: {byte}. {file.advice}") from None
            if not offset:
                text = text.removeprefix("\ufeff")
            if "\0" in text:
                line = lines + text[: text.index("\0")].count("\n") + 1
                raise ValueError(f"{path}, line {line}: a NUL byte. The file is damaged, or its encoding is another.")
            lines += text.count("\n")
            yield text
            if not chunk:
                return
            offset += len(chunk)


def _whole_rows(chunks: Iterator[str]) -> Iterator[str]:
    """The same text, cut where rows end."""
    pending = ""
    for text in chunks:
        pending += text
        end = _last_end(pending)
        if end or len(pending) > LONGEST:
            end = end or pending.rfind("\n") + 1 or len(pending)  # a quote within a value, or one that is never closed
            yield pending[:end]
            pending = pending[end:]
    if pending:
        yield pending


def _last_end(text: str) -> int:
    """Where the last row that is whole ends: at a line's end outside quotes. 0 where there is none."""
    newline = "\n" if "\n" in text else "\r"
    at = text.rfind(newline)
    for _ in range(100):  # lines within one quoted value are few
        if at < 0 or text.count('"', 0, at) % 2 == 0:
            return at + 1
        at = text.rfind(newline, 0, text.rfind('"', 0, at))
    return 0


def _parsed(file: CsvFile, text: str, names: list[str], lines: int) -> pa.Table:
    """The rows of the text as columns of text; so many `lines` stand before it in the file."""
    import pyarrow as pa
    import pyarrow.csv

    quotes = text.count('"')
    if text and (not quotes or 2 * sum(1 for _ in file.plain.finditer(text)) == quotes):
        try:
            return pa.csv.read_csv(
                pa.py_buffer(text.encode()),
                read_options=pa.csv.ReadOptions(column_names=names, block_size=1 << 22),
                parse_options=pa.csv.ParseOptions(
                    delimiter=file.delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes > 0
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
                ),
            )
        except ValueError:  # a row of another width, a blank line, a delimiter that is no ASCII
            pass
    rows = []
    for line, row in _rows(file, io.StringIO(text, newline=""), lines):
        if len(row) != len(names):
            raise ValueError(f"{file.path}, line {line}: {len(row)} values under {len(names)} columns.")
        rows.append(row)
    values = zip(*rows, strict=True) if rows else [[] for _ in names]
    return pa.table({name: pa.array(column, pa.large_string()) for name, column in zip(names, values, strict=True)})


def _rows(file: CsvFile, text: Iterator[str], lines: int) -> Iterator[tuple[int, list[str]]]:
    """The line and the values of each row; a blank line is not a row. Raises ValueError where the quotes are wrong."""
    reader = csv.reader(text, delimiter=file.delimiter, strict=True)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield lines + reader.line_num, row
    except csv.Error as error:
        where = f"{file.path}, line {lines + reader.line_num}"
        raise ValueError(f"{where}: {error}. Check the quotes there.") from None
