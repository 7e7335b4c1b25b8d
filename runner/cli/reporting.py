"""A run's pages, written by a process of their own beside the next step, so that the run does not wait for them."""

from __future__ import annotations

from pathlib import Path

from runner.cli import page_writer
from runner.cli.page_writer import PageWriter
from runner.cli.terminal import say
from runner.manifest import RunManifest
from runner.records import Verdict
from runner.run.ports import RunWatcher
from runner.step.execute import Progress

ENDED = ("succeeded", "cached", "failed", "interrupted", "pruned")


class Reporter:
    """Passes every event on to `shown`, and has each step's page written as soon as it has ended.

    Leaving the context waits for the pages and the run's report. With `again` the report that a repetition of the run
    will have is written too.
    """

    def __init__(self, shown: RunWatcher, *, pages: bool, again: bool = False) -> None:
        self._shown = shown
        self._pages = pages
        self._again = again
        self._writer: PageWriter | None = None
        self._folder: Path | None = None
        self._runs: Path | None = None
        self.manifest: RunManifest | None = None  # of the run, as far as it is; None before it has begun

    def at(self, runs: Path) -> None:
        """Where runs are; needed before the first event."""
        self._runs = runs

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None and self._writer.finish() != 0:
            name = self._folder.name if self._folder else ""
            say(f"The report could not be written; try `runner report {name}`", err=True)

    def started(self, manifest: RunManifest) -> None:
        assert self._runs is not None
        self.manifest = manifest
        self._folder = self._runs / manifest.run
        if self._pages:
            self._writer = page_writer.start(self._folder, again=self._again)
        self._shown.started(manifest)

    def progress(self, progress: Progress) -> None:
        self._shown.progress(progress)

    def changed(self, manifest: RunManifest, step: str) -> None:
        self.manifest = manifest
        self._shown.changed(manifest, step)
        state = manifest.step(step)
        if state.status in ENDED and self._writer is not None:
            self._writer.ended(step)

    def judged(self, verdict: Verdict) -> None:
        self._shown.judged(verdict)
