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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PART_ROWS = 500_000  # of a part, and in memory at a time
CHUNK = 1 << 24  # bytes that are read at a time: 16 MiB
LONGEST = 1 << 26  # characters without an end of a row, from which on the quotes are taken to be wrong
PLAIN = re.compile(r'(?:^|(?<=[,\r\n]))"[^"]*"(?=[,\r\n]|$)')  # a quoted field as every reader reads it


def read_blocks(
    source: str | Path, columns: Sequence[str], *, encoding: str = "utf-8", rows: int = PART_ROWS
) -> Iterator[pd.DataFrame]:
    """The table's rows as stripped text, at most `rows` at a time, in the order of `columns`; "" where one is blank.

    Every block but the last has exactly `rows` rows; the index counts them through the table, from 0. A blank line is
    not a row. Memory is bounded by a block, whatever the size of the file. Raises ValueError for bytes that are not
    the encoding, a header that does not have exactly these columns, a row of another width, quotes that do not end and
    a table without rows, naming where; what stands before has been given out by then.
    """
    import pyarrow as pa

    ready: list[pa.Table] = []
    start = 0
    for table in _tables(Path(source), columns, encoding):
        ready.append(table)
        while sum(map(len, ready)) >= rows:
            whole = pa.concat_tables(ready)
            yield _frame(whole.slice(0, rows), columns, start)
            start, ready = start + rows, [whole.slice(rows)]
    rest = pa.concat_tables(ready)
    if len(rest):
        yield _frame(rest, columns, start)
    elif not start:
        raise ValueError(f"{source} has a header and no rows.")


def parse_numbers(text: pd.DataFrame) -> pd.DataFrame:
    """Columns of text as numbers: int64 where all are whole and none is missing, else float64, NaN for what is none."""
    return text.apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pa.array(column, type=pa.large_string())
    there = pc.if_else(pc.equal(texts, ""), None, texts)
    for kind in (pa.int64(), pa.float64()):
        try:
            numbers = there.cast(kind)
        except pa.ArrowInvalid:
            continue
        if kind == pa.int64() and numbers.null_count:
            continue
        return pd.Series(numbers.to_numpy(zero_copy_only=False), index=column.index, name=column.name)
    return pd.to_numeric(column, errors="coerce")


def _frame(table: pa.Table, columns: Sequence[str], start: int) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.compute as pc

    stripped = {name: pc.utf8_trim_whitespace(table[name]).to_pandas() for name in columns}
    frame = pd.DataFrame(stripped)
    frame.index = pd.RangeIndex(start, start + len(frame))
    return frame


def _tables(path: Path, columns: Sequence[str], encoding: str) -> Iterator[pa.Table]:
    """The rows of each chunk of the file."""
    header: list[str] = []
    lines = records = 0
    for text in _whole_rows(_text(path, encoding)):
        body = text
        if not header:
            file = io.StringIO(text, newline="")
            first = next(_rows(path, iter(file.readline, ""), lines), None)
            if first is None:
                lines += text.count("\n")
                continue
            header, body, records = first, file.read(), 1
            _check_header(path, header, columns)
        table = _parsed(path, body, header, lines + text.count("\n") - body.count("\n"), records)
        yield table
        records, lines = records + len(table), lines + text.count("\n")
    if not header:
        raise ValueError(f"{path} is empty. It needs a header and rows.")


def _text(path: Path, encoding: str) -> Iterator[str]:
    """The file's text, chunk by chunk, without a byte order mark. Raises ValueError at a byte that is none, or NUL."""
    decoder, offset, lines = codecs.getincrementaldecoder(encoding)(), 0, 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            kept = decoder.getstate()[0]
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset - len(kept) + error.start
                raise ValueError(
                    f"{path} is not {encoding}: byte {at} is {error.object[error.start]:#04x}. "
                    "Set the parameter `encoding` to what the table was written with."
                ) from None
            if not offset:
                text = text.removeprefix("\ufeff")
            if "\0" in text:
                line = lines + text[: text.index("\0")].count("\n") + 1
                raise ValueError(
                    f"{path}, line {line}: a NUL byte. The file is damaged, or its `encoding` is not {encoding}."
                )
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
            end = end or len(pending)
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


def _parsed(path: Path, text: str, header: list[str], lines: int, records: int) -> pa.Table:
    """The rows of the text as columns of text; `lines` and `records` stand before it in the file."""
    import pyarrow as pa
    import pyarrow.csv

    quotes = text.count('"')
    if text and (not quotes or 2 * sum(1 for _ in PLAIN.finditer(text)) == quotes):
        try:
            return pa.csv.read_csv(
                pa.py_buffer(text.encode()),
                read_options=pa.csv.ReadOptions(column_names=header, block_size=1 << 22),
                parse_options=pa.csv.ParseOptions(quote_char='"' if quotes else False, newlines_in_values=quotes > 0),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.large_string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid:  # a row of another width, or a line that is blank: read strictly
            pass
    rows = []
    for record, row in enumerate(_rows(path, io.StringIO(text, newline=""), lines), start=records + 1):
        if len(row) != len(header):
            raise ValueError(f"{path}, record {record}: {len(row)} values under {len(header)} columns.")
        rows.append(row)
    values = zip(*rows, strict=True) if rows else [[] for _ in header]
    return pa.table({name: pa.array(column, pa.large_string()) for name, column in zip(header, values, strict=True)})


def _rows(path: Path, text: Iterator[str], lines: int) -> Iterator[list[str]]:
    """Each row's values; a blank line is not a row. Raises ValueError where the quotes are wrong."""
    reader = csv.reader(text, strict=True)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines + reader.line_num}: {error}. Check the quotes there.") from None


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{path}: the header has {twice} more than once. Keep one column of that name.")
    missing, unexpected = [c for c in columns if c not in header], [c for c in header if c not in columns]
    if missing or unexpected:
        raise ValueError(
            f"{path}: the columns are not the known {len(columns)}.\n- missing: {missing}\n+ unexpected: {unexpected}"
        )
