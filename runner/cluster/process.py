"""The cluster of one step as its process has it: started, waited for, watched, ended, and what it was."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from runner.cluster import LOOPBACK, SCHEDULER, WORKERS, Machines, OnLine, workers_of
from runner.cluster.node import MARK, START_S, Node
from runner.kernel.choose import general_environment
from runner.kernel.process_tree import descendants, kill_family, python
from runner.notebook.redaction import Redactor
from runner.records import ClusterFacts, ClusterSpec, StepError

PORT = 8786  # of the scheduler, where other machines look for it
LOG_BYTES = 1_000_000  # of a log; when it is full it becomes NAME.log.1, in place of an earlier one
END_S = 10.0  # for workers to end by themselves
LAST_LINES = 30
NOTICE_S = 0.3


class ClusterProcess:
    """This machine's part of a cluster: a process group that ends with this process."""

    def __init__(self, node: Node, *, name: str, cwd: Path, on_line: OnLine) -> None:
        """Start it; returns at once. `name` is what its log goes by."""
        self.lost = threading.Event()  # it has ended, and not because somebody wanted it to
        self._changed = threading.Condition()
        self._facts: dict[str, Any] = {}
        self._name, self._on_line, self._closing = name, on_line, False
        self._last = deque[str](maxlen=LAST_LINES)
        self._kernel: int | None = None
        self._of_workers = node.of_workers
        self.peak_bytes = 0
        command = [*python("runner.cluster.node"), msgspec.json.encode(node).decode()]
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        environment = general_environment(0) | {"DASK_TEMPORARY_DIRECTORY": node.scratch}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=out, start_new_session=True
        )
        for work in (self._read, self._watch_end):
            threading.Thread(target=work, daemon=True, name="cluster").start()

    def wait(
        self, fact: str, *, stop: threading.Event, deadline: float | None = None, seconds: float | None = START_S
    ) -> StepError | None:
        """Wait until the machine has told `fact`; the error where it will not, or may not be waited for any longer."""
        until = min(deadline or math.inf, time.monotonic() + (seconds or math.inf))
        with self._changed:
            while fact not in self._facts:
                if self.lost.is_set():
                    self._changed.wait_for(lambda: "ended" in self._facts, END_S)
                    break
                if stop.is_set():
                    return StepError(kind="interrupted", ename="Interrupted", evalue="the run was told to stop")
                if time.monotonic() > until:
                    there = f"{self._facts.get('workers', 0)} of its {self._of_workers} workers were there"
                    sentence = f"the cluster was not ready in time: {there}"
                    return StepError(kind="timeout", ename="ClusterTimeout", evalue=sentence, traceback=[*self._last])
                self._changed.wait(0.1)
        return self.error(None)

    def __getitem__(self, fact: str) -> Any:
        return self._facts.get(fact)

    def watch(self, kernel: int | None) -> None:
        """Count the memory of the notebook's kernel too."""
        self._kernel = kernel

    def error(self, error: StepError | None) -> StepError | None:
        """The step's error: `error`, unless it comes from the end of the cluster."""
        # a cell may notice first that the scheduler is gone
        noticed = self.lost.wait(NOTICE_S) if error is not None and error.kind == "exception" else self.lost.is_set()
        if not noticed or (error is not None and error.kind == "interrupted"):
            return error
        code = self.process.wait()
        last = f": {self._last[-1]}" if self._last and code > 0 else ""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        leads = self._name == SCHEDULER
        who = "the cluster's scheduler" if leads else "the process of this machine's workers"
        sentence = self._facts.get("sentence") or f"{who} {how}{', and its workers with it' * leads}{last}"
        lost = StepError(kind="cluster lost", ename="ClusterLost", evalue=sentence, traceback=[*self._last])
        return lost if error is None else replace(lost, cell=error.cell, first_line=error.first_line)

    def close(self) -> None:
        """End all of it, in order first. Idempotent."""
        self._closing = True
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S if self._facts else 0)  # one that has told nothing yet is still importing
        kill_family(self.process.pid)
        self.process.wait()
        with self._changed:
            self._changed.wait_for(lambda: "ended" in self._facts, END_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\n")
                if not line.startswith(MARK):
                    self._last.append(line)
                    self._on_line(self._name, line)
                    continue
                facts = json.loads(line.removeprefix(MARK))
                if "log" in facts:
                    self._on_line(*facts["log"])
                    continue
                if "memory" in facts:
                    self.peak_bytes = max(self.peak_bytes, facts["memory"] + _resident_bytes(self._kernel))
                with self._changed:
                    self._facts |= facts
                    self._changed.notify_all()
        self._watch_end()
        with self._changed:
            self._facts["ended"] = True
            self._changed.notify_all()

    def _watch_end(self) -> None:
        # asked to end by the notebook itself, with client.shutdown(), it ends well
        if self.process.wait() != 0 and not self._closing and not self.lost.is_set():
            self.lost.set()
            kill_family(self.process.pid)  # workers outlive a scheduler, and look for it


class Cluster:
    """A running cluster, for the step whose process started it. `clock` and `began` are when that was."""

    def __init__(self, spec: ClusterSpec, machines: Machines, process: ClusterProcess) -> None:
        self.spec, self.machines, self.process = spec, machines, process
        self.clock, self.began = time.monotonic(), datetime.now(UTC)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the notebook's `distributed.Client()` finds it."""
        return {"DASK_SCHEDULER_ADDRESS": self.process["address"]}

    @property
    def dashboard(self) -> str:
        """What a step's progress says of it: where its dashboard is, where that can be looked at."""
        address = self.process["dashboard"]
        return f"{self.spec.workers} workers, {address}" if address else f"{self.spec.workers} workers"

    def end(self) -> ClusterFacts:
        """End it; what it was."""
        self.process.close()
        return ClusterFacts(
            engine=self.spec.engine,
            workers=self.spec.workers,
            machines=len(self.machines.hosts),
            versions=self.process["versions"] or {},
            restarts=max(0, (self.process["seen"] or 0) - self.spec.workers),
            peak_memory_bytes=self.process.peak_bytes,
        )


def start(
    spec: ClusterSpec,
    machines: Machines,
    *,
    threads: int,
    path: Sequence[Path],
    scratch: Path,
    on_line: OnLine,
    dashboard: bool = False,
    beside: int = 1,
) -> ClusterProcess:
    """This machine's part, one of `beside` clusters that share its memory. The first machine of several, and the only
    one, has the scheduler and `path[-1]`, where the notebook runs, as its working folder."""
    first, several = machines.hosts[0], len(machines.hosts) > 1
    leads = machines.own == first
    node = Node(
        owner=os.getpid(),
        host=machines.own if several else LOOPBACK,
        port=PORT if several else 0,
        scheduler="" if leads else first,
        dashboard=dashboard,
        workers=[*workers_of(machines.hosts, machines.own, spec.workers)],
        of_workers=spec.workers,
        threads=threads,
        worker_memory_bytes=int((spec.worker_memory_gb or 0) * 1e9),
        beside=beside,
        scratch=str(scratch),
        path=[str(folder) for folder in path],
    )
    return ClusterProcess(node, name=SCHEDULER if leads else WORKERS, cwd=path[-1], on_line=on_line)


@contextmanager
def logs(folder: Path, secrets: Sequence[str]) -> Iterator[OnLine]:
    """Takes lines into files of bounded size in the folder, one for each name, without credentials."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[str, RotatingFileHandler] = {}
    redactor = Redactor(secrets)
    lock = threading.Lock()

    def write(name: str, line: str) -> None:
        with lock:
            if name not in files:
                file = folder / f"{name}.log"
                files[name] = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
            text, _ = redactor.text(line)
            files[name].emit(logging.makeLogRecord({"msg": text}))

    try:
        yield write
    finally:
        for file in files.values():
            file.close()


def bounded(write: OnLine, secrets: Sequence[str]) -> OnLine:
    """Writes lines without credentials, of each name the first LOG_BYTES."""
    written = dict[str, int]()
    redactor = Redactor(secrets)
    lock = threading.Lock()

    def write_some(name: str, line: str) -> None:
        with lock:
            before = written.get(name, 0)
            written[name] = before + len(line) + 1
            if before < LOG_BYTES:
                write(name, redactor.text(line)[0] if written[name] < LOG_BYTES else "(log cut)")

    return write_some


def _resident_bytes(pid: int | None) -> int:
    """The memory of a process and of all that it has started; 0 where that is not known."""
    pids = [] if pid is None else [pid, *(process.pid for process in descendants(pid))]
    pages = 0
    for one in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
