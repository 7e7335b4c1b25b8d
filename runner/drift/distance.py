"""How far a window of rows lies from the reference, column by column: by counts alone, whatever the number of rows.

Two questions of each column. *Is it more than chance?* is a permutation test: both samples are drawn again from their
common counts, which is exact at any sample size, also for rare categories. *Is it enough to matter?* is the population
stability index, and for numbers the Wasserstein distance, with bootstrap intervals. A column has moved when both are
answered with yes; where an interval reaches its limit without that, it may have moved, and more rows are needed.

Numbers of many columns are corrected by Holm's method: it bounds the chance of any false alarm, however the columns
depend on each other, and they do (minutes and their charge). Benjamini-Hochberg bounds the share of false ones among
several, which is no promise to somebody who is woken up by the first.

Sources: B. Yurdakul, *Statistical properties of population stability index* (2018); S. Holm, *A simple sequentially
rejective multiple test procedure* (1979); B. Phipson and G. Smyth, *Permutation p-values should never be zero* (2010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from runner.model.profile import CategoryCounts, NumberCounts, Profile

State = Literal["moved", "may have moved", "same"]
GROUPS = 10  # of a number's values, with about as many reference rows each
RARE = 0.005  # categories with a smaller share of the reference rows are one, and none of them is missed
DRAWS = 1000  # at least; more where many columns need smaller p-values
MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """One column, or score, of a window beside the reference."""

    column: str
    kind: Literal["number", "category", "score"]
    state: State
    psi: Interval  # population stability index beyond what chance gives
    p: float  # of the permutation test, or of the least likely absence; adjusted for all columns by Holm's method
    why: str  # what is different, in words
    wasserstein: Interval | None = None  # of numbers: in standard deviations of the reference
    missing_before: float = 0.0  # share of the reference rows
    missing: float = 0.0  # share of the window's rows


@dataclass(frozen=True)
class Comparison:
    """All columns, the largest distance first."""

    changes: tuple[Change, ...]
    not_compared: tuple[str, ...] = ()  # columns that the window does not have

    @property
    def moved(self) -> tuple[Change, ...]:
        """Those that have moved."""
        return tuple(change for change in self.changes if change.state == "moved")

    @property
    def undecided(self) -> tuple[Change, ...]:
        """Those of which more rows are needed to say so."""
        return tuple(change for change in self.changes if change.state == "may have moved")

    def facts(self) -> list[dict[str, Any]]:
        """A row for each column, for a table."""
        return [
            {
                "column": change.column,
                "state": change.state,
                "psi": change.psi.value,
                "low": change.psi.low,
                "high": change.psi.high,
                "moved_sd": None if change.wasserstein is None else change.wasserstein.value,
                "p": change.p,
                "missing_before": change.missing_before,
                "missing": change.missing,
                "why": change.why,
            }
            for change in self.changes
        ]


def compare(
    reference: Profile,
    window: Profile,
    *,
    limit: float = 0.1,
    limit_sd: float = 0.3,
    alpha: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Every column and score that both profiles have.

    A change matters from a population stability index of `limit` on, or for numbers from a Wasserstein distance of
    `limit_sd` standard deviations on. `alpha` is the chance of any false alarm that is taken, over all columns;
    `confidence` that of each interval. Equal arguments give equal results.
    """
    import numpy as np

    chance = np.random.default_rng(seed)
    pairs: list[_Pair] = []
    for name, number in reference.numbers.items():
        if name in window.numbers:
            pairs.append(_of_numbers(name, "number", number, window.numbers[name]))
    for name, category in reference.categories.items():
        if name in window.categories:
            pairs.append(_of_categories(name, category, window.categories[name]))
    for name, score in reference.scores.items():
        if name in window.scores:
            pairs.append(_of_numbers(name, "score", score, window.scores[name]))
    pairs = [pair for pair in pairs if pair.before.sum() and pair.now.sum()]
    tests = len(pairs) + sum(len(pair.absences) for pair in pairs)
    draws = min(MOST_DRAWS, max(DRAWS, math.ceil(1.25 * tests / alpha)))  # else no p-value could be small enough
    measured = [_measured(pair, draws, confidence, chance) for pair in pairs]
    flat = [p for pair, (_, p, _) in zip(pairs, measured, strict=True) for p in (p, *pair.absences.values())]
    adjusted, at, changes = holm(flat), 0, []
    for pair, (psi, _, wasserstein) in zip(pairs, measured, strict=True):
        own = adjusted[at]
        gone = {name: p for name, p in zip(pair.absences, adjusted[at + 1 :], strict=False) if p < alpha}
        at += 1 + len(pair.absences)
        changes.append(_change(pair, psi, wasserstein, own=own, gone=gone, limits=(limit, limit_sd), alpha=alpha))
    compared = {pair.name for pair in pairs}
    missing = [name for name in (*reference.numbers, *reference.categories) if name not in compared]
    order = {"moved": 0, "may have moved": 1, "same": 2}
    return Comparison(tuple(sorted(changes, key=lambda one: (order[one.state], -one.psi.value))), tuple(missing))


