"""What a model expects of a raw record. How a record is read is in runner/scoring/inference.py alone.

The signature is plain data; describing a table needs pandas, imported by whoever brings one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from runner.errors import UsageError
from runner.records import Record

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "integer", "boolean", "category", "text"]  # text: any, which only the model's code reads
Unknown = Literal["error", "missing"]
Label = str | int | bool
OBJECTS: dict[str, Kind] = {
    "string": "text", "empty": "text", "boolean": "boolean", "integer": "integer", "floating": "number",
    "mixed-integer-float": "number", "decimal": "number",
}  # fmt: skip  # pandas' word for what a column of objects holds


class BadRecords(UsageError):
    """Records a model cannot score; the message names row and column."""

    headline = "the records cannot be scored"


class Column(Record, frozen=True, kw_only=True):
    name: str
    kind: Kind
    categories: list[str] | None = None  # to the byte, in the order of the trees' codes


class SplitRule(Record, frozen=True, kw_only=True):
    """How rows were put on a side: see `runner.model.split`. `shares` add up to 1."""

    seed: int
    key: str
    shares: dict[str, float]


class Signature(Record, frozen=True, kw_only=True):
    """signature.json. `columns` are a raw record's; `features` the model's own, where code computes them.

    Format 1 had neither labels, nor a missing value, nor open text; its categories were stripped text in any order.
    Format 2 is of XGBoost alone, and written still for its models; format 3 of every kind.
    """

    newest: ClassVar[int] = 3
    format: int = newest
    columns: list[Column]
    features: list[Column] | None = None
    code_sha256: str | None = None
    target: str
    positive: str | None = None  # the label that a probability is of; None for a number
    labels: list[Label] | None = None  # of several classes, by their numbers; None where only those are known
    threshold: float | None = None  # a probability from here on is the positive label
    objective: str  # what scores are, by XGBoost's words: binary:logistic, multi:softprob, reg:…
    missing: float | None = None  # the number that means a missing value, as NaN does
    key: str | None = None
    split: SplitRule | None = None
    required: list[str] | msgspec.UnsetType = msgspec.UNSET  # columns whose missing value the estimator does not take
    sample_request: dict[str, Any]  # in the order of `columns`
    sample_prediction: float | list[float]


def describe(frame: pd.DataFrame, *, open_text: bool = False) -> list[Column]:
    """The columns of a training table; `open_text`: text is not the categories that are there, but any.

    Raises UsageError for names and types a record cannot have.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise UsageError(f"The frame is a {type(frame).__name__}; a model is saved with a pandas DataFrame.")
    names = list(frame.columns)
    if not names:
        raise UsageError("The frame has no columns, so there is nothing to score a record by.")
    for name in names:
        if not isinstance(name, str):
            raise UsageError(
                f"Column {name!r}: a column's name must be text: frame.columns = frame.columns.astype(str)."
            )
        _encodable(name, f"Column {name!r}: its name")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"Column {twice[0]} is there twice. Rename one of them.")
    return [_column(name, frame[name], open_text) for name in names]


def as_category(series: pd.Series) -> pd.Series:
    """Text by which 657, 657.0, "657" and " 657 " are one category; what is missing or blank stays missing."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    if isinstance(series.dtype, pd.StringDtype):  # each text once: tables have millions
        codes, texts = pd.factorize(series)
        known = as_category(pd.Series(texts, dtype="object")).to_numpy()
        return pd.Series([*known, None], dtype="object").take(codes).set_axis(series.index).rename(series.name)
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


def _column(name: str, series: pd.Series, open_text: bool) -> Column:
    import pandas as pd

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return Column(name=name, kind="category", categories=_categories(name, dtype.categories.tolist()))
    if pd.api.types.is_bool_dtype(dtype):
        return Column(name=name, kind="boolean")
    if pd.api.types.is_integer_dtype(dtype):
        return Column(name=name, kind="integer")
    if pd.api.types.is_float_dtype(dtype):
        return Column(name=name, kind="number")
    if dtype == "object" or pd.api.types.is_string_dtype(dtype):
        kind = OBJECTS.get(pd.api.types.infer_dtype(series, skipna=True))
        if kind == "text" and not open_text:
            return Column(name=name, kind="category", categories=_categories(name, sorted(series.dropna().unique())))
        if kind is not None:
            return Column(name=name, kind=kind)
    raise UsageError(f"Column {name} has the type {dtype}, which a record cannot have. Make it a number or a category.")


def _categories(name: str, values: list[Any]) -> list[str]:
    for value in values:
        if not isinstance(value, Label | float):
            what = f"{type(value).__name__}s as categories"
            raise UsageError(
                f"Column {name} has {what}. Make them text, .astype(str), before the model learns from them."
            )
        _encodable(str(value), f"Column {name}: the category {value!r}")
    return distinct(name, [str(value) for value in values])


def distinct(name: str, categories: list[str]) -> list[str]:
    """Themselves. Raises UsageError where two would be one to whoever sends a number."""
    from runner.scoring.inference import NUMBER, category

    read: dict[tuple[bool, str], str] = {}
    for text in categories:
        number = NUMBER.fullmatch(text) is not None
        key = number, category(text) if number else text
        if key in read:
            raise UsageError(
                f"Column {name}: the categories {read[key]!r} and {text!r} are one to whoever sends a number. "
                "Make them one, or rename one of them."
            )
        read[key] = text
    return categories


def _encodable(text: str, what: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{what} has a NUL or half of a surrogate pair, which no request can have. Rename it.")
    if text.startswith("\ufeff"):
        raise UsageError(f"{what} begins with a byte order mark, which readers of CSV take away. Rename it.")
