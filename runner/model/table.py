"""A pandas table as `runner.scoring.inference` takes records: columns of plain values, and what numbers they become.

Decides nothing about a value: that is inference.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.model.signature import Column
    from runner.scoring.inference import BadInput, ColumnReader, Scorer

BLOCK = 10_000  # rows
Values = Any  # of a column: numpy's numbers or truth values, or a list with None where one is missing


def columns(frame: pd.DataFrame, scorer: Scorer) -> list[Values]:
    """The model's columns, in its order. Raises BadInput where one is absent or there twice."""
    from runner.scoring.inference import BadInput

    scorer.check_complete({name: None for name in frame.columns if isinstance(name, str)})
    values = []
    for name in scorer.names:
        series = frame[name]
        if series.ndim > 1:
            raise BadInput(f"Column {name} is there twice.", column=name)
        values.append(_values(series))
    return values


def numbers(scorer: Scorer, table: Sequence[Values]) -> np.ndarray:
    """As `scorer.columns` read the rows of these columns: float64, shape (n_rows, n_columns). Raises BadInput."""
    import numpy as np

    matrix = np.empty((len(table[0]), len(table)))
    for at, (column, values) in enumerate(zip(scorer.columns, table, strict=True)):
        matrix[:, at] = _read(column, values)
    return matrix


def matrix(frame: pd.DataFrame, declared: Iterable[Column]) -> np.ndarray:
    """As `numbers`, of a frame that has all these columns."""
    import numpy as np

    from runner.scoring.inference import ColumnReader

    readers = [ColumnReader(msgspec.to_builtins(column), "error") for column in declared]
    return np.column_stack([np.asarray(_read(one, _values(frame[one.name])), dtype="float64") for one in readers])


def rows(table: Iterable[Values]) -> list[tuple[Any, ...]]:
    """Records of plain values, None where one is missing."""
    return list(zip(*(_plain(values) for values in table), strict=True))


def unknown(column: ColumnReader, series: pd.Series) -> int:
    """How many rows have a value that is neither missing nor a category of the column."""
    from runner.scoring.inference import BadInput

    count = 0
    for value in _plain(_values(series)):
        if not (isinstance(value, str) and value in column.codes):
            try:
                column.number(value, 1)
            except BadInput:
                count += 1
    return count


def message(error: BadInput, before: int) -> str:
    """Its message, where the rows are some of a table, with so many before them."""
    return str(error) if error.row is None else str(error).replace(f"ow {error.row}", f"ow {error.row + before}", 1)


def _values(series: pd.Series) -> Values:
    import numpy as np

    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub":
        return series.to_numpy()
    if series.dtype == "category":
        known = [*series.cat.categories.tolist(), None]
        return [known[code] for code in series.cat.codes.tolist()]
    return series.astype("object").where(series.notna(), None).tolist()


def _plain(values: Values) -> list[Any]:
    if isinstance(values, list):
        return values
    plain: list[Any] = values.tolist()
    return [None if value != value else value for value in plain] if values.dtype.kind == "f" else plain


def _read(column: ColumnReader, values: Values) -> Any:
    """All at once where they are numbers in a column of numbers, or known to it; else one by one."""
    import numpy as np

    from runner.scoring.inference import CODED, LARGEST

    if not isinstance(values, list):
        numeric = column.kind not in CODED and values.dtype.kind != "b"
        if numeric and not (np.abs(values.astype("float64")) > LARGEST).any():
            return values
        values = _plain(values)
    if column.kind in CODED:
        with contextlib.suppress(KeyError, TypeError):
            return [column.codes[value] for value in values]
    return [column.number(value, row) for row, value in enumerate(values, start=1)]
