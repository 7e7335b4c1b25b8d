"""A number with its interval: the same measure on many samples of the test rows, drawn with replacement.

A sample is a row of weights that say how often each test row is in it. Models that are compared are drawn into the same
samples, so that what is uncertain about the rows cancels out (the paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from runner.tabular.columns import Task

if TYPE_CHECKING:
    import numpy as np

MOST_ROWS = 20_000  # of a sample
CELLS = 4_000_000  # weights at a time: 32 MB, and a dozen times that while they are used


def resample(
    measure: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
    rows: int | np.ndarray,
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
    most_rows: int = MOST_ROWS,
) -> dict[str, dict[str, float]]:
    """Per number that `measure` gives: its `value` for the rows as they are, and `low` and `high` of the interval.

    `rows` are the places of the rows, shape (n_rows,), or how many there are. `measure` takes weights of shape
    (n_samples, n_drawn) and the places of the rows that they are for, shape (n_drawn,); it gives arrays of shape
    (n_samples,), NaN where a sample has no such number, which is left out of the interval. Equal seeds give equal
    samples for equally many rows. Memory is bounded, whatever their number.

    Of more than `most_rows` the samples are of so many, taken by chance once; the interval's ends are moved towards the
    value of all rows by the root of the share taken, as an interval of all would be narrower.
    """
    import numpy as np

    every = np.arange(rows) if isinstance(rows, int) else rows
    chance, size = np.random.default_rng(seed), min(len(every), most_rows)
    taken = every if size == len(every) else np.sort(chance.choice(every, size, replace=False))
    ones, some = np.ones((1, len(every))), max(1, CELLS // size)
    whole = measure(ones, every)
    part = whole if taken is every else measure(ones[:, :size], taken)
    blocks = []
    for start in range(0, resamples, some):
        drawn = chance.integers(0, size, (min(some, resamples - start), size))
        weights = np.stack([np.bincount(one, minlength=size) for one in drawn]).astype("float64")
        blocks.append(measure(weights, taken))
    narrower, estimates = (size / len(every)) ** 0.5, {}
    for name, (value,) in whole.items():
        samples = value + (np.concatenate([block[name] for block in blocks]) - part[name]) * narrower
        if taken is every:  # without what rounding would add
            samples = np.concatenate([block[name] for block in blocks])
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.nanquantile(samples, ends) if np.isfinite(samples).any() else (value, value)
        estimates[name] = {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}
    return estimates


def main_measure(task: Task, truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The one of `measures` by which models are compared, shape (n_samples,): the RMSE of a number, else the AUC."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        if task == "regression":
            return np.asarray(np.sqrt(weights @ (truth - scores) ** 2 / weights.sum(axis=1)))
        return _ranked(truth, scores, weights) if task == "binary" else _mean_auc(truth, scores, weights)


def measures(
    task: Task, truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """Per measure of the task its value on each sample of weights, shape (n_samples,).

    binary: auc, pr_auc, log_loss, brier, accuracy, of `truth` 1 or 0 and `scores` probabilities, shape (n_rows,).
    multiclass: auc (the mean of each class against the others), log_loss, accuracy, macro_f1, of `truth` the class's
    number and `scores`, shape (n_rows, n_classes).
    regression: rmse, mae, r2, of `truth` and `scores` numbers. log_loss is in nats, NaN stands where a sample has one
    class only or no spread.
    """
    import numpy as np

    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if task == "binary":
            return _binary(truth, scores, weights, threshold)
        if task == "multiclass":
            return _multiclass(truth, scores, weights)
        error = truth - scores
        squares = weights @ error**2
        means = weights @ truth / total
        spread = weights @ truth**2 - total * means**2
        spread = np.where(spread > 1e-12 * np.maximum(1, weights @ truth**2), spread, np.nan)
        return {"rmse": np.sqrt(squares / total), "mae": weights @ abs(error) / total, "r2": 1 - squares / spread}


def _binary(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    import numpy as np

    total, sure = weights.sum(axis=1), np.clip(scores, 1e-15, 1 - 1e-15)
    return {
        "auc": _ranked(truth, scores, weights),
        "pr_auc": _precise(truth, scores, weights),
        "log_loss": -(weights @ np.where(truth == 1, np.log(sure), np.log1p(-sure))) / total,
        "brier": weights @ (truth - scores) ** 2 / total,
        "accuracy": weights @ ((scores >= threshold) == (truth == 1)) / total,
    }


def _multiclass(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    import numpy as np

    total, classes = weights.sum(axis=1), np.arange(scores.shape[1])
    chosen = scores.argmax(axis=1)
    given = np.clip(scores[np.arange(len(truth)), truth], 1e-15, 1)
    is_class, is_chosen = (one[:, None] == classes for one in (truth, chosen))
    present = weights @ is_class
    f1 = 2 * (weights @ (is_class & is_chosen)) / (present + weights @ is_chosen)
    return {
        "auc": _mean_auc(truth, scores, weights),
        "log_loss": -(weights @ np.log(given)) / total,
        "accuracy": weights @ (truth == chosen) / total,
        "macro_f1": _mean(np.where(present > 0, f1, np.nan)),  # a class that is not there has none
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Of each row, of what it has; NaN where it has nothing."""
    import numpy as np

    there = np.isfinite(values)
    return np.asarray(np.where(there, values, 0).sum(axis=1) / there.sum(axis=1))


def _mean_auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean AUC of each class against the others."""
    import numpy as np

    return _mean(np.array([_ranked(truth == one, scores[:, one], weights) for one in np.unique(truth)]).T)


def _ranked(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC of each sample, shape (n_samples,); NaN for one with a single class. Equal scores count half."""
    import numpy as np

    positive = np.flatnonzero(truth)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where each group of equal scores begins
    group = np.cumsum(np.bincount(starts, minlength=len(order)))[np.argsort(order)][positive] - 1
    negatives = np.add.reduceat((weights * (1 - truth))[:, order], starts, axis=1)
    below = negatives.cumsum(axis=1)
    wins = (weights[:, positive] * (below[:, group] - negatives[:, group] / 2)).sum(axis=1)
    return np.asarray(wins / (below[:, -1] * weights[:, positive].sum(axis=1)))


def _precise(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The average precision (PR-AUC) of each sample, shape (n_samples,)."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ties = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf))
    yes = np.add.reduceat((weights * truth)[:, order], ties, axis=1)
    above = np.add.reduceat(weights[:, order], ties, axis=1).cumsum(axis=1)
    yes_above = yes.cumsum(axis=1)
    return np.asarray(np.nansum(yes * (yes_above / above), axis=1) / yes_above[:, -1])
