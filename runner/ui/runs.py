"""The runs as a table: which there are, in the order and by the filters that an address says, a page at a time.

Facts to filter and sort by are kept in memory, as small as they can be, and read again only where run.json has changed.
The first page without filters reads no more than it shows.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from sys import intern
from urllib.parse import urlencode

import msgspec

from runner.errors import RunnerError
from runner.manifest import RunManifest
from runner.records import utc_text
from runner.run.store import MANIFEST, Store

PER_PAGE = 50
PAUSE_S = 0.002
COLUMNS = ("run", "status", "verdict", "tags", "note", "who", "started", "seconds")
STATUSES = ("running", "succeeded", "failed", "interrupted")
VERDICTS = ("pass", "fail", "inconclusive", "error", "none")


@dataclass(frozen=True)
class Query:
    """What an address asks for; every field is what it says, none is trusted to exist."""

    status: str = ""
    verdict: str = ""
    tag: str = ""
    who: str = ""
    text: str = ""  # in id, note, tags or who
    sort: str = "-run"  # a column or a metric; `-` is downwards
    metrics: tuple[str, ...] = ()  # further columns
    page: int = 1

    @classmethod
    def of(cls, values: Mapping[str, str], metrics: Sequence[str] = ()) -> Query:
        page = values.get("page", "1")
        return cls(
            **{name: values.get(name, "")[:200] for name in ("status", "verdict", "tag", "who")},
            text=values.get("q", "")[:200],
            sort=values.get("sort", "")[:200] or "-run",
            metrics=tuple(dict.fromkeys(name[:200] for name in metrics if name))[:8],
            page=max(1, int(page)) if page.isdecimal() and len(page) < 7 else 1,
        )

    @property
    def filters(self) -> bool:
        return any((self.status, self.verdict, self.tag, self.who, self.text))

    @property
    def newest_first(self) -> bool:
        return self.sort in ("-run", "-started")

    def address(self, **changes: object) -> str:
        """The query with changes, as it stands in an address; `?` for nothing in it."""
        values = {**vars(self), **changes}
        named = {"q": "text", "metric": "metrics"}
        pairs: list[tuple[str, object]] = []
        for key in ("status", "verdict", "tag", "who", "q", "sort", "metric", "page"):
            value = values[named.get(key, key)]
            if key == "metric":
                pairs += [(key, name) for name in value]
            elif value and (key, value) not in (("sort", "-run"), ("page", 1)):
                pairs.append((key, value))
        return f"?{urlencode(pairs)}" if pairs else "?"

    def sorted_by(self, column: str) -> str:
        """The address that sorts by the column; a second time, the other way round."""
        return self.address(sort=column if self.sort == f"-{column}" else f"-{column}", page=1)


class _Outcome(msgspec.Struct, gc=False):
    outcome: str


class _Number(msgspec.Struct, gc=False):
    value: float


class _Facts(msgspec.Struct):
    """What of run.json a filter or an order can ask for; the rest is skipped."""

    status: str
    started: str
    started_by: str
    note: str = ""
    tags: list[str] = []
    ended: str | None = None
    verdict: _Outcome | None = None
    metrics: dict[str, _Number] = {}


class Summary(msgspec.Struct, gc=False):
    """A run in memory. `names` are shared by all runs with the same metrics; `values` belong to them, in order."""

    stamp: tuple[int, int, int]
    run: str
    status: str
    verdict: str
    started: str
    seconds: float
    who: str
    note: str
    tags: tuple[str, ...]
    names: tuple[str, ...]
    values: array[float]

    def value(self, column: str) -> float | str | None:
        if column in self.names:
            return self.values[self.names.index(column)]
        if column == "tags":
            return " ".join(self.tags)
        return getattr(self, column) if column in COLUMNS else None


@dataclass(frozen=True)
class Page:
    """One page of runs, the newest or best first; `total` counts all that match, `newest` is the newest of all."""

    manifests: list[RunManifest]
    total: int
    pages: int
    problems: list[str]  # runs that cannot be read, in sentences
    newest: str = ""


class RunTable:
    """The runs of a store. Safe to use from several threads, which at worst read a run twice."""

    def __init__(self) -> None:
        self._known: dict[str, Summary] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._decoder = msgspec.json.Decoder(_Facts)

    def page(self, store: Store, query: Query, per_page: int | None = PER_PAGE) -> Page:
        if not query.filters and query.newest_first:
            runs = store.runs()
            page = self._shown(store, runs, query.page, per_page or max(1, len(runs)))
            return replace(page, newest=next(iter(runs), ""))
        summaries = self.summaries(store)
        matching = [summary for summary in summaries if _matches(summary, query)]
        column, down = query.sort.lstrip("-"), query.sort.startswith("-")
        have = [(value, summary) for summary in matching if (value := summary.value(column)) is not None]
        absent = [summary for summary in matching if summary.value(column) is None]
        have.sort(key=lambda pair: pair[0], reverse=down)
        runs = [summary.run for summary in (*(summary for _, summary in have), *absent)]
        page = self._shown(store, runs, query.page, per_page or max(1, len(runs)))
        return replace(page, newest=summaries[0].run if summaries else "")

    def _shown(self, store: Store, runs: Sequence[str], page: int, per_page: int) -> Page:
        manifests: list[RunManifest] = []
        problems = []
        first = (page - 1) * per_page
        for run in runs[first : first + per_page]:
            try:
                if store.begun(run):
                    manifests.append(store.manifest(run))
            except RunnerError as error:
                problems.append(f"{run}: {error}")
        return Page(manifests, len(runs), max(1, -(-len(runs) // per_page)), problems)

    def summaries(self, store: Store) -> list[Summary]:
        """Of all runs, the newest first; those that cannot be read are left out."""
        known: dict[str, Summary] = {}
        for run in store.runs():
            summary = self._summary(store, run)
            if summary is not None:
                known[run] = summary
        self._known = known
        return list(known.values())

    def warm(self, store: Store) -> None:
        """As `summaries`, with pauses in which pages are made."""
        for number, run in enumerate(store.runs()):
            summary = self._summary(store, run)
            if summary is not None:
                self._known[run] = summary
            if number % 10 == 0:
                time.sleep(PAUSE_S)

    def _summary(self, store: Store, run: str) -> Summary | None:
        path = os.path.join(store.root, run, MANIFEST)  # noqa: PTH118 - ten thousand times a page
        try:
            stat = os.stat(path)  # noqa: PTH116
        except OSError:
            return None
        stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        summary = self._known.get(run)
        if summary is None or summary.stamp != stamp:
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError), open(path, "rb") as file:
                summary = self._of(run, stamp, self._decoder.decode(file.read()))
        if summary is not None and summary.status == "running" and not store.locked(run):
            return msgspec.structs.replace(summary, status="interrupted")
        return summary

    def _of(self, run: str, stamp: tuple[int, int, int], facts: _Facts) -> Summary:
        names = tuple(intern(name) for name in facts.metrics)
        names = self._names.setdefault(names, names)
        return Summary(
            stamp=stamp,
            run=run,
            status=intern(facts.status),
            verdict=intern(facts.verdict.outcome) if facts.verdict else "none",
            started=facts.started,
            seconds=seconds(facts.started, facts.ended),
            who=intern(facts.started_by),
            note=facts.note,
            tags=tuple(map(intern, facts.tags)),
            names=names,
            values=array("d", [metric.value for metric in facts.metrics.values()]),
        )

    def tags(self) -> list[str]:
        """Those of the runs that are known so far."""
        return sorted({tag for summary in list(self._known.values()) for tag in summary.tags})[:200]

    def metrics(self) -> list[str]:
        """As `tags`, the metrics' names."""
        return sorted({name for names in list(self._names) for name in names})[:500]


def seconds(started: str, ended: str | None) -> float:
    """From the start to the end, or until now."""
    from datetime import datetime

    try:
        began, stopped = (datetime.fromisoformat(text) for text in (started, ended or utc_text()))
        return max(0.0, (stopped - began).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _matches(summary: Summary, query: Query) -> bool:
    return (
        query.status in ("", summary.status)
        and query.verdict in ("", summary.verdict)
        and (not query.tag or query.tag in summary.tags)
        and query.who in ("", summary.who)
        and (not query.text or _has(summary, query.text.casefold()))
    )


def _has(summary: Summary, text: str) -> bool:
    return any(text in part.casefold() for part in (summary.run, summary.note, summary.who, *summary.tags))
