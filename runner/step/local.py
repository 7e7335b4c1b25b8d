"""Steps run on this machine: the kernel of the next step starts and imports while the current one runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from runner.errors import RunnerError
from runner.records import StepResult
from runner.step.execute import Progress, execute, start
from runner.step.process import KernelProcess


class LocalExecutor:
    """Implements `runner.run.orchestrate.Executor`. Safe to call from several threads."""

    def __init__(self, project: Path | None = None) -> None:
        """`project` is the folder of which files read without being declared are noted."""
        self._project = project
        self._ahead: dict[Path, KernelProcess] = {}
        self._lock = threading.Lock()

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """Start the kernel of a step folder ahead of time; what is wrong with it is for `run` to say."""
        with self._lock:
            if folder not in self._ahead:
                try:
                    self._ahead[folder] = start(folder, cwd=cwd, threads=threads, project=self._project)
                except (RunnerError, OSError):
                    return

    def run(
        self,
        folder: Path,
        *,
        cwd: Path | None,
        stop: threading.Event,
        on_progress: Callable[[Progress], None],
    ) -> StepResult:
        with self._lock:
            kernel = self._ahead.pop(folder, None)
        return execute(folder, cwd=cwd, project=self._project, kernel=kernel, stop=stop, on_progress=on_progress)

    def close(self) -> None:
        """End the kernels that were started and not used."""
        with self._lock:
            for kernel in self._ahead.values():
                kernel.close()
            self._ahead.clear()
