"""Steps run on this machine: the kernel of the next step starts and imports while the current step runs."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

from runner.errors import RunnerError
from runner.kernel.choose import OPENED, Imports, general_environment, needs_standard, start
from runner.kernel.forked.client import ForkServer
from runner.kernel.standard import Kernel
from runner.notebook.source import read_notebook
from runner.records import FORKED, STANDARD, StepJob, StepResult, read
from runner.step.execute import JOB, Progress, execute

SETTINGS = ("matplotlibrc", ".env")  # libraries look for them in the working folder when they are imported


class ForkServers:
    """One fork server for all callers, and a new one after it has ended or has loaded a package that it must not.

    A working folder with settings for libraries has servers of its own. Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._servers: dict[Path | None, list[ForkServer]] = {}  # by folder with settings; the last one is asked
        self._lock = threading.Lock()

    def get(self, environment: dict[str, str], cwd: Path) -> ForkServer:
        """The server keeps the hash seed and the OpenMP settings of the first call's environment."""
        with self._lock:
            own = cwd.resolve() if any((cwd / name).exists() for name in SETTINGS) else None
            servers = self._servers.setdefault(own, [])
            last = servers[-1] if servers else None
            if last is None or last.spoiled or not last.alive:
                servers.append(ForkServer(environment, avoid=last.avoid if last is not None else ()))
            return servers[-1]

    def close(self) -> None:
        """End all servers and their kernels."""
        with self._lock:
            for server in itertools.chain.from_iterable(self._servers.values()):
                server.close()
            self._servers.clear()


class LocalExecutor:
    """Implements `runner.run.orchestrate.Executor`. Safe to call from several threads."""

    def __init__(self, project: Path | None = None, *, kernel: str = STANDARD, servers: ForkServers | None = None):
        """Files of the folder `project` that cells read without declaring them are noted; `kernel` is standard or
        forked; `servers` are shared with other executors, and closed by their owner."""
        self._project, self._kernel = project, kernel
        self._servers, self._shared = servers or ForkServers(), servers is not None
        self._ahead: dict[Path, Kernel] = {}
        self._lock = threading.Lock()

    def expect(self, notebook: Path, *, threads: int) -> None:
        """The notebook is going to run first; what it imports is loaded while its step folder is being made."""
        with contextlib.suppress(RunnerError, OSError), self._lock:
            source = read_notebook(notebook)
            imports = Imports(source)
            if self._kernel == FORKED and not needs_standard(source, imports):
                server = self._servers.get(general_environment(threads), notebook.parent)
                server.load(imports.ahead, cwd=notebook.parent)

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """Start the kernel of a step folder ahead of time; if that fails, `run` raises the error."""
        with self._lock, contextlib.suppress(RunnerError, OSError):
            if folder not in self._ahead:
                self._ahead[folder] = start(
                    folder,
                    cwd=cwd,
                    threads=threads,
                    project=self._project,
                    kernel=self._kernel,
                    server=self._servers.get,
                )

    def run(
        self,
        folder: Path,
        *,
        cwd: Path | None,
        stop: threading.Event,
        on_progress: Callable[[Progress], None],
    ) -> StepResult:
        job = read(StepJob, folder / JOB)
        if job.cluster is None:  # else its kernel starts when the cluster has an address
            self.prepare(folder, cwd=cwd, threads=job.threads)
        with self._lock:
            kernel = self._ahead.pop(folder, None)
        return execute(folder, cwd=cwd, project=self._project, kernel=kernel, stop=stop, on_progress=on_progress)

    def close(self) -> None:
        """End the kernels that were started and not used, and remove their files from the step folders."""
        with self._lock:
            for kernel in self._ahead.values():
                kernel.close()
            if not self._shared:
                self._servers.close()
            for folder in self._ahead:
                (folder / OPENED).unlink(missing_ok=True)
            self._ahead.clear()
