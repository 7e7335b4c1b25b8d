"""What XGBoost learns from: a Parquet file in memory, or part by part with its bins on a disk."""

from __future__ import annotations

import operator
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.tabular.parts import count_parts, read_parts

if TYPE_CHECKING:
    import pandas as pd
    import xgboost as xgb


def read_matrix(
    path: str | Path,
    records: Callable[[pd.DataFrame], pd.DataFrame],
    target: str | Callable[[pd.DataFrame], pd.Series],
    *,
    nthread: int = 0,
    reference: xgb.DMatrix | None = None,
) -> xgb.DMatrix:
    """The rows of the Parquet file, or of a folder of such, as XGBoost takes them.

    The labels are the column `target`, or what `target` makes of a part. `records` makes the model's columns of a part,
    with the same types of each. A table of one part is a DMatrix. Several are read one after the other, several times,
    into an ExtMemQuantileDMatrix, whose bins lie in a folder of Python's `tempfile` while the matrix lives. For a table
    to judge with, `reference` is the matrix that is learned from. `nthread` 0 takes what the run gives.
    """
    import xgboost as xgb

    threads = nthread or None
    labels = target if callable(target) else operator.itemgetter(target)
    if count_parts(path) == 1 and not isinstance(reference, xgb.ExtMemQuantileDMatrix):
        (part,) = read_parts(path)
        return xgb.DMatrix(records(part), labels(part), enable_categorical=True, nthread=threads)
    reference = reference if isinstance(reference, xgb.ExtMemQuantileDMatrix) else None
    folder = tempfile.mkdtemp(prefix="xgboost-")
    parts = _iterator(lambda: read_parts(path), records, labels, f"{folder}/bins")
    matrix = xgb.ExtMemQuantileDMatrix(parts, enable_categorical=True, nthread=threads, ref=reference)
    weakref.finalize(matrix, shutil.rmtree, folder, ignore_errors=True)
    return matrix


def known_category(column: pd.Series, known: pd.CategoricalDtype) -> pd.Series:
    """The column of text as these categories; what is none of them is missing. Each text is looked up once."""
    import numpy as np
    import pandas as pd

    codes, texts = pd.factorize(column)
    places = np.append(known.categories.get_indexer(texts), -1)  # the last is for what is missing
    return pd.Series(pd.Categorical.from_codes(places[codes], dtype=known), index=column.index, name=column.name)


def _iterator(
    read: Callable[[], Iterator[pd.DataFrame]],
    records: Callable[[pd.DataFrame], pd.DataFrame],
    labels: Callable[[pd.DataFrame], pd.Series],
    prefix: str,
) -> Any:
    """XGBoost's iterator over the parts; a class is made here, as importing xgboost takes long."""
    import xgboost as xgb

    class Parts(xgb.DataIter):
        def __init__(self) -> None:
            self.parts = read()
            super().__init__(cache_prefix=prefix)

        def reset(self) -> None:
            self.parts = read()

        def next(self, input_data: Callable[..., None]) -> bool:
            part = next(self.parts, None)
            if part is not None:
                input_data(data=records(part), label=labels(part))
            return part is not None

    return Parts()
