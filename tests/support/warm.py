"""A process that has imported what commands import, and forks itself for each: `runner` without its start-up.

    python -m support.warm SOCKET

It has not imported what few commands use, as pandas and boto3, since a fork takes longer the more memory there is. It has
one thread and does nothing but import and fork. A request is a datagram: the command line, its folder, environment and
umask as JSON, with three descriptors: stdout, stderr, and a pipe where the exit code is written, negative for a signal. It
ends when the tests' process closes SOCKET.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from runner.kernel.forked import client
from support.fork_servers import Starting

REQUEST_BYTES = 1 << 18
# what commands import when they are used
PACKAGES = (
    "asyncio", "ipython_pygments_lexers", "jinja2", "markdown_it", "nbclient", "nh3", "pygments.formatters.html",
    "pygments.styles.default", "rich.text", "subprocess",
)  # fmt: skip
NOT_COMMANDS = ("__main__", "_run", "forked.server", "kernel_app", "kernel_main", "wheel_backend", "plugin")


def load() -> None:
    import runner
    from runner.import_blocking import PAPERMILLS, without

    gc.disable()
    with without(*PAPERMILLS):
        importlib.import_module("papermill")
    for name in PACKAGES:
        importlib.import_module(name)
    for found in pkgutil.walk_packages(runner.__path__, "runner."):
        if not found.name.endswith(NOT_COMMANDS):
            importlib.import_module(found.name)
    assert threading.active_count() == len([*Path("/proc/self/task").iterdir()]) == 1
    gc.freeze()
    gc.enable()


def serve(requests: socket.socket, starting: Starting) -> None:
    going: dict[int, tuple[int, int]] = {}  # a process's descriptor: its number, and where its exit code goes
    while True:
        for ready in select.select([requests, *going], [], [])[0]:
            if ready is not requests:
                pid, told = going.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # whoever asked has ended
                    os.write(told, str(code).encode())
                os.close(told)
                os.close(ready)
                continue
            data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
            if not data:
                return
            out, err, told = descriptors
            pid = os.fork()
            if pid == 0:
                for other in (requests.fileno(), told, *going, *(place for _, place in going.values())):
                    os.close(other)
                client.subprocess = starting  # type: ignore[attr-defined, misc, assignment]
                run(out, err, **json.loads(data))
            os.close(out)
            os.close(err)
            going[os.pidfd_open(pid)] = (pid, told)


def run(out: int, err: int, *, arguments: list[str], folder: str, environment: dict[str, str], umask: int) -> None:
    """Become the process that `python -m runner ARGUMENTS` is, and end as it ends."""
    code: Any = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace", line_buffering=True
        )
        os.umask(umask)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        from runner import __main__ as command

        sys.argv = [command.__file__, *arguments]
        sys.path[0] = folder
        command.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
        assert isinstance(code, int)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as theirs:
        servers = Starting(os.environ)
        load()
        serve(theirs, servers)
