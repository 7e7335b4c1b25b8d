"""What a model expects of a raw record, and the reading of raw records by it.

The record is plain data; reading a table by it needs pandas, imported by whoever brings one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from runner.errors import UsageError
from runner.records import FORMAT, Record

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "integer", "boolean", "category"]
Unknown = Literal["error", "missing"]
LARGEST = (2 - 2**-23) * 2.0**127  # that XGBoost holds: float32's


class BadRecords(UsageError):
    """Records a model cannot score; the message names row and column."""

    headline = "the records cannot be scored"


class Column(Record, frozen=True, kw_only=True):
    name: str
    kind: Kind
    categories: list[str] | None = None  # in the order of their codes


class SplitRule(Record, frozen=True, kw_only=True):
    """How rows were put on a side: see `runner.model.split`. `shares` add up to 1."""

    seed: int
    key: str
    shares: dict[str, float]


class Signature(Record, frozen=True, kw_only=True):
    """signature.json. `columns` are a raw record's; `features` the model's own, where code computes them."""

    format: int = FORMAT
    columns: list[Column]
    features: list[Column] | None = None
    code_sha256: str | None = None
    target: str
    positive: str | None = None  # the label that a probability is of; None for a number
    threshold: float | None = None  # a probability from here on is the positive label
    objective: str
    key: str | None = None
    split: SplitRule | None = None
    sample_request: dict[str, Any]
    sample_prediction: float | list[float]


def describe(frame: pd.DataFrame) -> list[Column]:
    """The columns of a training table. Raises UsageError for types a record cannot have."""
    return [_column(name, frame[name]) for name in frame.columns]


def as_category(series: pd.Series) -> pd.Series:
    """Text by which 657, 657.0, "657" and " 657 " are one category; what is missing or blank stays missing."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    missing = series.isna()
    if pd.api.types.is_bool_dtype(series):
        text = series.astype("object").astype(str)
    elif pd.api.types.is_numeric_dtype(series):
        numbers = series.astype("float64")
        whole = ~missing & (numbers == numbers.round()) & (numbers.abs() < 2**53)  # larger ones have no exact float
        text = series.astype("object").astype(str)
        text = text.where(~whole, numbers.where(whole, 0).astype("int64").astype(str))
    else:
        # value by value: pandas' own text cannot hold bytes or lone surrogates, which then are unknown categories
        plain = [str(value).strip() for value in series.astype("object").where(~missing, "")]
        text = pd.Series(plain, index=series.index, dtype="object")
        text = text.str.replace(r"^([+-]?\d+)\.0+$", r"\1", regex=True)
    text = text.astype("object")
    return text.mask(missing | (text == ""), None)


def read_frame(frame: pd.DataFrame, columns: list[Column], *, unknown: Unknown) -> pd.DataFrame:
    """The table as the model's columns, in order and by type; further columns are left out.

    Raises BadRecords naming row (from 1) and column: missing column, wrong type, no finite float32, unknown category (with
    `unknown="missing"` that becomes a missing value).
    """
    import pandas as pd

    absent = [column.name for column in columns if column.name not in frame.columns]
    if absent:
        raise BadRecords(f"Missing column{'s' if len(absent) > 1 else ''}: {', '.join(absent)}.")
    made = {}
    for column in columns:
        series = frame[column.name]
        if isinstance(series, pd.DataFrame):
            raise BadRecords(f"Column {column.name} is there twice.")
        if column.kind == "category":
            made[column.name] = _categories(series, column, unknown)
        else:
            made[column.name] = _numbers(series, column)
    return pd.DataFrame(made, index=frame.index)


def unknown_categories(frame: pd.DataFrame, columns: list[Column]) -> dict[str, int]:
    """Rows per category column whose value the model has never seen; columns without any are left out."""
    found = {}
    for column in columns:
        if column.kind == "category" and column.name in frame.columns:
            text = as_category(frame[column.name])
            count = int((text.notna() & ~text.isin(column.categories or [])).sum())
            if count:
                found[column.name] = count
    return found


