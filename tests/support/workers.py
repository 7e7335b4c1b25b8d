"""The processes of `pytest -n`, as forks of one that has imported what the tests import. Linux.

    python workers.py --fork ADDRESS DESCRIPTOR FORKERS    the process that forks; it ends when DESCRIPTOR does
    python workers.py ADDRESS -u -c CODE                   what execnet starts as a Python: it asks for a fork, and waits

They share the forkers of other processes (forkers.py), which are started here when they are first asked.
This file is run by its path: pytest rewrites the asserts of the package `support`, so that nothing may import it before.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from typing import Any

REQUEST_BYTES = 1 << 18
STREAMS = 3
BEGUN_S = 30
# what test modules import, but for pytest's plug-ins, whose asserts it rewrites
PACKAGES = (
    "boto3", "distributed", "jinja2", "moto.core", "moto.moto_server.werkzeug_app", "msgspec.toml", "nbclient",
    "nbformat", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.metrics", "uvicorn", "xgboost",
)  # fmt: skip


def ask(address: str, arguments: list[str]) -> int:
    """Have the fork that runs these arguments; its exit code."""
    import signal
    import time

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the fork
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as place:
        until = time.monotonic() + BEGUN_S
        while place.connect_ex(f"\0{address}") and time.monotonic() < until:  # it has not begun to listen
            time.sleep(0.02)
        if not of_this_user(place):
            sys.exit(f"another user of this machine has taken the address {address}")
        socket.send_fds(place, [json.dumps(request).encode()], list(range(STREAMS)))
        os.close(0)  # whose ends are the fork's alone to hold
        os.close(1)
        return int(place.recv(16) or 1)


def of_this_user(place: socket.socket) -> bool:
    """Whether the other end is a process of the user whose tests these are: anybody here may connect, or listen."""
    _, user, _ = struct.unpack("3i", place.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())


def fork(address: str, ends: int, forkers: list[dict[str, Any]]) -> None:
    """Listen, import, and fork for each request, until the process that was asked for tests has ended."""
    import gc
    import importlib
    import select
    import signal
    import subprocess
    import threading

    from runner.import_blocking import deferred

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"\0{address}")
    listening.listen()
    gc.disable()
    with deferred():
        for name in PACKAGES:
            importlib.import_module(name)
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
    gc.freeze()
    waiting = {one["asked"]: one for one in forkers}
    started = []
    going: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([listening, ends, *waiting, *going], [], [])[0]:
            if ready == ends:
                for one in forkers:
                    os.close(one["asking"])  # whose end is the forker's
                for process in started:
                    process.wait()
                return
            if ready in waiting:
                asked = waiting.pop(ready)
                line = [*asked["line"], str(ready)]
                started.append(
                    subprocess.Popen(
                        line, cwd=asked["folder"], env=asked["env"], pass_fds=[ready], stdin=subprocess.DEVNULL
                    )
                )
                os.close(ready)
            elif ready in going:
                pid, told = going.pop(ready)
                told.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                told.close()
                os.close(ready)
            else:
                told = listening.accept()[0]
                if not of_this_user(told):
                    told.close()
                    continue
                data, streams, _, _ = socket.recv_fds(told, REQUEST_BYTES, STREAMS)
                if (pid := os.fork()) == 0:
                    for number in (listening.fileno(), ends, told.fileno(), *waiting, *going):
                        os.close(number)
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    gc.enable()
                    become(streams, **json.loads(data))
                for number in streams:
                    os.close(number)
                going[os.pidfd_open(pid)] = (pid, told)


def become(streams: list[int], *, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What `python -u -c CODE` is; it ends this process."""
    import atexit
    import io
    import threading
    import time
    from types import ModuleType

    code = 1
    try:
        for place, one in enumerate(streams):
            os.dup2(one, place)
            os.close(one)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        sys.argv, sys.path[0] = ["-c"], ""
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
        for place, name in ((1, "stdout"), (2, "stderr")):
            made = io.TextIOWrapper(io.FileIO(place, "w", closefd=False), "utf-8", write_through=True)
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
        assert arguments[:-1] == ["-u", "-c"], arguments
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(arguments[-1], "<string>", "exec"), vars(main))
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "--fork":
        fork(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
