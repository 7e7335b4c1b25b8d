"""What the columns of a table hold, as counts: the reference that a model keeps, and a later window beside it.

Rows go in a batch at a time, so millions of them need the memory of one batch. Knows no files but the reference's name,
and compares nothing: that is `runner.drift`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.model.signature import Column, as_category
from runner.records import FORMAT, Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REFERENCE = "reference.json"  # in a model folder
SHARES = 50  # equal parts of the reference rows that a number's edges lie between
MOST_CATEGORIES = 1000  # of a column that are counted by name
COUNTED_AS_NUMBERS = ("number", "integer")


class NumberCounts(Record, frozen=True, kw_only=True):
    """A column of numbers. `edges` are quantiles of the reference rows, the first their least, the last their greatest.

    `counts` has two more bins than there are edges: below the first edge, the first edge itself, between each two edges
    with the upper one in it, above the last edge.
    """

    edges: list[float]
    counts: list[int]
    missing: int
    min: float | None = None  # None where every value is missing
    max: float | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def rows(self) -> int:
        return sum(self.counts) + self.missing


class CategoryCounts(Record, frozen=True, kw_only=True):
    """A column of names, truth values or texts. `other`: rows with categories beyond the MOST_CATEGORIES commonest."""

    counts: dict[str, int]
    missing: int
    other: int = 0

    @property
    def rows(self) -> int:
        return sum(self.counts.values()) + self.missing + self.other


class Profile(Record, frozen=True, kw_only=True):
    """reference.json, or a window counted by its edges. `scores` has `score`, or `score_LABEL` of several classes."""

    format: int = FORMAT
    rows: int
    numbers: dict[str, NumberCounts] = {}
    categories: dict[str, CategoryCounts] = {}
    scores: dict[str, NumberCounts] = {}
    missing: float | None = None  # the number that means a missing value, as NaN does


def describe(
    tables: Sequence[pd.DataFrame],
    columns: Sequence[Column],
    scores: Mapping[str, np.ndarray] | None = None,
    *,
    missing: float | None = None,
) -> Profile:
    """The profile of reference rows: these columns of all tables together, and scores, each of shape (n_scored,)."""
    import numpy as np

    numbers = {
        column.name: _empty(np.concatenate([_values(table[column.name], missing) for table in tables]))
        for column in columns
        if column.kind in COUNTED_AS_NUMBERS
    }
    categories = {
        column.name: CategoryCounts(counts={}, missing=0) for column in columns if column.kind not in COUNTED_AS_NUMBERS
    }
    counting = Counting(
        Profile(
            rows=0,
            numbers=numbers,
            categories=categories,
            scores={name: _empty(_finite(values)) for name, values in (scores or {}).items()},
            missing=missing,
        )
    )
    for table in tables:
        counting.add(table)
    for name, values in (scores or {}).items():
        counting.add_scores(name, values)
    return counting.profile()


def score_columns(scores: np.ndarray, labels: Sequence[Any] | None) -> dict[str, np.ndarray]:
    """Scores under the names that captured ones have: `score`, or `score_LABEL` of several classes."""
    if scores.ndim == 1:
        return {"score": scores}
    names = labels if labels and len(labels) == scores.shape[1] else range(scores.shape[1])
    return {f"score_{name}": scores[:, at] for at, name in enumerate(names)}


class Counting:
    """Counts a window, batch by batch, by the edges of a reference."""

    def __init__(self, reference: Profile) -> None:
        self.reference, self.rows = reference, 0
        self._numbers = {name: _Numbers(of) for name, of in reference.numbers.items()}
        self._scores = {name: _Numbers(of) for name, of in reference.scores.items()}
        self._categories: dict[str, Counter[str]] = {name: Counter() for name in reference.categories}
        self._missing: Counter[str] = Counter()

    def add(self, frame: pd.DataFrame) -> None:
        """Count these rows. A column that the frame has not is counted nowhere; further columns are ignored."""
        self.rows += len(frame)
        for name, numbers in self._numbers.items():
            if name in frame.columns:
                numbers.add(_values(frame[name], self.reference.missing))
        for name, categories in self._categories.items():
            if name in frame.columns:
                counted, missing = _categories(frame[name])
                categories.update(counted)
                self._missing[name] += missing

    def add_scores(self, name: str, values: np.ndarray) -> None:
        """Count scores, of as many rows as there are; NaN is a row that was not scored."""
        if name in self._scores:
            self._scores[name].add(_finite(values))

    def profile(self) -> Profile:
        """What was counted so far; columns of which no row was seen are left out."""
        return Profile(
            rows=self.rows,
            numbers={name: one.counts() for name, one in self._numbers.items() if one.rows},
            categories={
                name: self._category(name)
                for name, counted in self._categories.items()
                if counted or self._missing[name]
            },
            scores={name: one.counts() for name, one in self._scores.items() if one.rows},
            missing=self.reference.missing,
        )

    def _category(self, name: str) -> CategoryCounts:
        """The reference's categories by name, and the commonest others while it knows all of its own by name."""
        counted, known = self._categories[name], self.reference.categories[name]
        if known.other:
            kept = {category: counted[category] for category in known.counts if category in counted}
        else:
            kept = dict(counted.most_common(MOST_CATEGORIES + len(known.counts)))
        ordered = dict(sorted(kept.items()))
        other = counted.total() - sum(ordered.values())
        return CategoryCounts(counts=ordered, missing=self._missing[name], other=other)


