"""Pages are made in a process of their own, beside the next step, so that they cost no waiting."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from runner.cli.terminal import say
from runner.manifest import RunManifest
from runner.records import Verdict
from runner.run.ports import Watcher
from runner.step.execute import Progress

ENDED = ("succeeded", "cached", "failed", "interrupted")


class Reporter:
    """Passes everything on to whoever shows it, and has each step's page made as soon as it has ended.

    Leaving the context waits for the pages and for the run's report. With `again` there is also the report
    that a repetition of the run will have.
    """

    def __init__(self, shown: Watcher, *, pages: bool, again: bool = False) -> None:
        self._shown = shown
        self._pages = pages
        self._options = ["--follow", *(["--again"] if again else [])]
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._runs: Path | None = None

    def at(self, runs: Path) -> None:
        """Where runs are; needed before the first event."""
        self._runs = runs

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            name = self._folder.name if self._folder else ""
            say(f"The report could not be written; try `runner report {name}`", err=True)

    def started(self, manifest: RunManifest) -> None:
        assert self._runs is not None
        self._folder = self._runs / manifest.run
        if self._pages:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runner.report", *self._options, str(self._folder)],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run; its report is still wanted
            )
        self._shown.started(manifest)

    def progress(self, progress: Progress) -> None:
        self._shown.progress(progress)

    def changed(self, manifest: RunManifest, step: str) -> None:
        self._shown.changed(manifest, step)
        state = next(state for state in manifest.steps if state.name == step)
        if state.status in ENDED and self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # said when the context ends
                self._process.stdin.write(f"{step}\n")
                self._process.stdin.flush()

    def judged(self, verdict: Verdict) -> None:
        self._shown.judged(verdict)


def write_all(folder: Path, manifest: RunManifest) -> Path:
    """Write the run's pages and report now; the report's path."""
    from runner.report.notebook import write_notebook_page  # half a second to import
    from runner.report.page import write_report

    for state in manifest.steps:
        step_folder = folder / "steps" / state.name
        if (step_folder / "executed.ipynb").exists():
            write_notebook_page(step_folder, manifest=manifest, state=state)
    return write_report(folder, manifest)
