"""Requests and answers as lines for monitoring; `runner.model.captured` has their form, and reads them.

Columns that a target leaves out or hashes are gone before a line is queued. Knows neither sockets nor files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runner.model.captured import Line
from runner.scoring.fast_reading import ARRAYS, BOM, Row
from runner.scoring.inference import CSV, JSON, LINES, BadInput, category
from runner.serve.capture_files import CaptureWriter
from runner.serve.capture_settings import CaptureSettings, read_key

if TYPE_CHECKING:
    from runner.scoring.inference import Scorer
    from runner.serve.metrics import Metrics

DAYS, MAX_MB = 30, 1000
HASH_BYTES = 16
BATCH = 1000  # rows of a file that are one request
SOME = 64  # rows that are encoded at once: a request of many must not keep the others waiting for longer than a moment
OPENING_BYTES = 64  # of a body, in which arrays begin
LONGEST_ID = 128
ID_HEADERS = (b"x-amzn-sagemaker-inference-id", b"x-request-id")
NOT_KEPT = "The sentence is not kept: it may have a value of a column that is hidden here."

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Exchange:
    """One request with its answer. `table` and `scores` are the scorer's; None where it was refused."""

    status: int
    rows: int = 0
    id: str = ""
    error: BadInput | str | None = None
    body: bytes = b""
    content_type: str = ""
    table: Any = None
    scores: Any = None
    reserved: bool = False  # its body counts among what waits to be written


