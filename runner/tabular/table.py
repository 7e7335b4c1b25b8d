"""A table as its file has it, by what columns.toml says of the file; and its values as numbers and dates.

A column keeps the values of a raw record, as whoever sends one has them: text from CSV. What is blank is missing. The
table is read some rows at a time, so that it may be larger than memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError
from runner.tabular.beside import ahead
from runner.tabular.blocks import CsvFile, cut_tables, read_tables, refuse_repeated
from runner.tabular.columns import ROW_HASH, Columns
from runner.tabular.matrices import known_category

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from runner.model import Model


def only_file(folder: str | Path) -> str:
    """The one table in the folder. Raises UsageError where there is none, or several."""
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in (".csv", ".parquet", ".jsonl")]
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise UsageError(f"{folder} should hold one table, and has {names}. Say which with the parameter `source`.")
    return str(files[0])


def read_rows(source: str | Path, columns: Columns, *, rows: int = 0) -> Iterator[pd.DataFrame]:
    """The table's rows, at most `rows` at a time (0: `columns.part_rows`), values as the file has them.

    None stands where one is blank. The columns have the order of columns.toml; the index counts the rows through the
    table, from 0. Raises UsageError for bytes that are not the declared encoding, a header that is not the declared
    one, and a row of another width, naming where; what stands before has been given out by then.
    """
    import pandas as pd

    path, start = Path(source), 0
    readers = {"csv": _csv, "parquet": _parquet, "jsonl": _json_lines}
    try:
        for frame in ahead(readers[columns.table.format](path, columns, rows or columns.part_rows)):
            frame.index = pd.RangeIndex(start, start + len(frame))
            start += len(frame)
            yield frame
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not start:
        raise UsageError(f"{path} has a header and no rows.")


def as_number(series: pd.Series, columns: Columns) -> pd.Series:
    """The column's numbers as float64, NaN where one is missing.

    Raises UsageError naming the first row with another value; rows are counted from 1, by the index.
    """
    import pandas as pd

    from runner.tabular import features_code as code

    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return series.astype("float64")
    if (numbers := _plain_numbers(series, columns)) is not None:
        return numbers
    values, decimal, missing = [], columns.table.decimal, columns.table.missing
    for row, value in zip(series.index, series.tolist(), strict=True):
        try:
            values.append(code.number(value, decimal, missing))
        except ValueError as error:
            raise UsageError(
                f"Row {row + 1}, {series.name}: {error}. Correct the row, or the column's line in columns.toml."
            ) from None
    return pd.Series(values, index=series.index, dtype="float64", name=series.name)


def as_label(series: pd.Series, known: pd.CategoricalDtype | None = None) -> pd.Series:
    """The column as categories: text as it stands, so that a record of the file is known as it stands.

    Only numbers are made one text, 657 and 657.0. Without `known` all values that are there are known, in the order of
    their text; with it, what is none of them is missing.
    """
    import pandas as pd

    text = _label_text(series)
    if known is None:
        known = pd.CategoricalDtype(pd.Index(sorted(text.dropna().unique()), dtype="str"))
    return known_category(text, known)


def as_date(series: pd.Series, columns: Columns) -> pd.Series:
    """The column's dates as text of the declared format, None where one is missing.

    Raises UsageError naming the first row with another value.
    """
    import pandas as pd

    form = columns.dates[str(series.name)]
    if pd.api.types.is_datetime64_any_dtype(series):
        return series.dt.strftime(form).astype("str")
    text = series.where(series.notna(), None).map(
        lambda value: None if value is None else str(value), na_action="ignore"
    )
    there = text.notna() & ~text.isin(columns.table.missing)
    dates = pd.to_datetime(text.where(there), format=form, errors="coerce", utc="%z" in form)
    wrong = there & dates.isna()
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        raise UsageError(
            f"Row {text.index[at] + 1}, {series.name}: {text.iloc[at]!r} is not a date like {form}. Correct the row, "
            "or the column's line in columns.toml."
        )
    return text.astype("str")


def row_hash(frame: pd.DataFrame) -> pd.Series:
    """A text of 16 hexadecimal digits for each row, equal for equal rows: what stands for a key where there is none.

    Numbers are equal as numbers, also in text: 657, 657.0 and "657.0". The order of the columns does not matter.
    """
    import pandas as pd

    texts = [_canonical(frame[name]) for name in sorted(frame.columns)]
    rows = ("\x1f".join(values).encode() for values in zip(*texts, strict=True))
    return pd.Series([hashlib.sha256(row).hexdigest()[:16] for row in rows], index=frame.index, dtype="str")


def may_have_seen(model: Model, frame: pd.DataFrame) -> np.ndarray:
    """Which rows were on another side than test when this model was trained, shape (n_rows,).

    All of them, where its split is not known or its key is no column of the rows. A `row_hash` is made of the columns
    that the model has, as it was then.
    """
    import numpy as np

    rule = model.signature.split
    if rule is not None and rule.key == ROW_HASH:
        sides = model.split_side(row_hash(frame[[column.name for column in model.signature.columns]]))
    else:
        sides = model.split_side(frame[rule.key]) if rule is not None and rule.key in frame else None
    return np.ones(len(frame), dtype=bool) if sides is None else np.array([side != "test" for side in sides])


def _canonical(series: pd.Series) -> list[str]:
    import pandas as pd

    from runner.scoring.inference import NUMBER

    if isinstance(series.dtype, pd.CategoricalDtype):  # each text once
        texts = [*_canonical(series.cat.categories.to_series()), ""]
        return [texts[code] for code in series.cat.codes]
    if series.dtype == "float64":
        return ["" if value != value else repr(value) for value in series.tolist()]
    texts = []
    for value in series.tolist():
        text = "" if value is None or value != value else str(value).strip()
        texts.append(repr(float(text)) if NUMBER.fullmatch(text) else text)
    return texts


def _label_text(series: pd.Series) -> pd.Series:
    import pandas as pd

    from runner.model import as_category
    from runner.scoring.inference import NUMBER

    if isinstance(series.dtype, pd.StringDtype):  # each text once: tables have millions
        codes, texts = pd.factorize(series)
        known = _label_text(pd.Series(texts, dtype="object")).tolist()
        return pd.Series([*known, None], dtype="object").take(codes).set_axis(series.index).rename(series.name)
    text = as_category(series)
    if pd.api.types.is_string_dtype(series) or series.dtype == "object":
        kept = [isinstance(value, str) and NUMBER.fullmatch(value) is None for value in series]
        text = text.mask(pd.Series(kept, index=series.index), series.astype("object"))
    return text


def _plain_numbers(series: pd.Series, columns: Columns) -> pd.Series | None:
    """As `as_number`, of text, all values at once; None where one of them is no number, or no text."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    from runner.tabular import features_code as code

    if not isinstance(series.dtype, pd.StringDtype):
        return None
    texts = pc.utf8_trim_whitespace(pa.array(series, type=pa.large_string()))
    gone = pc.is_in(texts, pa.array(["", *columns.table.missing], pa.large_string()))
    texts = pc.if_else(gone, None, texts)
    if columns.table.decimal == ",":
        texts = pc.replace_substring(texts, ",", ".")
    if pc.all(pc.match_substring_regex(texts, f"^({code.NUMBER.pattern})$")).as_py() is False:
        return None
    texts = pc.utf8_ltrim(texts, "+")  # which Arrow does not read
    numbers = pd.Series(texts.cast(pa.float64()).to_numpy(zero_copy_only=False), series.index, name=series.name)
    return None if (numbers.abs() > code.LARGEST).any() else numbers


