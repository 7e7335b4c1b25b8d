"""Ends a step's execution early where what its notebook reports is not worth going on with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from runner.content import atomic_write
from runner.notebook.recorded import Report
from runner.records import StepError, StepResult, encode
from runner.run import folder as run_folder
from runner.run.ports import Executor
from runner.step.execute import Progress


class _Either(threading.Event):
    """Set where it is, or the other one."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self.other = other

    def is_set(self) -> bool:
        return super().is_set() or self.other.is_set()


@dataclass
class PrunedExecutor:
    """An executor that ends the step, as pruned, once `outlasts` says no to what was reported of `metric`.

    `metric` gives the name that counts, "" while it is not known; `reported` has what was reported, by name and step.
    A report of a step that is not above the ones before is left out. `keep` is given all of it when the notebook has
    come to something, before anything else knows that.
    """

    inner: Executor
    step: str
    metric: Callable[[], str]
    outlasts: Callable[[Mapping[int, float]], bool]
    keep: Callable[[Mapping[str, Mapping[int, float]]], None]
    reported: dict[str, dict[int, float]] = field(default_factory=dict)
    pruned: Report | None = None

    def expect(self, notebook: Path, *, threads: int) -> None:
        self.inner.expect(notebook, threads=threads)

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        self.inner.prepare(folder, cwd=cwd, threads=threads)

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """What was decided holds also where the notebook has ended by then: it does not depend on how fast it is."""
        own, self.pruned = _Either(stop), None
        self.reported.clear()

        def look(progress: Progress) -> None:
            if progress.report is not None and progress.step == self.step:
                self._take(progress.report, own)
            on_progress(progress)

        result = self.inner.run(folder, cwd=cwd, stop=own, on_progress=look)
        if self.pruned is not None or result.status != "interrupted":
            self.keep(self.reported)
        if self.pruned is None:
            return result
        report = self.pruned
        words = f"{report.name} {report.value:.4g} at step {report.step:,} is worse than half of the trials before"
        cell = result.error.cell if result.error is not None else None
        error = StepError(kind="pruned", ename="Pruned", evalue=words, cell=cell)
        result = replace(result, status="pruned", error=error, outputs={}, registration=None)
        atomic_write(folder / run_folder.RESULT, encode(result))
        return result

    def _take(self, report: Report, own: threading.Event) -> None:
        values = self.reported.setdefault(report.name, {})
        if self.pruned is not None or report.step <= max(values, default=-1):
            return
        values[report.step] = report.value
        if report.name == self.metric() and not self.outlasts(values):
            self.pruned = report
            own.set()

    def close(self) -> None:
        self.inner.close()
