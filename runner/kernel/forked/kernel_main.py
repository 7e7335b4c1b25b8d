"""A forked process becomes one notebook's kernel: what it shares with the server is made its own, then it serves.

Runs in the fork only. What the standard kernel has by being a fresh process must be true here too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.kernel.forked.framing import CHUNK_BYTES, Frames, Kind, receive
from runner.kernel.process_tree import adopt
from runner.kernel.shell import find_in, name_as_jupyter
from runner.kernel.standard_main import Watch, leave

if TYPE_CHECKING:  # loaded already, by the server
    from runner.kernel.forked.kernel_app import ForkedApp

BLAS = "OPENBLAS_NUM_THREADS"
NUMEXPR_MOST = 16  # threads that numexpr takes by itself, on however many cores
SETTERS = {  # in what is linked into a library of that name
    "openblas": ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_",
                 "openblas_set_num_threads"),
    "libmkl_rt": ("MKL_Set_Num_Threads",),
    "libgomp": ("omp_set_num_threads",),
    "libomp": ("omp_set_num_threads",),
    "libiomp": ("omp_set_num_threads",),
}  # fmt: skip


def live(app: ForkedApp, line: socket.socket, *, crashes: int, added: Collection[str]) -> None:
    """Serve one notebook until told to shut down; does not return. `added` are the packages loaded ahead for it and others.

    `crashes` is a file that gets the trace of a crash.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt()
    faulthandler.enable(os.fdopen(crashes, "wb", buffering=0))
    setup = receive(line)
    if setup is None or setup[0] is not Kind.SETUP:
        os._exit(0)
    wanted = json.loads(setup[1])
    shadowed = _become(wanted["environment"], Path(wanted["folder"]), added)
    app.begin(line)
    if shadowed:
        app.session.refuse(f"the project's own {shadowed} has the name of an installed package that another step uses")
    project, opened = os.environ.pop("RUNNER_PROJECT", ""), os.environ.pop("RUNNER_OPENED", "")
    if opened:
        sys.addaudithook(Watch(app.shell, project, opened))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(app, line))
    leave(lambda: app.session.put(Kind.LEFT, b"0"))


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
            # as Jupyter's session hands it on
            requests.put_nowait({**request, "msg_id": header["msg_id"], "msg_type": header["msg_type"], "buffers": []})

    loop.add_reader(line, read)
    _wake_for_signals(loop)
    while not app.shell.exit_now:
        request = await requests.get()
        if request["header"]["msg_type"] == "shutdown_request":
            return
        await app.kernel.handle(request, app.pump)


def _wake_for_signals(loop: asyncio.AbstractEventLoop) -> None:
    """ipykernel's handler asks the loop to cancel an awaiting cell, which a loop that waits does not notice by itself."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    loop.add_reader(woken, os.read, woken, CHUNK_BYTES)


def _become(environment: dict[str, str], folder: Path, added: Collection[str]) -> str:
    """Take on the environment; the name of a project module that is hidden by a package loaded ahead, or ""."""
    numbers = {name: os.environ.get(name) for name in (BLAS, "OMP_NUM_THREADS")}
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    path = [place for place in os.environ.pop("RUNNER_PATH", "").split(os.pathsep) if place]
    for name in ("RUNNER_PRELOAD", "RUNNER_OWNER"):
        os.environ.pop(name, None)
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # as of any process of Jupyter's
    find_in(path)
    name_as_jupyter(os.devnull)
    _reseed()
    _restore_threads(numbers)
    gc.enable()  # what was loaded ahead stays frozen: looking through it would copy its pages
    beside = {entry.partition(".")[0] for place in path for entry in _importable(Path(place))}
    return min(beside.intersection(added) - sys.stdlib_module_names, default="")


def _importable(place: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [
            entry.name
            for entry in place.iterdir()
            if entry.suffix in (".py", ".so") or (entry / "__init__.py").is_file()
        ]
    return []


def _reseed() -> None:
    """Random numbers of its own: all forks would draw the same."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


def _restore_threads(before: dict[str, str | None]) -> None:
    """As many threads in loaded libraries as the environment says; the server held OpenBLAS and numexpr to one."""
    cores = len(os.sched_getaffinity(0))
    omp = os.environ.get("OMP_NUM_THREADS")
    changed = omp != before["OMP_NUM_THREADS"]
    counts = {"openblas": os.environ.get(BLAS) or omp, "libmkl_rt": os.environ.get("MKL_NUM_THREADS") or omp}
    for library in _loaded():
        name = next((name for name in SETTERS if name in Path(library).name), None)
        if name is None or (name not in counts and not changed):
            continue
        wanted = (counts.get(name, omp) or "").partition(",")[0]
        number = int(wanted) if wanted.isdecimal() and int(wanted) else cores
        handle = ctypes.CDLL(library)
        setter = next((getattr(handle, symbol) for symbol in SETTERS[name] if hasattr(handle, symbol)), None)
        if setter is not None:
            setter(ctypes.c_int(number))
    if "numexpr" in sys.modules:  # as it does by itself when it is imported
        wanted = os.environ.get("NUMEXPR_NUM_THREADS") or omp or ""
        number = int(wanted) if wanted.isdecimal() else min(cores, NUMEXPR_MOST)
        sys.modules["numexpr"].set_num_threads(number)
        sys.modules["numexpr"].nthreads = number  # type: ignore[attr-defined]


def _loaded() -> set[str]:
    """The shared libraries in this process."""
    fields = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return {field[5] for field in fields if len(field) == 6 and ".so" in field[5]}
