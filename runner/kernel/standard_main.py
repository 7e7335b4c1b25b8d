"""The kernel's process: ipykernel, with imports made while it waits and an end when its runner ends.

Its arguments are `-f CONNECTION`. The environment says the rest:
`RUNNER_OWNER` (the process whose end is also this one's), `RUNNER_PATH` (folders to import from, first
first) and `RUNNER_PRELOAD` (installed packages that the notebook is going to import, loaded before its first
cell arrives).
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
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

from runner.import_blocking import without
from runner.kernel.preload import Preload
from runner.kernel.process_tree import adopt, kill_strays
from runner.kernel.watchdog import Watcher

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
    faulthandler.enable(os.fdopen(os.dup(2), "wb", buffering=0))  # before that is captured
    folders = [folder for folder in os.environ.pop("RUNNER_PATH", "").split(os.pathsep) if folder]
    ahead = [name for name in os.environ.pop("RUNNER_PRELOAD", "").split(",") if name]
    app = _app(sys.argv[2], folders)
    project, opened = os.environ.pop("RUNNER_PROJECT", ""), os.environ.pop("RUNNER_OPENED", "")
    if opened:
        sys.addaudithook(Watch(app.shell, project, opened))
    preload = Preload(app.shell)
    for name in ahead:
        preload.load(name)
    preload.begin()
    app.start()
    # ipykernel's own way out closes its threads in an order that can wait 10 s for one that has ended
    atexit.unregister(app.close)
    atexit.unregister(app.iopub_thread.stop)
    leave(kill_strays)


def _app(connection_file: str, folders: list[str]) -> Any:
    """ipykernel's application with our streams and kernel, the process's descriptors captured; cells import from
    `folders` too."""
    with without("debugpy"):  # 0.15 s for a debugger that nobody attaches
        from ipykernel.kernelapp import IPKernelApp

        from runner.kernel.fd_capture import Capture
        from runner.kernel.shell import HISTORY, NotebookKernel, find_in, name_as_jupyter, settle_in
        from runner.kernel.stream import CappedSession, CappedStream

        app: Any = IPKernelApp.instance(kernel_class=NotebookKernel)
        app.session = CappedSession(parent=app)
        app.initialize(
            [
                *("-f", connection_file, HISTORY),
                "--IPKernelApp.outstream_class=runner.kernel.stream.CappedStream",
                "--IPKernelApp.parent_handle=0",  # the watcher ends it with its runner
            ]
        )
    name_as_jupyter(connection_file)
    find_in(folders)
    settle_in(app)
    streams: Any = (sys.stdout, sys.stderr)
    CappedStream.capture = Capture()
    CappedStream.capture.begin(*(stream.captured for stream in streams))
    return app


class Watch:
    """Notes which files of the project are opened for reading, and by which cell; an audit hook.

    Not seen: files that C++ code opens by itself, as Arrow does.
    """

    # written by the run itself, or by tools; a name that begins with a dot is not an input either
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
    """End the process as the interpreter does: the notebook's threads that are not daemons, its exit handlers, its open
    files; then `last`, and nothing more."""
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
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
