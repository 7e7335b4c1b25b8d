"""Executions that wait for their turn, so that no more run at once than there is room for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.records import StepResult
from runner.run.ports import Executor
from runner.step.execute import Progress


@dataclass(frozen=True)
class InTurn:
    """An executor that waits for its turn before it executes. Without `ahead` it prepares nothing."""

    inner: Executor
    turns: threading.Semaphore
    ahead: bool = False

    def expect(self, notebook: Path, *, threads: int) -> None:
        """Other executions are going on already."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        if self.ahead:
            self.inner.prepare(folder, cwd=cwd, threads=threads)

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        with self.turns:
            return self.inner.run(folder, cwd=cwd, stop=stop, on_progress=on_progress)

    def close(self) -> None:
        self.inner.close()
