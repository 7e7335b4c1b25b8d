"""Reading requests of common forms in a fraction of the time that the standard library takes.

`runner.scoring.inference` must do without msgspec, which an endpoint's container has not. Here a request is read by it
where that gives the very same rows, and else left to the other, which also says what is wrong. A single row becomes
the numbers themselves: after each request's way through the kernel, numpy's many functions take as long as the trees.
Many rows are read some at a time: their floats, each an object of Python, are gone before the next are made, in the
same memory, and small requests are answered between.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from runner.scoring.inference import CODED, CSV, JSON, LARGEST, LINES, NUMBER, BadInput, within

if TYPE_CHECKING:
    from runner.scoring.inference import ColumnReader, Scorer

NONE = type(None)
NUMBERS_BEGIN = b"-.0123456789"
BOM = "\ufeff".encode()
_encode = msgspec.json.Encoder().encode
SOME_BYTES = 32 * 1024  # of rows that are read at once: their floats fit the processor's cache
BLANK = rb"[ \t\n\r]*"  # between JSON's tokens
ARRAYS = re.compile(rb'%b(\{%b"instances"%b:%b)?\[%b(?=\[)' % (BLANK, BLANK, BLANK, BLANK, BLANK))


class Row(array):  # type: ignore[type-arg]
    """A single row as numbers. `values` are what they were read from: runner.serve.capture keeps these."""

    values: Sequence[Any]


def quick(scorer: Scorer) -> Callable[[bytes, str], Any]:
    """What reads a body of a content type as rows of the model's columns; it gives None for what it leaves."""
    names = frozenset(scorer.names)
    # a category may be written 1e2, which as a number would be 100; a header of numbers would be taken for a record
    odd = any(column.kind in CODED or NUMBER.fullmatch(column.name) for column in scorer.columns)
    numeric = not odd and "instances" not in names
    row = _row(scorer.columns, scorer.code) if scorer.computes is None else lambda _: None
    numbers = _numbers(len(names), _floats(len(names), scorer.code) if scorer.computes is None else row)

    def read(body: bytes, kind: str) -> Any:
        if kind.startswith(LINES):
            return None
        body = body.removeprefix(BOM)
        if numeric and "present" not in kind:
            try:
                rows = numbers(_of_csv(body) if kind.startswith(CSV) else _of_arrays(body))
                if rows is not None:
                    return rows
            except msgspec.MsgspecError:  # not all are numbers, a row is of another width, or it is not JSON
                pass
        if not kind.startswith(JSON):
            return None
        try:
            records = scorer.records(msgspec.json.decode(body.decode()))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadInput):
            return None
        return (row(records[0]) if len(records) == 1 else None) or records or None

    return read


def texts(values: list[float]) -> list[str]:
    """As `repr` writes each, in a tenth of the time; only where digits get an exponent do the two differ."""
    if len(values) < 8:
        return list(map(repr, values))
    written = _encode(values)[1:-1].decode().split(",")
    return [text if 1e-3 <= abs(value) < 1e15 else repr(value) for value, text in zip(values, written, strict=True)]


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


def _floats(width: int, code: str) -> Callable[[Sequence[float]], array[float] | None]:
    """As `_row`, for values that are `width` floats."""
    pack = struct.Struct(f"{width}{code}").pack

    def read(values: Sequence[float]) -> array[float] | None:
        if not (max(values) <= LARGEST and min(values) >= -LARGEST):
            return None
        row = Row(code, pack(*values))
        row.values = values
        return row

    return read


def _of_arrays(body: bytes) -> Iterable[bytes]:
    """JSON of some rows after the other; nothing where the body is not `[[…]]` or `{"instances": [[…]]}`."""
    opening, end = ARRAYS.match(body), body.rfind(b"]")
    if opening is None or body[end + 1 :].strip(b" \t\n\r") != (b"}" if opening[1] else b""):
        return ()
    start = opening.end()
    if end - start <= SOME_BYTES:
        return (b"[%b]" % body[start:end],)
    # the bracket that ends a part's last row stands in the separator, but for the last part
    return (b"[%b%b]" % (body[at:to], b"]" * (to < end)) for at, to in _some(body, b"],", start, end))


def _of_csv(body: bytes) -> Iterable[bytes]:
    """Text without a header that is all numbers: as JSON, which takes nothing but numbers between the brackets."""
    if body[:1] not in NUMBERS_BEGIN or b"]" in body or b"\r" in body:
        return ()
    end = len(body) - body.endswith(b"\n")
    if end <= SOME_BYTES:
        return (b"[[%b]]" % body[:end].replace(b"\n", b"],["),)
    return (b"[[%b]]" % body[at:to].replace(b"\n", b"],[") for at, to in _some(body, b"\n", 0, end))


def _some(text: bytes, separator: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where parts of this text begin and end, between which there is a separator."""
    while (stop := text.find(separator, start + SOME_BYTES, end)) >= 0:
        yield start, stop
        start = stop + len(separator)
    yield start, end


def _numbers(width: int, single: Callable[[Sequence[float]], Any]) -> Callable[[Iterable[bytes]], Any]:
    """What makes numbers of JSON of rows: of one row what `single` does, else float64 of shape (n_rows, width).

    It gives None where there is no row, or a number that is too large, and raises MsgspecError unless each is `width`
    numbers.
    """
    import numpy as np

    decode = msgspec.json.Decoder(list[tuple[(float,) * width]]).decode  # type: ignore[misc]
    pack = struct.Struct(f"{width}d").pack  # in a third of the time that numpy takes

    def read(parts: Iterable[bytes]) -> Any:
        packed = []
        for part in parts:
            rows = decode(part)
            if not rows:  # blanks after a last comma
                return None
            if len(rows) == 1 and isinstance(parts, tuple) and (row := single(rows[0])) is not None:
                return row
            packed.append(b"".join([pack(*values) for values in rows]))
        if not packed:
            return None
        numbers = np.frombuffer(b"".join(packed)).reshape(-1, width)
        return numbers if within(numbers) else None

    return read