class RequestCapture:
    """Makes lines of what one version is asked and answers, and has them written."""

    def __init__(
        self, scorer: Scorer, settings: CaptureSettings, *, metrics: Metrics | None = None, writers: int = 1
    ) -> None:
        """Reads the key where columns are hashed. Raises Refused where it cannot be read."""
        spec = settings.spec
        self.writer = CaptureWriter(
            Path(settings.folder),
            days=spec.days or DAYS,
            max_bytes=(spec.max_mb or MAX_MB) * 2**20,
            writers=writers,
            on_change=metrics.captured if metrics is not None else lambda *_: None,
        )
        self._scorer, self._percent = scorer, spec.percent
        self._key = read_key(Path(settings.key)) if spec.hash else b""
        self._hidden = frozenset((*spec.hash, *spec.leave_out))
        names = [name for name in scorer.names if name not in spec.leave_out]
        self.more = [name for name in spec.keep if name not in scorer.names]
        self._whole = not self._hidden.intersection(scorer.names) and not self.more
        self._places = [scorer.names.index(name) for name in names]
        self._hashed = [at for at, name in enumerate([*names, *self.more]) if name in spec.hash]
        self._columns: Any = msgspec.Raw(_encode([*names, *self.more]))
        self._version = scorer.model
        self._second = (0, "")
        self._prefix, self._count = "", 0

    def start(self) -> None:
        """In the process that answers, after its fork."""
        self.writer.start()

    def close(self) -> None:
        self.writer.close()

    def id_of(self, headers: Mapping[bytes, bytes]) -> str:
        """The request's id: the sender's, where it is short and plain, or a new one."""
        for name in ID_HEADERS:
            given = headers.get(name)
            if given and len(given) <= LONGEST_ID and given.isascii() and given.decode("ascii").isprintable():
                return given.decode("ascii")
        self._prefix = self._prefix or secrets.token_hex(8)
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def wants(self, request_id: str) -> bool:
        """Whether the request is of the sample. By its id alone, so that every program chooses the same."""
        if self._percent >= 100:
            return True
        digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % 100 < self._percent

    def reserve(self, exchange: Exchange) -> bool:
        """Whether a large exchange is of the sample and may keep its body until `write_large` or `release`."""
        exchange.reserved = self.wants(exchange.id) and self.writer.reserve(len(exchange.body))
        return exchange.reserved

    def release(self, exchange: Exchange) -> None:
        if exchange.reserved:
            exchange.reserved = False
            self.writer.release(len(exchange.body))

    def write_large(self, exchange: Exchange, seconds: float) -> None:
        """Queue the line of an exchange that is reserved; the answer was sent."""
        try:
            line = self._line(exchange, seconds, self._rows(exchange))
        finally:
            self.release(exchange)
        self.writer.offer(line)

    def write(self, exchange: Exchange, seconds: float) -> None:
        """Queue the line of an exchange, if it is of the sample; the answer was sent."""
        if self.wants(exchange.id) and self.writer.has_room(len(exchange.body)):
            rows = None if exchange.table is None else self._rows(exchange)
            self.writer.offer(self._line(exchange, seconds, rows))

    def part(
        self, table: Sequence[Sequence[Any]], further: Mapping[str, Sequence[Any]], scores: Any, seconds: float
    ) -> None:
        """Write rows that were scored without a request, 1,000 of them as one; `further` are columns in `more`."""
        for at in range(0, len(table), BATCH):
            some = slice(at, at + BATCH)
            rows, request_id = table[some], self.id_of({})
            if not self.wants(request_id):
                continue
            absent = [None] * len(rows)
            more = list(zip(*(further[name][some] if name in further else absent for name in self.more), strict=True))
            kept = rows if self._whole else self._chosen(rows, [list(map(_plain, row)) for row in more])
            exchange = Exchange(200, len(rows), request_id, scores=scores[some])
            self.writer.offer(self._line(exchange, seconds * len(rows) / len(table), kept))
        self.writer.flush()

    def _line(self, exchange: Exchange, seconds: float, rows: Any) -> bytes:
        """`rows` are values, or JSON of them; None where it was refused."""
        line = Line(self._now(), self._version, exchange.id, exchange.status, round(seconds, 6))
        if rows is None:
            line.error = self._sentence(exchange.error)
        else:
            line.columns, line.scores = self._columns, exchange.scores.tolist()
            line.rows = rows if isinstance(rows, msgspec.Raw) or len(rows) <= SOME else _encoded(rows)
        try:
            return _encode(line) + b"\n"
        except (TypeError, ValueError, OverflowError):  # a whole number of more than 64 bits, or half a character
            line.rows = _encoded(rows)
            return _encode(line) + b"\n"

    def _now(self) -> str:
        now = time.time()
        if self._second[0] != int(now):
            self._second = (int(now), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)))
        return f"{self._second[1]}.{int(now % 1 * 1000):03d}Z"

    def _sentence(self, error: BadInput | str | None) -> str:
        """Why it was refused, unless a value of a hidden column could stand in it."""
        if not self._hidden or not isinstance(error, BadInput) or error.status != 400:
            return str(error)
        if error.column is None or error.column in self._hidden:
            where = f"Column {error.column}. " if error.column else ""
            return f"{where}{NOT_KEPT}"
        return str(error)

    def _rows(self, exchange: Exchange) -> Any:
        """The records as the sender wrote them, in the order of the columns; JSON where they are kept as they stand."""
        table = exchange.table
        if self._whole and not isinstance(table, list):  # numbers, read by runner.scoring.fast_reading
            as_it_stands = _as_it_stands(exchange.body, exchange.content_type)
            if as_it_stands is not None:
                return as_it_stands
        values = table if isinstance(table, list) else [table.values] if isinstance(table, Row) else table.tolist()
        if self._whole:
            return values
        more = self._further(exchange.body, exchange.content_type, len(values)) if self.more else []
        return self._chosen(values, more)

    def _chosen(self, rows: Sequence[Sequence[Any]], more: Sequence[Sequence[Any]]) -> list[list[Any]]:
        chosen = [[row[at] for at in self._places] for row in rows]
        for row, further in zip(chosen, more, strict=bool(self.more)):
            row += further
        for at in self._hashed:
            for row in chosen:
                row[at] = self.hashed(row[at])
        return chosen

    def hashed(self, value: object) -> str | None:
        """What is kept of a value: equal for equal ones, also for 657 and "657"; None for what is missing."""
        text = category(value) if value is not None and value == value else ""
        digest = hashlib.blake2b(text.encode(errors="replace"), key=self._key, digest_size=HASH_BYTES)
        return digest.hexdigest() if text else None

    def _further(self, body: bytes, content_type: str, count: int) -> list[list[Any]]:
        """Per row the columns that the model has not; None where the body gives no names."""
        text, kind = body.decode().removeprefix("\ufeff"), content_type.lower()
        items: list[Any]
        if kind.startswith(CSV):
            rows = self._scorer.without_blank_lines(list(csv.reader(io.StringIO(text, newline=""))))
            names = [name.strip() for name in rows[0]] if len(rows) > count else []  # without a header there are none
            items = [dict(zip(names, row, strict=False)) for row in rows[-count:]]
        elif kind.startswith(JSON) and not kind.startswith(LINES):
            read = json.loads(text)
            named = isinstance(read, dict) and "instances" in read and "instances" not in self._scorer.names
            items = read["instances"] if named else read if isinstance(read, list) else [read]
        else:
            items = [json.loads(line) for line in text.split("\n") if line.strip()]
        records = (item if isinstance(item, dict) else {} for item in items)
        return [[_plain(record.get(name)) for name in self.more] for record in records]


def _encoded(rows: Sequence[Any]) -> Any:
    """JSON of the rows, which takes the place of them."""
    parts = []
    for at in range(0, len(rows), SOME):
        some = rows[at : at + SOME]
        try:
            parts.append(_encode(some)[1:-1])
        except (TypeError, ValueError, OverflowError):
            parts.append(json.dumps([list(row) for row in some], default=str)[1:-1].encode())
    return msgspec.Raw(b"[%b]" % b",".join(parts))


def _as_it_stands(body: bytes, content_type: str) -> Any:
    """Rows of numbers without names as they came: to write them anew would take as long as to score them.

    None where the body has anything else in it, which nobody asked to be kept.
    """
    if content_type.lower().startswith(CSV):
        rows = body.removeprefix(BOM).removesuffix(b"\n").replace(b"\n", b"],[")
        return msgspec.Raw(b"[[%b]]" % rows)
    opening = ARRAYS.match(body[:OPENING_BYTES])
    if opening is None:
        return None
    end = body.rindex(b"]") + 1
    inner = body[opening.end(1) if opening[1] else 0 : end]  # all before it is ASCII
    if b'"' in inner or body[end:].strip() != (b"}" if opening[1] else b""):
        return None
    return msgspec.Raw(inner.replace(b"\n", b" ").replace(b"\r", b" "))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else None
