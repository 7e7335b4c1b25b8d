"""How much one column says of the answer by itself: a column that says everything is a leak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.tabular.columns import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST_ROWS = 20_000  # that are looked at, of two classes
BINS = 100  # of a column of numbers, at most
FEWEST = 10  # rows in a bin; and of a class, below which an order may be one by chance


def alone(column: pd.Series, answers: pd.Series, task: Task, *, seed: int = 0) -> float:
    """How well this column alone tells the answers: an AUC, 0.5 to 1, or for regression an R² of ranks, 0 to 1.

    `column` has numbers or categories; a missing value is a value of its own. Rows with a like value say what the
    answer is, half of the table for the other half, so that names of rows say nothing. Several classes: the mean over
    each against the others. Of a large table 20,000 rows are taken, of many classes fewer.
    """
    import numpy as np
    import pandas as pd

    chance = np.random.default_rng(seed)
    classes = sorted(pd.unique(answers)) if task != "regression" else []
    most = MOST_ROWS * 2 // max(2, len(classes))
    taken = np.sort(chance.choice(len(column), most, replace=False)) if len(column) > most else np.arange(len(column))
    column, answers = column.iloc[taken], answers.iloc[taken]
    half = chance.permutation(len(column)) % 2
    numeric = pd.api.types.is_numeric_dtype(column)
    if task == "regression":
        ranks = answers.rank().to_numpy()
        told = _told(_groups(column, numeric), ranks, half)
        spread = ((ranks - ranks.mean()) ** 2).sum()
        by_value = 1 - float(((ranks - told) ** 2).sum() / spread) if spread else 0.0
        return max(0.0, by_value, _ranked(column, ranks) if numeric else 0.0)
    groups, scores = _groups(column, numeric), []
    for one in classes[1:] if len(classes) == 2 else classes:
        truth = (answers == one).to_numpy(dtype="float64")
        by_value = _auc(truth, _told(groups, truth, half))
        ordered = numeric and min(truth.sum(), (1 - truth).sum()) >= FEWEST
        by_order = _auc(truth, column.fillna(column.min() - 1).to_numpy()) if ordered else 0.5
        scores.append(max(by_value, by_order, 1 - by_order))
    return max(0.5, float(np.mean(scores))) if scores else 0.5


def _groups(column: pd.Series, numeric: bool) -> np.ndarray:
    """The number of each row's group of like values; missing ones are the group 0."""
    import numpy as np
    import pandas as pd

    if not numeric or column.nunique() <= BINS:
        return np.asarray(pd.factorize(column)[0]) + 1
    bins = max(2, min(BINS, len(column) // FEWEST))
    return (
        np.asarray(column.rank(pct=True).mul(bins).clip(upper=bins - 1e-9).fillna(-1).floordiv(1)).astype("int64") + 1
    )


def _told(groups: np.ndarray, truth: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Per row the mean answer of its group in the other half; the fewer rows, the nearer to the mean of all."""
    import numpy as np

    told, count = np.empty(len(truth)), int(groups.max()) + 1
    for side in (0, 1):
        learn = half != side
        sizes = np.bincount(groups[learn], minlength=count)
        sums = np.bincount(groups[learn], truth[learn], minlength=count)
        told[~learn] = ((sums + truth.mean()) / (sizes + 1))[groups[~learn]]
    return told


def _ranked(column: pd.Series, ranks: np.ndarray) -> float:
    """Spearman's correlation, squared: 1 for a copy of the answer in another unit."""
    import numpy as np

    values = column.fillna(column.min() - 1).rank().to_numpy()
    if np.ptp(values) == 0 or np.ptp(ranks) == 0:
        return 0.0
    return float(np.corrcoef(values, ranks)[0, 1] ** 2)


def _auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve, by the ranks of the scores; 0.5 where there is one class only."""
    import pandas as pd

    count = truth.sum()
    pairs = count * (len(truth) - count)
    ranks = pd.Series(scores).rank().to_numpy()
    return float((ranks[truth == 1].sum() - count * (count + 1) / 2) / pairs) if pairs else 0.5
