"""Parts of the test rows that a model should be as good for as for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PARTS = 3  # of a column of numbers
VALUES = 8  # of a category, the most frequent


def slices(
    records: pd.DataFrame, *, fewest: int, kinds: np.ndarray | None = None, fewest_of_kind: int = 1
) -> dict[str, np.ndarray]:
    """Per slice, such as `Contract: One year` or `tenure: 1 to 12`, which rows are in it, shape (n_rows,).

    A category has a slice for each of its most frequent values, a number is cut into three parts of about equal size;
    what is missing is a slice too. Those with fewer than `fewest` rows, with all rows, or with fewer than
    `fewest_of_kind` rows of each of `kinds`, shape (n_rows,), are left out. Where none is left, all rows are the one
    slice.
    """
    import numpy as np
    import pandas as pd

    masks = {}
    for name in records:
        column = records[name]
        if pd.api.types.is_numeric_dtype(column) and column.nunique() > VALUES:
            parts = pd.qcut(column, PARTS, duplicates="drop")
            for part in parts.cat.categories:
                inside = column[parts == part]
                masks[f"{name}: {inside.min():.6g} to {inside.max():.6g}"] = (parts == part).to_numpy()
        else:
            for value in column.value_counts().index[:VALUES]:
                masks[f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}"] = (
                    (column == value).fillna(False).to_numpy(dtype=bool)
                )
        masks[f"{name}: missing"] = column.isna().to_numpy()
    masks = {name: mask for name, mask in masks.items() if fewest <= mask.sum() < len(records)}
    if kinds is not None:
        masks = {
            name: mask
            for name, mask in masks.items()
            if min((kinds[mask] == kind).sum() for kind in np.unique(kinds)) >= fewest_of_kind
        }
    return masks or {"all rows": np.ones(len(records), dtype=bool)}
