"""The kernel's process: ipykernel, with imports made while it waits and an end when its runner ends.

Started as `python -P -m runner.step.kernel -f CONNECTION`. The environment says the rest:
`RUNNER_OWNER` (the process whose end is also this one's), `RUNNER_PATH` (folders to import from, first
first) and `RUNNER_PRELOAD` (installed packages that the notebook is going to import, loaded before its first
cell arrives).
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from runner.lean import PAPERMILLS, without
from runner.step.family import adopt, kill_strays
from runner.step.watcher import Watcher

POLL_S = 0.5


def main() -> None:
    """Serve one kernel until told to shut down, or until the runner is gone."""
    # by name: a runner that was killed before this line is not our parent any more
    owner = int(os.environ.pop("RUNNER_OWNER", "0")) or os.getppid()
    watcher = Watcher(owner) if hasattr(os, "pidfd_open") else None
    if watcher is not None and watcher.works:
        watcher.add(os.getpgrp())
    else:  # not on Linux, or not in this container
        threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    adopt()
    folders = [folder for folder in os.environ.pop("RUNNER_PATH", "").split(os.pathsep) if folder]
    preload = [name for name in os.environ.pop("RUNNER_PRELOAD", "").split(",") if name]
    sys.path[:0] = folders
    with without("debugpy"):  # 0.15 s for a debugger that nobody attaches
        from ipykernel.kernelapp import IPKernelApp

        from runner.step.stream import CappedSession, answer_every_error, ignore_breakpoints, keep_no_copy

        app: Any = IPKernelApp.instance()
        app.session = CappedSession(parent=app)
        app.initialize(
            [
                *sys.argv[1:],
                "--IPKernelApp.outstream_class=runner.step.stream.CappedStream",
                # sys.path is complete: the run's own snapshot comes before the working folder
                "--IPKernelApp.ignore_cwd=True",
                "--HistoryManager.enabled=False",
            ]
        )
    keep_no_copy(app.shell)
    answer_every_error(app.shell)
    ignore_breakpoints()
    _keep_stderr_for_crashes()
    project, opened = os.environ.pop("RUNNER_PROJECT", ""), os.environ.pop("RUNNER_OPENED", "")
    if opened:
        sys.addaudithook(Watch(app.shell, project, opened))
    with app.shell.builtin_trap:  # pandas asks get_ipython() at import how to display
        for name in preload:
            lean = PAPERMILLS if name.partition(".")[0] in ("papermill", "scrapbook") else ()
            # whatever goes wrong, the notebook's own import will say in its cell
            with contextlib.suppress(Exception), without(*lean):
                importlib.import_module(name)
    app.start()
    # ipykernel's own way out closes its threads in an order that can wait 10 s for one that has ended
    atexit.unregister(app.close)
    atexit.unregister(app.iopub_thread.stop)
    leave(kill_strays)


def _keep_stderr_for_crashes() -> None:
    """ipykernel repeats what cells print to the process's own streams; drop that, keep a crash's trace."""
    crashes = os.dup(2 if not hasattr(sys.stderr, "_original_stdstream_copy") else sys.stderr._original_stdstream_copy)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        copy = getattr(stream, "_original_stdstream_copy", None)
        if copy is not None:
            os.dup2(nowhere, copy)
    os.close(nowhere)
    faulthandler.enable(os.fdopen(crashes, "wb", buffering=0))


class Watch:
    """Notes which files of the project are opened for reading, and by which cell; an audit hook.

    Not seen: files that C++ code opens by itself, as Arrow does.
    """

    # written by the run itself, or by tools; a name that begins with a dot is no input either
    apart = ("runs", "__pycache__", "node_modules")

    def __init__(self, shell: Any, project: str, file: str) -> None:
        self.shell, self.project = shell, project + os.sep
        self.ours = str(Path(__file__).resolve().parents[1]) + os.sep
        self.seen: set[str] = set()
        self.notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            return
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (a link is noted by the name it was opened by)
        if not full.startswith(self.project) or full.startswith(self.ours) or full in self.seen:
            return
        self.seen.add(full)
        name = full[len(self.project) :]
        if any(part.startswith(".") or part in self.apart for part in Path(name).parts):
            return
        cell = (
            len(self.shell.user_ns.get("In", [])) - 1
        )  # what ran without a number, such as injected values, is not in it
        os.write(self.notes, (json.dumps([name, cell]) + "\n").encode())


def leave(last: Callable[[], None] = lambda: None) -> NoReturn:
    """End the process: the notebook's exit handlers, its open files, `last`, and then nothing more."""
    atexit._run_exitfuncs()
    for thing in gc.get_objects():
        # what an interpreter does when it takes its modules down
        if isinstance(thing, io.BufferedWriter | io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                thing.flush()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    last()
    os._exit(0)


def _end_with(parent: int) -> None:
    """Kill this kernel's process group, with all that its cells started, once the runner is gone."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