def psi(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Population stability index of counts, shape (…, n_bins), summed over the last axis.

    Half a row is added to each bin, so that an empty one gives a large number and not infinity.
    """
    import numpy as np

    bins = before.shape[-1]
    expected = (before + 0.5) / (before.sum(axis=-1, keepdims=True) + 0.5 * bins)
    observed = (now + 0.5) / (now.sum(axis=-1, keepdims=True) + 0.5 * bins)
    index: np.ndarray = ((observed - expected) * np.log(observed / expected)).sum(axis=-1)
    return index


def wasserstein(points: np.ndarray, before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The area between two cumulative distributions, in the unit of `points`.

    Counts have the shape (…, n_bins); bin i lies between the points i and i + 1, of which there are n_bins + 1.
    """
    import numpy as np

    before_below = before.cumsum(axis=-1) / before.sum(axis=-1, keepdims=True)
    now_below = now.cumsum(axis=-1) / now.sum(axis=-1, keepdims=True)
    apart = np.abs(before_below - now_below)
    apart = np.concatenate([np.zeros_like(apart[..., :1]), apart], axis=-1)
    area: np.ndarray = ((apart[..., 1:] + apart[..., :-1]) / 2 * np.diff(points)).sum(axis=-1)
    return area


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm's step-down method: below alpha are those that it rejects at alpha."""
    ordered = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(ordered):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


@dataclass(frozen=True)
class _Pair:
    """A column's bins in the reference and in the window; `group` is the number of each bin's group for the index."""

    name: str
    kind: Literal["number", "category", "score"]
    before: np.ndarray
    now: np.ndarray
    group: np.ndarray
    absences: dict[str, float]  # p-value of seeing none, by category that is common in the reference
    words: str
    points: np.ndarray | None = None  # of numbers: between which each bin lies, without that of missing values
    unit: float = 1.0
    missing_before: float = 0.0
    missing: float = 0.0


def _of_numbers(name: str, kind: Literal["number", "score"], before: NumberCounts, now: NumberCounts) -> _Pair:
    import numpy as np

    counts = np.array(before.counts)
    middle = counts.cumsum() - counts / 2
    group = np.minimum(GROUPS * middle / max(1, counts.sum()), GROUPS - 1).astype("int64")
    group[-1] = group[-2]  # above the greatest belongs to the greatest
    points = None
    if len(before.edges) > 1 and before.std:
        least, greatest = before.edges[0], before.edges[-1]
        if now.min is not None and now.max is not None:
            least, greatest = min(least, now.min), max(greatest, now.max)
        points = np.array([least, before.edges[0], *before.edges, greatest])
    return _Pair(
        name=name,
        kind=kind,
        before=np.array([*before.counts, before.missing]),
        now=np.array([*now.counts, now.missing]),
        group=np.array([*group, GROUPS]),
        absences={},
        words=_number_words(before, now),
        points=points,
        unit=before.std or 1.0,
        missing_before=before.missing / max(1, before.rows),
        missing=now.missing / max(1, now.rows),
    )


def _of_categories(name: str, before: CategoryCounts, now: CategoryCounts) -> _Pair:
    import numpy as np

    rows = max(1, before.rows)
    common = [category for category, count in before.counts.items() if count >= RARE * rows]
    rare = [category for category in before.counts if category not in set(common)]
    unseen = {category: count for category, count in now.counts.items() if category not in before.counts}
    old = [
        *(before.counts[category] for category in common),
        sum(before.counts[category] for category in rare) + before.other,
        0,
        before.missing,
    ]
    new = [
        *(now.counts.get(category, 0) for category in common),
        sum(now.counts.get(category, 0) for category in rare) + (now.other if before.other else 0),
        sum(unseen.values()) + (0 if before.other else now.other),
        now.missing,
    ]
    present = sum(before.counts.values()) + before.other, sum(new) - now.missing
    return _Pair(
        name=name,
        kind="category",
        before=np.array(old),
        now=np.array(new),
        group=np.arange(len(old)),
        absences={
            category: 1.0 if now.counts.get(category) else _absence(before.counts[category], *present)
            for category in common
        },
        words=_category_words(before, now),
        missing_before=before.missing / rows,
        missing=now.missing / max(1, now.rows),
    )


def _absence(count: int, before: int, now: int) -> float:
    """The chance that all `count` rows of a category lie among the `before` rows, none among the `now`."""
    total = before + now
    return math.exp(
        math.lgamma(before + 1)
        - math.lgamma(before - count + 1)
        - math.lgamma(total + 1)
        + math.lgamma(total - count + 1)
    )


def _measured(
    pair: _Pair, draws: int, confidence: float, chance: np.random.Generator
) -> tuple[Interval, float, Interval | None]:
    """(index, p-value, Wasserstein distance) of a column; what chance gives the index, on average, is taken off."""
    to_group = _grouping(pair.group)
    before, now = pair.before @ to_group, pair.now @ to_group
    permuted = chance.multivariate_hypergeometric(before + now, int(now.sum()), size=draws)
    by_chance = psi(before + now - permuted, permuted)
    index = float(psi(before, now))
    p = (1 + int((by_chance >= index - 1e-12).sum())) / (draws + 1)
    old = chance.multinomial(int(pair.before.sum()), pair.before / pair.before.sum(), size=DRAWS)
    new = chance.multinomial(int(pair.now.sum()), pair.now / pair.now.sum(), size=DRAWS)
    distance = _interval(index - float(by_chance.mean()), psi(old @ to_group, new @ to_group), confidence)
    if pair.points is None or not pair.before[:-1].sum() or not pair.now[:-1].sum():
        return distance, p, None
    sampled = (old[:, :-1].sum(axis=1) > 0) & (new[:, :-1].sum(axis=1) > 0)
    shifts = wasserstein(pair.points, old[sampled, :-1], new[sampled, :-1]) / pair.unit
    value = float(wasserstein(pair.points, pair.before[:-1], pair.now[:-1])) / pair.unit
    return distance, p, _interval(value, shifts, confidence)


def _grouping(group: np.ndarray) -> np.ndarray:
    """A matrix that adds the bins of each group, shape (n_bins, n_groups)."""
    import numpy as np

    matrix: np.ndarray = (group[:, None] == np.unique(group)).astype("int64")
    return matrix


def _interval(value: float, sampled: np.ndarray, confidence: float) -> Interval:
    """As wide as the bootstrap's, about the value: samples of samples lie further apart than the samples do."""
    import numpy as np

    value = max(0.0, value)
    low, high = value + np.quantile(sampled, [(1 - confidence) / 2, (1 + confidence) / 2]) - sampled.mean()
    return Interval(value, max(0.0, min(float(low), value)), max(float(high), value))


def _change(
    pair: _Pair,
    index: Interval,
    distance: Interval | None,
    *,
    own: float,
    gone: dict[str, float],
    limits: tuple[float, float],
    alpha: float,
) -> Change:
    matters = [(index, limits[0]), *([(distance, limits[1])] if distance is not None else [])]
    enough = any(measure.value >= limit for measure, limit in matters)
    may = any(measure.high >= limit for measure, limit in matters)
    state: State = "moved" if gone or (own < alpha and enough) else "may have moved" if may else "same"
    change = Change(
        column=pair.name,
        kind=pair.kind,
        state=state,
        psi=index,
        p=min([own, *gone.values()]),
        why=pair.words,
        wasserstein=distance,
        missing_before=pair.missing_before,
        missing=pair.missing,
    )
    if gone:
        names = ", ".join(f"`{name}`" for name in list(gone)[:3]) + (" and others" if len(gone) > 3 else "")
        return replace(change, why=f"no row has {names} any more; {change.why}")
    return change


def _number_words(before: NumberCounts, now: NumberCounts) -> str:
    words = []
    if before.mean is not None and now.mean is not None:
        words.append(f"mean {before.mean:.4g} → {now.mean:.4g}")
        outside = (now.counts[0] + now.counts[-1]) / max(1, sum(now.counts))
        if outside >= RARE:
            words.append(f"{outside:.1%} outside {before.edges[0]:.4g} to {before.edges[-1]:.4g}")
    return ", ".join([*words, *_missing_words(before, now)])


def _category_words(before: CategoryCounts, now: CategoryCounts) -> str:
    """The two categories whose share differs most."""
    shares = [
        (category, before.counts.get(category, 0) / max(1, before.rows), count / max(1, now.rows))
        for category, count in {**dict.fromkeys(before.counts, 0), **now.counts}.items()
    ]
    shares.sort(key=lambda one: -abs(one[2] - one[1]))
    words = [f"`{category}` {old:.1%} → {new:.1%}" for category, old, new in shares[:2]]
    if unseen := [category for category in now.counts if category not in before.counts]:
        words.append(f"never seen before: {', '.join(f'`{category}`' for category in unseen[:3])}")
    return ", ".join([*words, *_missing_words(before, now)])


def _missing_words(before: NumberCounts | CategoryCounts, now: NumberCounts | CategoryCounts) -> list[str]:
    old, new = before.missing / max(1, before.rows), now.missing / max(1, now.rows)
    return [f"missing {old:.1%} → {new:.1%}"] if abs(new - old) >= RARE else []
