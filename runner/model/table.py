"""A pandas table as `runner.scoring.inference` takes records: columns of plain values, and the numbers that they are read as.

Decides nothing about a value: that is inference.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.scoring.inference import BadInput, Column, Scorer

Values = Any  # of a column: numpy's numbers or truth values, or a list with None where one is missing


def columns(frame: pd.DataFrame, scorer: Scorer) -> list[Values]:
    """The model's columns, in its order. Raises BadInput where one is absent or there twice."""
    from runner.scoring.inference import BadInput

    scorer.complete({name: None for name in frame.columns if isinstance(name, str)})
    made = []
    for name in scorer.names:
        series = frame[name]
        if series.ndim > 1:
            raise BadInput(f"Column {name} is there twice.", column=name)
        made.append(_values(series))
    return made


def numbers(scorer: Scorer, given: Sequence[Values]) -> np.ndarray:
    """As `scorer.columns` read the rows of these columns: float64, shape (n_rows, n_columns). Raises BadInput."""
    import numpy as np

    made = np.empty((len(given[0]), len(given)))
    for at, (column, values) in enumerate(zip(scorer.columns, given, strict=True)):
        made[:, at] = _read(column, values)
    return made


def rows(given: Iterable[Values]) -> list[tuple[Any, ...]]:
    """Records of plain values, None where one is missing."""
    return list(zip(*(_plain(values) for values in given), strict=True))


def unknown(column: Column, series: pd.Series) -> int:
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


def said(error: BadInput, before: int) -> str:
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
    made: list[Any] = values.tolist()
    return [None if value != value else value for value in made] if values.dtype.kind == "f" else made


def _read(column: Column, values: Values) -> Any:
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
