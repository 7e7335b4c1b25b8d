"""A forked process becomes one notebook's kernel: it replaces the state that it shares with the server, then serves.

Runs in the fork only. Whatever holds for the standard kernel as a new process must hold here too.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.kernel.forked.framing import CHUNK_BYTES, Frames, Kind, receive
from runner.kernel.process_tree import become_subreaper
from runner.kernel.shell import set_import_path, set_jupyter_argv
from runner.kernel.standard_main import exit_process, note_opened_files

if TYPE_CHECKING:  # loaded already, by the server
    from runner.kernel.forked.kernel_app import ForkedApp

BLAS, MKL, OMP = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
TEMPORARY = ("TMPDIR", "TEMP", "TMP")  # where tempfile's folder is
NUMEXPR_MOST = 16  # threads that numexpr takes by itself, on however many cores


def run_kernel(
    app: ForkedApp,
    line: socket.socket,
    *,
    crashes: int,
    added: Collection[str],
    libraries: Sequence[Any],
) -> None:
    """Serve one notebook until told to shut down; does not return. `added` are the packages loaded ahead for notebooks,
    `libraries` threadpoolctl's controllers of what has threads; `crashes` is a file for the trace of a crash."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    become_subreaper()
    faulthandler.enable(os.fdopen(crashes, "wb", buffering=0))
    setup = receive(line)
    if setup is None or setup[0] is not Kind.SETUP:
        os._exit(0)
    settings = json.loads(setup[1])
    shadowed = _adopt_environment(settings["environment"], Path(settings["folder"]), added, libraries)
    app.begin(line)
    if shadowed:
        app.session.refuse(f"the project's own {shadowed} has the name of an installed package that another step uses")
    note_opened_files(app.shell)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(app, line))
    exit_process(lambda: app.session.put(Kind.LEFT, b"0"))


async def _serve(app: ForkedApp, line: socket.socket) -> None:
    from tornado.ioloop import IOLoop

    app.kernel.io_loop = app.io_loop = IOLoop.current()
    loop = asyncio.get_running_loop()
    frames = Frames()
    requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def read() -> None:
        data = line.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        if not data:
            loop.remove_reader(line)  # the runner is gone, and the pump ends this process
        for _, payload in frames.feed(data):
            request = json.loads(payload)
            header = request["header"]
            header["date"] = datetime.fromisoformat(header["date"])
            # in the form of Jupyter's session
            requests.put_nowait({**request, "msg_id": header["msg_id"], "msg_type": header["msg_type"], "buffers": []})

    loop.add_reader(line, read)
    _wake_for_signals(loop)
    while not app.shell.exit_now:
        request = await requests.get()
        if request["header"]["msg_type"] == "shutdown_request":
            return
        await app.kernel.handle(request, app.pump)


def _wake_for_signals(loop: asyncio.AbstractEventLoop) -> None:
    """ipykernel's handler asks the loop to cancel an awaiting cell, which a waiting loop does not notice by itself."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    loop.add_reader(woken, os.read, woken, CHUNK_BYTES)


def _adopt_environment(
    environment: dict[str, str], folder: Path, added: Collection[str], libraries: Sequence[Any]
) -> str:
    """Take on the environment; returns the name of a project module that is hidden by a package loaded ahead, or ""."""
    servers_omp = os.environ.get(OMP)
    if any(os.environ.get(name) != environment.get(name) for name in TEMPORARY):
        tempfile.tempdir = None  # the server's is another one
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update((name, value) for name, value in environment.items() if os.environ.get(name) != value)
    os.chdir(folder)
    path = [folder for folder in os.environ.pop("RUNNER_PATH", "").split(os.pathsep) if folder]
    for name in ("RUNNER_PRELOAD", "RUNNER_OWNER"):
        os.environ.pop(name, None)
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # as of any process of Jupyter's
    set_import_path(path)
    set_jupyter_argv(os.devnull)
    _reseed()
    _restore_threads(libraries, servers_omp)
    gc.enable()  # objects loaded ahead stay frozen: searching them would copy their pages
    own = {module for folder in path for module in _modules_in(Path(folder))}
    return min(own.intersection(added) - sys.stdlib_module_names, default="")


def _modules_in(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.suffix in (".py", ".so") or (entry / "__init__.py").is_file():
                yield entry.name.partition(".")[0]


def _reseed() -> None:
    """Otherwise all forks would draw the same random numbers."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def _restore_threads(libraries: Sequence[Any], servers_omp: str | None) -> None:
    """Set the thread counts of loaded libraries by the environment; the server has limited most of them to 1."""
    cores = len(os.sched_getaffinity(0))
    omp = os.environ.get(OMP)
    variables = {"openblas": BLAS, "mkl": MKL}
    for library in libraries:
        variable = variables.get(library.internal_api, OMP)
        if variable != OMP or omp != servers_omp:
            first = (os.environ.get(variable) or omp or "").partition(",")[0]
            library.set_num_threads(int(first) if first.isdecimal() and int(first) else cores)
    if "numexpr" in sys.modules:  # as it does by itself when it is imported
        wanted = os.environ.get("NUMEXPR_NUM_THREADS") or omp or ""
        number = int(wanted) if wanted.isdecimal() else min(cores, NUMEXPR_MOST)
        sys.modules["numexpr"].set_num_threads(number)
        sys.modules["numexpr"].nthreads = number  # type: ignore[attr-defined]