class _Numbers:
    """Counts of one column, and the sums that mean and deviation are made of, about the reference's mean."""

    def __init__(self, reference: NumberCounts) -> None:
        import numpy as np

        self.edges = np.array(reference.edges)
        self.bins = np.zeros(len(self.edges) + 2, dtype="int64")
        self.about = reference.mean or 0.0
        self.missing, self.sum, self.squares = 0, 0.0, 0.0
        self.min, self.max = math.inf, -math.inf

    @property
    def rows(self) -> int:
        return int(self.bins.sum()) + self.missing

    def add(self, values: np.ndarray) -> None:
        import numpy as np

        present = values[~np.isnan(values)]
        self.missing += len(values) - len(present)
        if not len(present):
            return
        at = np.searchsorted(self.edges, present, side="left")
        if len(self.edges):
            at += present >= self.edges[0]
        self.bins += np.bincount(at, minlength=len(self.bins))
        self.sum += float((present - self.about).sum())
        self.squares += float(((present - self.about) ** 2).sum())
        self.min, self.max = min(self.min, float(present.min())), max(self.max, float(present.max()))

    def counts(self) -> NumberCounts:
        present, counts, edges = self.rows - self.missing, self.bins.tolist(), self.edges.tolist()
        if not present:
            return NumberCounts(edges=edges, counts=counts, missing=self.missing)
        shift = self.sum / present
        return NumberCounts(
            edges=edges,
            counts=counts,
            missing=self.missing,
            min=self.min,
            max=self.max,
            mean=self.about + shift,
            std=math.sqrt(max(0.0, self.squares / present - shift**2)),
        )


def _empty(values: np.ndarray) -> NumberCounts:
    """No counts, with the edges and the mean of these values."""
    import numpy as np

    present = values[~np.isnan(values)]
    if not len(present):
        return NumberCounts(edges=[], counts=[0, 0], missing=0)
    edges = np.unique(np.quantile(present, np.linspace(0, 1, SHARES + 1), method="inverted_cdf"))
    return NumberCounts(edges=edges.tolist(), counts=[0] * (len(edges) + 2), missing=0, mean=float(present.mean()))


def _values(series: pd.Series, missing: float | None) -> np.ndarray:
    """As numbers, shape (n_rows,); NaN is a missing value, one that is no number, or infinite."""
    import pandas as pd

    numbers = pd.to_numeric(series.astype("object") if series.dtype == "category" else series, errors="coerce")
    values = _finite(numbers.to_numpy(dtype="float64", na_value=math.nan))
    if missing is not None:
        values[values == missing] = math.nan
    return values


def _finite(values: Any) -> np.ndarray:
    """A copy as float64, with NaN for what is not finite."""
    import numpy as np

    numbers = np.array(values, dtype="float64")
    numbers[~np.isfinite(numbers)] = math.nan
    return numbers


def _categories(series: pd.Series) -> tuple[dict[str, int], int]:
    """(rows by category, rows without one); each distinct value becomes text once."""
    import pandas as pd

    counted = series.astype("object").value_counts(dropna=False) if len(series) else pd.Series(dtype="int64")
    names = as_category(pd.Series(counted.index, dtype="object"))
    totals: Counter[str] = Counter()
    missing = 0
    for name, count in zip(names.tolist(), counted.tolist(), strict=True):
        if name is None:
            missing += count
        else:
            totals[name] += count
    return dict(totals), missing
