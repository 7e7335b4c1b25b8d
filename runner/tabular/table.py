"""A table as its file has it, by what columns.toml says of the file; and its values as numbers and dates.

A column keeps the values of a raw record, as whoever sends one has them: text from CSV. What is blank is missing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UsageError
from runner.tabular.columns import ROW_HASH, Columns

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.model import Model

BLOCK = 20_000  # rows that are Python's text at a time


def only_file(folder: str | Path) -> str:
    """The one table in the folder. Raises UsageError where there is none, or several."""
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in (".csv", ".parquet", ".jsonl")]
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise UsageError(f"{folder} should hold one table, and has {names}. Say which with the parameter `source`.")
    return str(files[0])


def read_table(source: str | Path, columns: Columns) -> pd.DataFrame:
    """Every column of the table, shape (n_rows, n_columns), values as the file has them, None where one is blank.

    Raises UsageError for bytes that are not the declared encoding, a header that is not the declared one, and a row of
    another width, naming where.
    """
    readers = {"csv": _csv, "parquet": _parquet, "jsonl": _json_lines}
    frame = readers[columns.table.format](Path(source), columns)
    missing = [name for name in columns.kinds if name not in frame]
    unexpected = [name for name in frame if name not in columns.kinds]
    if missing or unexpected:
        raise UsageError(
            f"{source}: the columns are not those of columns.toml.\n- missing: {missing}\n+ unexpected: {unexpected}"
        )
    if not len(frame):
        raise UsageError(f"{source} has a header and no rows.")
    frame = frame[list(columns.kinds)]
    return frame.apply(_without_blanks)


def as_number(series: pd.Series, columns: Columns) -> pd.Series:
    """The column's numbers as float64, NaN where one is missing.

    Raises UsageError naming the first row with another value; rows are counted from 1, by the index.
    """
    import pandas as pd

    from runner.tabular import features_code as code

    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return series.astype("float64")
    values, decimal, missing = [], columns.table.decimal, columns.table.missing
    for row, value in zip(series.index, series.tolist(), strict=True):
        try:
            values.append(code.number(value, decimal, missing))
        except ValueError as error:
            raise UsageError(
                f"Row {row + 1}, {series.name}: {error}. Correct the row, or the column's line in columns.toml."
            ) from None
    return pd.Series(values, index=series.index, dtype="float64", name=series.name)


def as_label(series: pd.Series) -> pd.Series:
    """The column as categories: text as it stands, so that a record of the file is known as it stands.

    Only numbers are made one text, 657 and 657.0. All values that are there are known, in the order of their text.
    """
    import pandas as pd

    from runner.model import as_category
    from runner.scoring.inference import NUMBER

    text = as_category(series)
    if pd.api.types.is_string_dtype(series) or series.dtype == "object":
        kept = [isinstance(value, str) and NUMBER.fullmatch(value) is None for value in series]
        text = text.mask(pd.Series(kept, index=series.index), series.astype("object"))
    known = sorted(text.dropna().unique())
    return text.astype(pd.CategoricalDtype(pd.Index(known, dtype="str")))


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
    from runner.scoring.inference import NUMBER

    texts = []
    for value in series.tolist():
        text = "" if value is None or value != value else str(value).strip()
        texts.append(repr(float(text)) if NUMBER.fullmatch(text) else text)
    return texts


def _csv(path: Path, columns: Columns) -> pd.DataFrame:
    import pandas as pd

    raw = path.read_bytes()
    try:
        text = raw.decode(columns.table.encoding).removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError) as error:
        where = f": byte {error.start} is {raw[error.start]:#04x}" * isinstance(error, UnicodeDecodeError)  # type: ignore[union-attr]
        raise UsageError(
            f"{path} is not {columns.table.encoding}{where}. Correct `encoding` in columns.toml."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UsageError(f"{path}, line {line}: a NUL byte. The file is damaged, or its encoding is another.")
    rows = _rows(path, text, columns.table.delimiter)
    header = next(rows, None)
    if header is None:
        raise UsageError(f"{path} is empty. It needs a header and rows.")
    header = [name if name in columns.kinds else name.strip() for name in header]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise UsageError(f"{path}: the header has {twice} more than once. Keep one column of that name.")
    blocks = [pd.DataFrame([], columns=header, dtype="str")]
    while block := list(itertools.islice(rows, BLOCK)):
        blocks.append(pd.DataFrame(block, columns=header, dtype="str"))
    return pd.concat(blocks[1:] or blocks, ignore_index=True)


def _rows(path: Path, text: str, delimiter: str) -> Iterator[list[str]]:
    """The header's fields and each row's; a blank line is not a row."""
    reader, width = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
    try:
        for row in reader:
            if len(row) < 2 and not "".join(row).strip():
                continue
            width = width or len(row)
            if len(row) != width:
                raise UsageError(f"{path}, line {reader.line_num}: {len(row)} values under {width} columns.")
            yield row
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}. Check the quotes there.") from None


def _parquet(path: Path, _: Columns) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except ValueError as error:
        raise UsageError(f"{path} is not a Parquet file: {error}") from None


def _json_lines(path: Path, columns: Columns) -> pd.DataFrame:
    import pandas as pd

    records = []
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        try:
            record = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise UsageError(f"{path}, line {line} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UsageError(f"{path}, line {line} is not an object with a value for each column.")
        records += [record] if record else []
    values = {name: pd.Series([record.get(name) for record in records]) for name in columns.kinds}
    further = {name: None for record in records for name in record if name not in columns.kinds}
    return pd.DataFrame(values).assign(**further)


def _without_blanks(series: pd.Series) -> pd.Series:
    import pandas as pd

    if series.dtype == "object" or pd.api.types.is_string_dtype(series):
        blank = [value is None or value != value or (isinstance(value, str) and not value.strip()) for value in series]
        return series.mask(blank, None)
    return series
