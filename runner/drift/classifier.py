"""Whether a classifier can tell the window's rows from the reference's: one number for "has the world changed".

It sees what no comparison of single columns sees, such as minutes and a charge that no longer go together.

Source: D. Lopez-Paz and M. Oquab, *Revisiting classifier two-sample tests* (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from runner.drift.answers import around, auc
from runner.drift.distance import Interval

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.model.signature import Column

FOLDS, TREES = 3, 40
SETTINGS: dict[str, Any] = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 3, "eta": 0.2}


@dataclass(frozen=True)
class Separation:
    """`auc` is 0.5 where rows cannot be told apart, 1 where each can; `columns` by which, the most telling first."""

    auc: Interval
    columns: tuple[str, ...] = ()


def separation(
    reference: pd.DataFrame,
    window: pd.DataFrame,
    columns: Sequence[Column],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    threads: int = 0,
) -> Separation | None:
    """How well gradient-boosted trees tell the two tables apart, on rows that they did not learn from.

    Takes the columns that both tables have. None where one has fewer than twelve rows, or no column is in both. Equal
    arguments give equal results.
    """
    import numpy as np
    import xgboost as xgb

    taken = [one for one in columns if one.name in reference.columns and one.name in window.columns]
    if min(len(reference), len(window)) < 4 * FOLDS or not taken:
        return None
    rows = _features(reference, window, taken)
    is_window = np.repeat([0, 1], [len(reference), len(window)])
    chance = np.random.default_rng(seed)
    fold = np.concatenate([chance.permutation(len(table)) % FOLDS for table in (reference, window)])
    data = xgb.DMatrix(rows, is_window, enable_categorical=True, nthread=threads or None)
    parts, gain = [], dict.fromkeys((one.name for one in taken), 0.0)
    for number in range(FOLDS):
        learnt, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        booster = xgb.train({**SETTINGS, "seed": seed, "nthread": threads}, data.slice(learnt), TREES)
        parts.append(auc(is_window[held], booster.predict(data.slice(held)), confidence=confidence))
        for name, value in booster.get_score(importance_type="total_gain").items():
            gain[name] += float(value)  # type: ignore[arg-type]  # a list only of linear models
    return Separation(_mean(parts, confidence), tuple(sorted(gain, key=lambda name: -gain[name])))


def _mean(parts: Sequence[Interval | None], confidence: float) -> Interval:
    """Of the folds, whose scores have no common scale; each is of other rows."""
    whole = [part for part in parts if part is not None]
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    errors = [max(part.high - part.value, part.value - part.low) / z for part in whole]
    value = sum(part.value for part in whole) / len(whole)
    return around(value, math.hypot(*errors) / len(whole), confidence, least=0.0, greatest=1.0)


def _features(reference: pd.DataFrame, window: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Both tables, one below the other: numbers as numbers, all else as categories."""
    import pandas as pd

    from runner.model.profile import COUNTED_AS_NUMBERS
    from runner.model.signature import as_category

    made: dict[str, np.ndarray | pd.Categorical] = {}
    for column in columns:
        both = pd.concat(
            [reference[column.name].astype("object"), window[column.name].astype("object")], ignore_index=True
        )
        if column.kind in COUNTED_AS_NUMBERS:
            numbers = pd.to_numeric(both, errors="coerce").to_numpy(dtype="float64", na_value=math.nan)
            made[column.name] = pd.Series(numbers).where(abs(numbers) < math.inf).to_numpy()
        else:
            made[column.name] = pd.Categorical(as_category(both))
    return pd.DataFrame(made)
