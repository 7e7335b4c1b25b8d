"""What the sample of a large file lacks: values that are rare, and how many rows there are.

The file is read once, some rows at a time, so that memory is bounded. What a column means is not decided here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError
from runner.init.delimited import NUMBER
from runner.init.look import COMMA_NUMBER, FEW, MANY, MARKERS
from runner.init.sample import Sample

if TYPE_CHECKING:
    import pyarrow as pa

MOST = 200  # rare values of a column
ROWS = 50_000  # at a time
NO_TEXT = "0"  # stands for a number, or true, of JSON


def with_rare_values(path: Path, sample: Sample, *, header: bool = True) -> Sample:
    """The sample of this file with its rows counted, the blanks of each column, and values that no sampled row has.

    Those are looked for in columns of few values, and in columns whose texts are numbers; at most 200 of each.
    `header` False: a CSV file begins with a row. Raises UsageError for a row of another width, quotes that do not end
    and bytes that are not the encoding, naming where.
    """
    plain = [NO_TEXT] * (sample.format == "jsonl")
    columns = {name: _Column([*values, *plain]) for name, values in sample.columns.items()}
    rows = 0 if header or sample.format != "csv" else 1
    readers = {"csv": _csv, "parquet": _parquet, "jsonl": _json_lines}
    try:
        for block in readers[sample.format](path, sample):
            for name, values in zip(columns, block, strict=True):
                columns[name].add(values, rows)
            rows += len(block[0])
    except ValueError as error:
        raise UsageError(str(error)) from None
    return dataclasses.replace(
        sample,
        rows=rows,
        counted=True,
        rare={name: column.values for name, column in columns.items() if column.values},
        blanks={name: (column.blank, column.first_blank) for name, column in columns.items() if column.blank},
    )


class _Column:
    """`values` are those that the sample lacks; `first_blank` is a row, counted from 1."""

    def __init__(self, sampled: Sequence[Any]) -> None:
        texts = {value for value in sampled if isinstance(value, str)}
        self.has_blanks = None in sampled
        self.values: list[Any] = []
        self.blank = self.first_blank = 0
        number = next((one for one in (NUMBER, COMMA_NUMBER) if _all_numbers(texts, one.fullmatch)), None)
        # of few numbers, which may be names, a further one counts; of many only what is none
        self.number = f"^({number.pattern})$" if number is not None and len(texts) > FEW else ""
        self.known = texts if len(texts) <= MANY and not self.number else None

    def add(self, values: pa.Array, rows_before: int) -> None:
        """`values` are texts, or of another type; null where one is blank."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if values.null_count:
            if not self.blank:
                self.first_blank = rows_before + pc.index(values.is_null(), True).as_py() + 1
                self.values += [] if self.has_blanks else [None]
            self.blank += values.null_count
        room = MOST - len(self.values)
        if not pa.types.is_large_string(values.type) or room <= 0:
            return
        if self.known is not None:
            new = pc.invert(pc.is_in(values, pa.array(self.known, pa.large_string())))
        elif self.number:
            new = pc.invert(pc.match_substring_regex(values, self.number))
        else:
            return
        texts = [text for text in pc.unique(values.filter(new)).to_pylist() if text is not None]
        self.values += texts[:room]
        if self.known is not None:
            self.known.update(texts[:room])


def _all_numbers(texts: set[str], is_number: Any) -> bool:
    return bool(texts) and all(text in MARKERS or is_number(text) for text in texts)


def _csv(path: Path, sample: Sample) -> Iterator[list[pa.Array]]:
    from runner.tabular.blocks import CsvFile, cut_tables, read_tables

    file = CsvFile(path, lambda _: list(sample.columns), "Save it as UTF-8.", sample.encoding, sample.delimiter)
    for table in cut_tables(read_tables(file), ROWS):
        yield [_trimmed(column.combine_chunks()) for column in table.columns]


def _trimmed(texts: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _json_lines(path: Path, sample: Sample) -> Iterator[list[pa.Array]]:
    import pyarrow as pa

    from runner.tabular.table import read_records

    rows: list[dict[str, Any]] = []

    def block() -> list[pa.Array]:
        texts = ([_text(record.get(name)) for record in rows] for name in sample.columns)
        return [pa.array(values, pa.large_string()) for values in texts]

    for record in read_records(path):
        rows.append(record)
        if len(rows) == ROWS:
            yield block()
            rows.clear()
    if rows:
        yield block()


def _text(value: Any) -> str | None:
    return (value.strip() or None) if isinstance(value, str) else None if value is None else NO_TEXT


def _parquet(path: Path, _: Sample) -> Iterator[list[pa.Array]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS):
            yield [
                _trimmed(column.cast(pa.large_string())) if _holds_text(column.type) else column
                for column in batch.columns
            ]


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