def _csv(path: Path, columns: Columns, rows: int) -> Iterator[pd.DataFrame]:
    def check(header: list[str]) -> list[str]:
        names = [name if name in columns.kinds else name.strip() for name in header]
        refuse_repeated(path, names)
        _refuse_others(path, names, columns)
        return names

    advice = "Correct `encoding` in columns.toml."
    file = CsvFile(path, check, advice, columns.table.encoding, columns.table.delimiter)
    return (_text_frame(table, columns) for table in cut_tables(read_tables(file), rows))


def _text_frame(table: pa.Table, columns: Columns) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.compute as pc

    values = {name: table[name] for name in columns.kinds}
    blank = {name: pc.equal(pc.utf8_trim_whitespace(column), "") for name, column in values.items()}
    return pd.DataFrame(
        {name: pc.if_else(blank[name], None, column).to_pandas() for name, column in values.items()}, dtype="str"
    )


def _parquet(path: Path, columns: Columns, rows: int) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None
    with file:
        _refuse_others(path, file.schema_arrow.names, columns)
        for batch in file.iter_batches(rows):
            # every stored column is one of the table; a whole number stays one beside a gap, in whichever part
            frame = batch.to_pandas(ignore_metadata=True, integer_object_nulls=True)
            yield frame[list(columns.kinds)].apply(_without_blanks)


def _json_lines(path: Path, columns: Columns, rows: int) -> Iterator[pd.DataFrame]:
    import pandas as pd

    records = read_records(path)
    while some := list(itertools.islice(records, rows)):
        _refuse_others(path, {**columns.kinds, **{name: None for record in some for name in record}}, columns)
        # objects: what pandas makes of whole numbers beside gaps would differ from part to part
        values = {name: pd.Series([record.get(name) for record in some], dtype="object") for name in columns.kinds}
        yield pd.DataFrame(values).apply(_without_blanks)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises ValueError naming the line that is none."""
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8")
                record = json.loads(text) if text.strip() else {}
            except ValueError as error:
                raise ValueError(f"{path}, line {line} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {line} is not an object with a value for each column.")
            if record:
                yield record


def _refuse_others(path: Path, names: Collection[str], columns: Columns) -> None:
    missing = [name for name in columns.kinds if name not in names]
    unexpected = [name for name in names if name not in columns.kinds]
    if missing or unexpected:
        raise UsageError(
            f"{path}: the columns are not those of columns.toml.\n- missing: {missing}\n+ unexpected: {unexpected}"
        )


def _without_blanks(series: pd.Series) -> pd.Series:
    import pandas as pd

    if isinstance(series.dtype, pd.StringDtype):
        return series.mask(series.str.strip() == "", None)
    if series.dtype == "object":
        blank = [value is None or value != value or (isinstance(value, str) and not value.strip()) for value in series]
        return series.mask(blank, None)
    return series
