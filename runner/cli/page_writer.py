"""The process that writes a run's pages: a fork of the command where that is safe, as it has most of it loaded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn, Protocol


class PageWriter(Protocol):
    """A process of its own; Ctrl-C, which must end the run, does not reach it."""

    def ended(self, step: str) -> None:
        """Have the step's page written."""

    def finish(self) -> int:
        """Have the run's report written, and wait for all pages; the exit code."""


def start(folder: Path, *, again: bool) -> PageWriter:
    """The writer for the run in the folder; `again` as of `runner.report`."""
    return ForkedWriter(folder, again=again) if _may_fork() else StartedWriter(folder, again=again)


class StartedWriter:
    """`python -m runner.report`."""

    def __init__(self, folder: Path, *, again: bool) -> None:
        options = ["--follow", *(["--again"] if again else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runner.report", *options, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._steps = self._process.stdin

    def ended(self, step: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # reported when it finishes
            self._steps.write(f"{step}\n".encode())
            self._steps.flush()

    def finish(self) -> int:
        with contextlib.suppress(BrokenPipeError):
            self._steps.close()
        return self._process.wait()


class ForkedWriter:
    """The same without starting Python and importing once more what the command has imported."""

    def __init__(self, folder: Path, *, again: bool) -> None:
        steps, self._steps = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _become_writer(steps, folder, again=again)
        os.close(steps)

    def ended(self, step: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._steps, f"{step}\n".encode())

    def finish(self) -> int:
        os.close(self._steps)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _may_fork() -> bool:
    """Only on Linux, and in a process with one thread: what others hold would stay locked in the fork."""
    return sys.platform.startswith("linux") and len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208


def _become_writer(steps: int, folder: Path, *, again: bool) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(steps, 0)
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if descriptor > 2:  # locks and servers that must end with the command
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]  # noqa: PTH109  # as python -P
        from runner.report.__main__ import write

        with open(0, encoding="utf-8", closefd=False) as names:
            code = write(folder, names, again=again)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