def plain_record(frame: pd.DataFrame, columns: list[Column]) -> dict[str, Any]:
    """The table's first row as JSON values: text, numbers, booleans, None where missing."""
    first: dict[str, Any] = {}
    for column in columns:
        value = frame[column.name].iloc[0]
        if value is None or value != value:
            first[column.name] = None
        elif column.kind == "category":
            first[column.name] = as_category(frame[column.name].iloc[:1]).iloc[0]
        else:
            cast = {"integer": int, "boolean": bool, "number": float}[column.kind]
            first[column.name] = cast(value)
    return first


def _column(name: Any, series: pd.Series) -> Column:
    import pandas as pd

    if not isinstance(name, str):
        raise UsageError(f"Column {name!r}: a column's name must be text.")
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = [str(c) for c in as_category(pd.Series(dtype.categories)).tolist()]
        return Column(name=name, kind="category", categories=categories)
    if pd.api.types.is_bool_dtype(dtype):
        return Column(name=name, kind="boolean")
    if pd.api.types.is_integer_dtype(dtype):
        return Column(name=name, kind="integer")
    if pd.api.types.is_float_dtype(dtype):
        return Column(name=name, kind="number")
    if (pd.api.types.is_string_dtype(dtype) or dtype == "object") and not _nested(series).any():
        return Column(name=name, kind="category", categories=sorted(as_category(series).dropna().unique()))
    raise UsageError(f"Column {name} has the type {dtype}, which a record cannot have. Make it a number or a category.")


def _categories(series: pd.Series, column: Column, unknown: Unknown) -> pd.Categorical:
    import pandas as pd

    nested = _nested(series)
    text = as_category(series.mask(nested, None))
    known = column.categories or []
    strange = nested | (text.notna() & ~text.isin(known))
    refused = strange if unknown == "error" else nested
    if refused.any():
        row = int(refused.to_numpy().argmax())
        value = series.iloc[row] if nested.iloc[row] else text.iloc[row]
        some = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        raise BadRecords(f"Row {row + 1}, column {column.name}: {_shown(value)} is no known category ({some}).")
    # the training categories are text of pandas' default kind, so must these be
    return pd.Categorical(text.mask(strange, None), categories=pd.Index(known, dtype="str"))


def _numbers(series: pd.Series, column: Column) -> pd.Series:
    import numpy as np
    import pandas as pd

    blank = series.isna()
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series):
        strange = pd.Series(pd.api.types.is_bool_dtype(series) and column.kind != "boolean", index=series.index)
        numbers = series.astype("float64")
    else:
        values = series.astype("object")
        blank |= values.map(lambda value: isinstance(value, str) and not value.strip())
        if column.kind == "boolean":
            said = {"true": 1, "false": 0}
            plain = values.mask(_nested(values), 0.5)  # which is neither
            read = [said.get(str(value).strip().lower(), value) for value in plain]
            values = pd.Series(read, index=series.index, dtype="object")
        strange = ~blank & ~values.map(_may_be_number)
        numbers = pd.to_numeric(values.mask(blank | strange, None), errors="coerce").astype("float64")
    wrong = (strange & ~blank) | (numbers.isna() & ~blank) | (numbers.abs() > LARGEST)
    if column.kind == "boolean":
        wrong |= ~blank & ~numbers.isin([0, 1])
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        value = series.iloc[row]
        value = value.item() if isinstance(value, np.generic) else value
        what = "neither true nor false" if column.kind == "boolean" else "no finite number"
        raise BadRecords(f"Row {row + 1}, column {column.name}: {_shown(value)} is {what}.")
    return numbers


def _nested(series: pd.Series) -> pd.Series:
    """Where there is a list or a table instead of one value."""
    import pandas as pd

    if series.dtype != "object":
        return pd.Series(False, index=series.index)
    return series.map(lambda value: not pd.api.types.is_scalar(value)).astype(bool)


def _shown(value: object) -> str:
    """Never the text of a list or table, which can be deeper than the interpreter's stack."""
    if isinstance(value, dict):
        return "an object"
    return "a list" if hasattr(value, "__len__") and not isinstance(value, str | bytes) else repr(value)


def _may_be_number(value: object) -> bool:
    """Text that may say a number, or one that a float holds; a truth value, a date and a list are none."""
    import numpy as np

    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1023
    return isinstance(value, str | float | Decimal | np.integer | np.floating)
