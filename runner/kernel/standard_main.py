"""The kernel's process: ipykernel, which imports packages while it waits, and ends when its runner ends.

Its arguments are `-f CONNECTION`, and in the environment `RUNNER_OWNER` (the process with which this one ends),
`RUNNER_PATH` (folders to import from) and `RUNNER_PRELOAD` (installed packages to load before the first cell arrives).
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
from runner.kernel.process_tree import become_subreaper, kill_strays
from runner.kernel.watchdog import Watchdog

POLL_S = 0.5


def main() -> None:
    """Serve one kernel until told to shut down, or until the runner has ended."""
    # not the parent: a runner that was killed before this line is not our parent any more
    owner = int(os.environ.pop("RUNNER_OWNER", "0")) or os.getppid()
    watchdog = Watchdog(owner) if hasattr(os, "pidfd_open") else None
    if watchdog is not None and watchdog.works:
        watchdog.add(os.getpgrp())
    else:  # not on Linux, or not in this container
        threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    become_subreaper()
    faulthandler.enable(os.fdopen(os.dup(2), "wb", buffering=0))  # before that is captured
    folders = [folder for folder in os.environ.pop("RUNNER_PATH", "").split(os.pathsep) if folder]
    ahead = [name for name in os.environ.pop("RUNNER_PRELOAD", "").split(",") if name]
    app = _app(sys.argv[2], folders)
    note_opened_files(app.shell)
    preload = Preload(app.shell)
    for name in ahead:
        preload.load(name)
    preload.begin()
    app.start()
    # ipykernel's own exit closes its threads in an order that can wait 10 s for one that has ended
    atexit.unregister(app.close)
    atexit.unregister(app.iopub_thread.stop)
    exit_process(kill_strays)


def _app(connection_file: str, folders: list[str]) -> Any:
    """ipykernel's application with our streams and kernel and captured descriptors; cells import from `folders` too."""
    with without("debugpy"):  # 0.15 s for a debugger that nobody attaches
        from ipykernel.kernelapp import IPKernelApp

        from runner.kernel.fd_capture import OutputCapture
        from runner.kernel.shell import (
            HISTORY,
            NotebookKernel,
            configure_app,
            set_import_path,
            set_jupyter_argv,
        )
        from runner.kernel.stream import CappedStream, LimitedSession

        app: Any = IPKernelApp.instance(kernel_class=NotebookKernel)
        app.session = LimitedSession(parent=app)
        app.initialize(
            [
                *("-f", connection_file, HISTORY),
                "--IPKernelApp.outstream_class=runner.kernel.stream.CappedStream",
                "--IPKernelApp.parent_handle=0",  # the watchdog ends it with its runner
            ]
        )
    set_jupyter_argv(connection_file)
    set_import_path(folders)
    configure_app(app)
    streams: Any = (sys.stdout, sys.stderr)
    CappedStream.capture = OutputCapture()
    CappedStream.capture.begin(*(stream.captured for stream in streams))
    return app


class OpenedFileHook:
    """Notes which files of the project are opened for reading, and by which cell; an audit hook.

    Not seen: files that C++ code opens by itself, as Arrow does.
    """

    # written by the run itself, or by tools; a name that begins with a dot is not an input either
    ignored = ("runs", "__pycache__", "node_modules")

    def __init__(self, shell: Any, project: str, file: str) -> None:
        self.shell, self.project = shell, project + os.sep
        self.package = str(Path(__file__).resolve().parents[1]) + os.sep
        self.seen: set[str] = set()
        self.notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)  # now, as a cell may give up rights

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            return
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (a link is noted by the name it was opened by)
        if not full.startswith(self.project) or full.startswith(self.package) or full in self.seen:
            return
        self.seen.add(full)
        name = full[len(self.project) :]
        if any(part.startswith(".") or part in self.ignored for part in Path(name).parts):
            return
        cell = len(self.shell.user_ns.get("In", [])) - 1  # without cells that have no number, as the injected one
        os.write(self.notes, (json.dumps([name, cell]) + "\n").encode())


def note_opened_files(shell: Any) -> None:
    """Where the environment asks for it, have the files that cells open noted."""
    project, file = os.environ.pop("RUNNER_PROJECT", ""), os.environ.pop("RUNNER_OPENED", "")
    if file:
        sys.addaudithook(OpenedFileHook(shell, project, file))


def exit_process(last: Callable[[], None] = lambda: None) -> NoReturn:
    """End the process as the interpreter does: wait for the notebook's threads that are not daemons, run its exit
    handlers, flush its open files; then call `last`."""
    for end in (threading._shutdown, atexit._run_exitfuncs, _write_files):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):  # or the interpreter waits for locks of threads that it has ended
            end()
    try:
        last()
    finally:
        os._exit(0)


def _write_files() -> None:
    """Write what is buffered, as an interpreter does when it ends, and last the streams of the cells.

    Text and bytes go first into what compresses them, which is closed into its file, as a library's own files and
    writers are; of two of these the one that writes into the other goes first. Not seen: Arrow's own streams, which the
    collector does not know.
    """
    texts: list[Any] = []
    buffers: list[Any] = []
    files: list[Any] = []
    writers: list[Any] = []
    # C's own classes, and never isinstance: neither a metaclass nor a proxy of what has gone is asked anything
    base, plain = io.IOBase.__base__, (io.TextIOBase.__base__, io.RawIOBase.__base__)
    makers = _known(("zipfile", "ZipFile"), ("pyarrow.parquet", "ParquetWriter"), ("pyarrow.orc", "ORCWriter"))
    for one in gc.get_objects():
        kind = type(one)
        if issubclass(kind, io.TextIOWrapper):
            texts.append(one)
        elif issubclass(kind, io.BufferedWriter | io.BufferedRandom):
            buffers.append(one)
        elif issubclass(kind, base):  # type: ignore[arg-type]
            if not issubclass(kind, plain) and kind.__module__ != "_io":  # type: ignore[arg-type]
                files.append(one)
        elif issubclass(kind, makers):
            writers.append(one)
    # an archive with a member that is open is not closed until that is, which is one of the files
    closed = [*writers, *_outer_first(files), *writers]
    for group, end in ((texts, "flush"), (buffers, "flush"), (closed, "close"), (buffers, "flush")):
        for one in group:
            with contextlib.suppress(BaseException):
                getattr(one, end)()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _known(*names: tuple[str, str]) -> tuple[type, ...]:
    """The classes, of modules that are loaded; a notebook may have put anything in a module's place."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in names]
    return tuple(one for one in found if isinstance(one, type))


def _outer_first(files: list[Any]) -> list[Any]:
    """Each before those that it has, by itself or among its attributes."""
    held = {
        id(one): {
            id(inner) for at in gc.get_referents(one) for inner in (at, *gc.get_referents(at)) if inner is not one
        }
        for one in files
    }
    ordered, left = list[Any](), {id(one): one for one in files}
    while left:
        inner = set[int]().union(*(held[one] for one in left))
        ordered += [left.pop(one) for one in [one for one in left if one not in inner] or list(left)]
    return ordered


def _end_with(parent: int) -> None:
    """Kill this kernel's process group once the runner has ended."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
