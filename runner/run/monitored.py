"""What was last said of a target by a run that looked at what it captured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.errors import RunnerError
from runner.manifest import RunManifest
from runner.notebook.recorded import read_figures
from runner.pipeline.file import CAPTURED, DEPLOYED
from runner.records import Outcome
from runner.run.folder import step_folder
from runner.run.store import MANIFEST, Store
from runner.step.execute import EXECUTED

WORRY = "worry"  # the table of a monitoring notebook that says whether to worry, and why
MOST_RUNS = 1000  # that are looked through, the newest first


@dataclass(frozen=True)
class Reason:
    """A row of the table `worry`: what, such as "moved", and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Look:
    """A run that looked at a target. Times are UTC; `since` and `until` bound the window, "" is no bound."""

    run: str
    verdict: Outcome | None
    at: str
    model: str | None  # NAME/VERSION that served then
    since: str
    until: str
    reasons: tuple[Reason, ...]


def last_look(store: Store, target: str) -> Look | None:
    """By the newest run that has ended and took what the target captured; None where none of the newest runs did."""
    source = CAPTURED + target
    quoted = f'"{source}"'.encode()
    for run in store.runs()[:MOST_RUNS]:
        try:
            # most runs are others, and decoding a manifest takes fifty times as long as reading it
            if quoted not in (store.folder(run) / MANIFEST).read_bytes():
                continue
            manifest = store.manifest(run)
        except (OSError, RunnerError):
            continue
        if manifest.ended and source in {fact.source for fact in manifest.sources.values()}:
            return _look(manifest, manifest.ended, target, store)
    return None


def _look(manifest: RunManifest, ended: str, target: str, store: Store) -> Look:
    versions = {fact.source: fact.version for fact in manifest.sources.values()}
    since, _, until = (versions[CAPTURED + target] or "").partition("/")
    return Look(
        run=manifest.run,
        verdict=manifest.verdict.outcome if manifest.verdict is not None else None,
        at=ended,
        model=versions.get(DEPLOYED + target),
        since=since,
        until=until,
        reasons=tuple(reasons(manifest, store)),
    )


def reasons(manifest: RunManifest, store: Store) -> Iterator[Reason]:
    """What the notebooks of a run say: whether to worry, and why."""
    for state in manifest.steps:
        with contextlib.suppress(OSError, ValueError):  # it was not executed, or gc has removed it
            yield from reasons_in(step_folder(store, manifest.run, state.name) / EXECUTED)


def reasons_in(executed: Path) -> Iterator[Reason]:
    """What an executed notebook says. Raises OSError where there is none, ValueError where it is not one."""
    _, tables = read_figures(executed)
    rows = (row for table in tables if table.name == WORRY for row in table.rows)
    yield from (Reason(str(row[0]), str(row[1])) for row in rows if len(row) > 1)
