"""Reading requests of common forms in a fraction of the time that the standard library takes.

`runner.scoring.inference` must do without msgspec, which an endpoint's container has not. Here a request is read by it
where that gives the very same rows, and else left to the other, which also says what is wrong. A single row becomes
the numbers themselves: after each request's way through the kernel, numpy's many functions take as long as the trees.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from runner.scoring.inference import CODED, CSV, JSON, LARGEST, LINES, NUMBER, BadInput

if TYPE_CHECKING:
    import numpy as np

    from runner.scoring.inference import ColumnReader, Scorer

NONE = type(None)
ARRAYS = re.compile(r'\s*(\{\s*"instances"\s*:\s*)?\[\s*\[')


class Row(array):  # type: ignore[type-arg]
    """A single row as numbers. `values` are what they were read from: runner.serve.capture keeps these."""

    values: Sequence[Any]


class Arrays(msgspec.Struct):
    instances: list[list[float]]


ROWS, INSTANCES = msgspec.json.Decoder(list[list[float]]), msgspec.json.Decoder(Arrays)


def quick(scorer: Scorer) -> Callable[[str, str], Any]:
    """What reads a body of a content type as rows of the model's columns; it gives None for what it leaves."""
    names = frozenset(scorer.names)
    # a category may be written 1e2, which as a number would be 100; a header of numbers would be taken for a record
    odd = any(column.kind in CODED or NUMBER.fullmatch(column.name) for column in scorer.columns)
    numeric = not odd and "instances" not in names
    row = _row(scorer.columns, scorer.code) if scorer.computes is None else lambda _: None

    def read(text: str, kind: str) -> Any:
        if kind.startswith(LINES):
            return None
        if numeric and "present" not in kind:
            try:
                rows = _of_csv(text) if kind.startswith(CSV) else _of_arrays(text)
                if set(map(len, rows)) == {len(names)}:
                    return (row(rows[0]) if len(rows) == 1 else None) or _numbers(rows, len(names))
            except msgspec.MsgspecError:  # not all are numbers, or it is not JSON
                pass
        if not kind.startswith(JSON):
            return None
        try:
            records = scorer.records(msgspec.json.decode(text))
        except (msgspec.MsgspecError, RecursionError, BadInput):
            return None
        return (row(records[0]) if len(records) == 1 else None) or records or None

    return read


def _row(columns: Sequence[ColumnReader], code: str) -> Callable[[Sequence[Any]], array[float] | None]:
    """What makes of a row's values the numbers that the model takes; None where one is of another form, or wrong."""
    coded = [at for at, one in enumerate(columns) if one.kind in CODED]
    plain = [at for at in range(len(columns)) if at not in coded]
    places = sorted(range(len(columns)), key=[*plain, *coded].__getitem__)
    arrange = itemgetter(*places) if coded and len(places) > 1 else None

    def read(values: Sequence[Any]) -> array[float] | None:
        numbers = [values[at] for at in plain] if coded else values
        kinds = set(map(type, numbers))
        present = [one for one in numbers if one is not None] if NONE in kinds else numbers
        if not kinds <= {float, int, NONE} or (present and not (max(present) <= LARGEST and min(present) >= -LARGEST)):
            return None
        if NONE in kinds:
            numbers = [math.nan if one is None else one for one in numbers]
        try:
            codes = [columns[at].codes[values[at]] for at in coded]
        except (KeyError, TypeError):
            return None
        row = Row(code, arrange([*numbers, *codes]) if arrange else codes or numbers)
        row.values = values
        return row

    return read


def _of_arrays(text: str) -> list[list[float]]:
    opening = ARRAYS.match(text)
    if opening is None:
        return []
    return INSTANCES.decode(text).instances if opening[1] else ROWS.decode(text)


def _of_csv(text: str) -> list[list[float]]:
    """Text without a header that is all numbers: as JSON, which takes nothing but numbers between the brackets."""
    if text[:1] not in "-.0123456789" or "]" in text or "\r" in text:
        return []
    lines = text.removesuffix("\n").replace("\n", "],[")
    return ROWS.decode(f"[[{lines}]]")


def _numbers(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
    """Shape (n_rows, width)."""
    import numpy as np

    flat = np.fromiter(chain.from_iterable(rows), dtype="float64", count=len(rows) * width)
    return flat.reshape(len(rows), width)
