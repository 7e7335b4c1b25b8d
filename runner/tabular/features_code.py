"""The features of raw records: numbers of text that holds a number or a date, and names that XGBoost takes.

Frozen into the model's folder.

Works row by row. It imports pandas alone, in whatever version scores the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DATES: dict[str, str] = {}
NUMBERS: list[str] = []
DECIMAL = "."
MISSING: list[str] = []

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LARGEST = 3.4028234e38  # that the trees hold
SAFE = str.maketrans("[]<", "()‹")  # which no feature of XGBoost may have in its name


def transform(frame: pd.DataFrame) -> pd.DataFrame:
    """The model's columns: the values of what is neither a date nor a number in text stay as they are."""
    import pandas as pd

    features = {}
    for name in frame.columns:
        safe = name.translate(SAFE)
        if name in DATES:
            features.update(dates(safe, frame[name], DATES[name]))
        elif name in NUMBERS:
            features[safe] = pd.Series(numbers(name, frame[name]), index=frame.index, dtype="float64")
        else:
            features[safe] = frame[name]
    return pd.DataFrame(features, index=frame.index)


def numbers(name: str, column: pd.Series) -> list[float]:
    """The column's values as floats. Raises ValueError naming the column and the first that is not a number."""
    try:
        return [number(value, DECIMAL, MISSING) for value in column]
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from error


def dates(name: str, column: pd.Series, form: str) -> dict[str, pd.Series]:
    """Days since 1970, month, weekday (0: Monday), and the hour where the format has one."""
    import pandas as pd

    text = pd.Series([None if missing(value, MISSING) else str(value).strip() for value in column], dtype="object")
    times = pd.to_datetime(text, format=form, utc=True)
    days = (times - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    parts = {"days": days // 1, "month": times.dt.month, "weekday": times.dt.day_of_week}
    if "%H" in form:
        parts["hour"] = times.dt.hour
    return {f"{name} ({part})": values.astype("float64").set_axis(column.index) for part, values in parts.items()}


def number(value: object, decimal: str, missing_words: Collection[str]) -> float:
    """The value as a float, NaN where it is missing. Raises ValueError for what is not a number."""
    if missing(value, missing_words):
        return math.nan
    text = str(value).strip()
    plain = text.replace(",", ".") if decimal == "," else text
    if isinstance(value, bool) or not NUMBER.fullmatch(plain) or abs(float(plain)) > LARGEST:
        raise ValueError(f"{text[:99]!r} is not a number")
    return float(plain)


def missing(value: object, words: Collection[str]) -> bool:
    """Whether the value is blank, or one of the words for what is not known."""
    return value is None or value != value or str(value).strip() in ("", *words)
