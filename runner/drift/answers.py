"""How good a model was once the answers are known, with intervals, against what was promised when it was approved.

Intervals are of the field's closed forms, so that millions of rows take no resampling.

Sources: E. DeLong and others, *Comparing the areas under two or more correlated ROC curves* (1988), in the form of
X. Sun and W. Xu (2014); E. Wilson, *Probable inference* (1927).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from runner.drift.distance import Interval

if TYPE_CHECKING:
    import numpy as np


def auc(answers: np.ndarray, scores: np.ndarray, *, confidence: float = 0.95) -> Interval | None:
    """The chance that a row with answer 1 scores above one with 0; equal scores count half.

    Both of shape (n_rows,), answers 0 or 1. None where fewer than two rows have one of the answers.
    """
    import numpy as np

    answers = np.asarray(answers)
    above, below = np.asarray(scores)[answers == 1], np.asarray(scores)[answers != 1]
    if min(len(above), len(below)) < 2:
        return None
    ranks = _midranks(np.concatenate([above, below]))
    wins = (ranks[: len(above)] - _midranks(above)) / len(below)
    losses = 1 - (ranks[len(above) :] - _midranks(below)) / len(above)
    value = float(wins.mean())
    error = math.sqrt(float(wins.var(ddof=1)) / len(above) + float(losses.var(ddof=1)) / len(below))
    # where every pair is in order no spread is left to measure: the rule of three
    error = max(error, 1.5 / min(len(above), len(below)) if value in (0.0, 1.0) else 0.0)
    return around(value, error, confidence, least=0.0, greatest=1.0)


def share(count: int, rows: int, *, confidence: float = 0.95) -> Interval:
    """The share of rows, with Wilson's interval, which is sound also where none or all are counted.

    0 from 0 to 0 where there are no rows.
    """
    if not rows:
        return Interval(0.0, 0.0, 0.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    value = count / rows
    middle = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(value * (1 - value) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return Interval(value, max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half)))


def mean(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The mean of the values, shape (n_rows,) with at least one, by the normal distribution."""
    import numpy as np

    values = np.asarray(values, dtype="float64")
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return around(float(values.mean()), error, confidence)


def promise(fact: Mapping[str, Any], *, confidence: float = 0.95, recorded: float = 0.95) -> Interval:
    """A metric of a version, with `value` and perhaps `low` and `high` of the confidence `recorded`, at another one.

    Without an interval it is taken as exact.
    """
    value = float(fact["value"])
    low, high = (value if fact.get(end) is None else float(fact[end]) for end in ("low", "high"))
    normal = NormalDist()
    scale = normal.inv_cdf((1 + confidence) / 2) / normal.inv_cdf((1 + recorded) / 2)
    return Interval(value, value - scale * (value - low), value + scale * (high - value))


def loss(promised: Interval, now: Interval, *, better: str = "higher") -> Interval:
    """How much worse `now` is than what was promised; below 0 where it is better.

    Both intervals are of one confidence and of different rows, so their squares add up.
    """
    sign = 1 if better == "higher" else -1
    value = sign * (promised.value - now.value)
    # worse by more where the promise was too low an estimate, and now is too high a one; and the other way round
    if sign == 1:
        up = math.hypot(promised.high - promised.value, now.value - now.low)
        down = math.hypot(promised.value - promised.low, now.high - now.value)
    else:
        up = math.hypot(promised.value - promised.low, now.high - now.value)
        down = math.hypot(promised.high - promised.value, now.value - now.low)
    return Interval(value, value - down, value + up)


def around(
    value: float, error: float, confidence: float, *, least: float = -math.inf, greatest: float = math.inf
) -> Interval:
    """The interval of a normal distribution with this standard error, within the bounds."""
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Interval(value, max(least, value - half), min(greatest, value + half))


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values with the mean of theirs; shape as the values."""
    import numpy as np

    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: np.ndarray = (ends - (counts - 1) / 2)[at]
    return ranks
