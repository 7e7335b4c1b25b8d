"""Captured requests in one form, whatever wrote them: `runner.serve.capture`, or SageMaker's own data capture.

A file is JSON lines of one hour, which its path names. A line of ours:

{"time": "2026-11-29T12:00:00.123Z", "version": "NAME/3", "id": …, "status": 200, "seconds": 0.0031,
 "columns": ["plan", …], "rows": [["gold", …], …], "scores": [0.12, …]}

or, in place of columns and rows, "records": [{"plan": "gold", …}, …]; of a refused request only "error", the sentence.
A line of SageMaker's is read by `runner.model.captured_envelopes`. Knows no bucket: files come by a protocol.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from runner.errors import UsageError
from runner.records import utc_text

HOUR = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)/(\d\d)[-/][^/]*\.jsonl(\.part)?\Z")  # ours, and …/yyyy/mm/dd/hh/…
# the id of a deployment's or a health check's request to an endpoint: nobody has asked it, and `windows` leaves it out
SAMPLE_ID = "runner-sample"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Captured:
    """One request with its answer. `rows` are as the sender wrote them, in the order of `columns`."""

    time: str  # UTC, when it was answered: "2026-11-29T12:00:00.123Z"
    version: str  # NAME/VERSION that answered; "" where that is not known
    id: str
    status: int
    seconds: float | None = None  # to the answer, None where it was not measured
    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[Any]] = ()  # numbers, texts, booleans and None
    scores: Sequence[Any] = ()  # a number a row; of several classes a list a row
    error: str = ""

    @property
    def records(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class CapturedFile(Protocol):
    @property
    def path(self) -> str:
        """It names the hour: see `HOUR`."""

    def lines(self) -> Iterator[bytes]:
        """Every whole line, without its end; nothing where the file was removed in the meantime."""


class EnvelopeReader(Protocol):
    """Reads what SageMaker captured."""

    def read(self, envelope: dict[str, Any]) -> Captured:
        """Raises ValueError where it is not such a one."""


@dataclass(frozen=True)
class LocalFile:
    """Of a folder of `runner.serve.capture_files`, also one that is being written."""

    path: str

    def lines(self) -> Iterator[bytes]:
        for path in (self.path, self.path.removesuffix(".part")):  # it can be closed at any moment
            try:
                with open(path, "rb") as file:
                    yield from (line[:-1] for line in file if line.endswith(b"\n"))
                return
            except FileNotFoundError:
                continue


class Line(msgspec.Struct, omit_defaults=True):
    """A line as it stands; a newer program may have more in it. Its time comes first."""

    time: str
    version: str
    id: str
    status: int
    seconds: float | None = None
    columns: list[str] | None = None
    rows: list[list[Any]] | None = None
    records: list[dict[str, Any]] | None = None
    scores: list[Any] | None = None
    error: str = ""


_decode = msgspec.json.Decoder(Line).decode


def local_files(folder: Path) -> list[LocalFile]:
    """The files of the folder in order of their hours."""
    return [LocalFile(str(path)) for path in sorted(folder.glob("*/*.jsonl*")) if HOUR.search(path.as_posix())]


def within(path: str, since: str, until: str) -> bool:
    """Whether the file may have lines of these times: its hour, or the one beside it, as clocks differ."""
    hour, _ = hour_of(path)
    try:
        began = datetime.fromisoformat(f"{hour}:00Z")
    except ValueError:
        return False
    latest, earliest = utc_text(began + timedelta(hours=2)), utc_text(began - timedelta(hours=1))
    return latest > since and (not until or earliest < until)


def hour_of(path: str) -> tuple[str, str]:
    """The file's hour, "2026-11-29T12", and its path, by which files are in order; "" where it names none."""
    match = HOUR.search(path)
    return ("{}-{}-{}T{}".format(*match.groups()) if match else "", path)


def windows(
    files: Iterable[CapturedFile], *, since: str = "", until: str = "", envelopes: EnvelopeReader | None = None
) -> Iterator[Captured]:
    """The requests from `since` on and before `until` (UTC; "" is no bound), file by file, in bounded memory.

    Within a file they are in order of time. A line that cannot be read is left out,
    and a warning counts them. Raises UsageError for a bound that is not a time.
    """
    since, until = _bound(since), _bound(until)
    for file in files:
        if not within(file.path, since, until):
            continue
        damaged = 0
        for line in file.lines():
            try:
                captured = read_line(line, envelopes)
            except (ValueError, RecursionError):  # msgspec's, json's and what an envelope lacks
                damaged += 1
                continue
            if captured.time >= since and (not until or captured.time < until) and captured.id != SAMPLE_ID:
                yield captured
        if damaged:
            _log.warning("%s: %d lines cannot be read and are left out", file.path, damaged)


def read_line(line: bytes, envelopes: EnvelopeReader | None = None) -> Captured:
    """Raises ValueError, or RecursionError, where it is not a captured request."""
    if b'"captureData"' in line[:4096]:
        read = json.loads(line)
        if isinstance(read, dict) and "captureData" in read:
            if envelopes is None:
                raise ValueError("This is an envelope of SageMaker.")
            return envelopes.read(read)
    try:
        own = _decode(line)
    except (msgspec.MsgspecError, RecursionError):
        own = msgspec.convert(json.loads(line), Line)  # half a character, or a number of more than 64 bits
    columns, rows = own.columns or [], own.rows or []
    if own.records is not None:
        columns = list(dict.fromkeys(name for record in own.records for name in record))
        rows = [[record.get(name) for name in columns] for record in own.records]
    scores = own.scores or []
    if len(rows) != len(scores) or any(len(row) != len(columns) for row in rows):
        raise ValueError("Rows, columns and scores do not belong together.")
    return Captured(
        time_text(own.time), own.version, own.id, own.status, own.seconds, tuple(columns), rows, scores, own.error
    )


def time_text(written: str) -> str:
    """The time as all have it here, so that they compare as text. Raises ValueError."""
    if len(written) == 24 and written[-1] == "Z" and written[19] == ".":
        return written
    moment = datetime.fromisoformat(written)
    return utc_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _bound(written: str) -> str:
    try:
        return time_text(written) if written else ""
    except ValueError:
        raise UsageError(f"{written!r} is not a time. Write it as 2026-11-29T12:00Z.") from None
