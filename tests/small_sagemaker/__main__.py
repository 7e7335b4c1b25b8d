"""The servers' process: it has imported moto, which takes six seconds, and forks itself for each server.

    python -m small_sagemaker SOCKET

A request is a datagram: the folder, the address and the key for control, and the settings, as JSON, with three
descriptors: stdin, whose end ends the server, stdout, where its address goes, and stderr. It ends when the tests'
process closes SOCKET.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

# jsonschema, which moto imports, would build a grammar of addresses: three seconds for what nobody asks here
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

from .container import start_interpreter  # noqa: E402
from .control import ControlServer  # noqa: E402
from .server import Server, load  # noqa: E402

REQUEST_BYTES = 1 << 16
END_S = 5


def serve(requests: socket.socket) -> None:
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not data:
            return
        if os.fork() == 0:
            try:
                requests.close()
                become(descriptors, **json.loads(data))
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        for one in descriptors:
            os.close(one)


def become(descriptors: list[int], *, folder: str, control: str, key: str, settings: str) -> None:
    """One server, until its stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, one in enumerate(descriptors):
        os.dup2(one, number)
        os.close(one)
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    server = Server(pickle.loads(base64.b64decode(settings)))
    ControlServer(control, base64.b64decode(key), server.methods())
    os.write(1, json.dumps({"url": server.url, "pid": os.getpid()}).encode() + b"\n")
    while os.read(0, 1):
        continue
    server.close()
    shutil.rmtree(folder, ignore_errors=True)  # the test's process may be gone
    os._exit(0)  # threads of jobs that were killed may still be closing their connections


def reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        interpreter = start_interpreter(sys.prefix)  # for all servers, imports while this does
        load()
        assert threading.active_count() == len([*Path("/proc/self/task").iterdir()]) == 1
        gc.freeze()
        signal.signal(signal.SIGCHLD, reap)
        serve(requests)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        interpreter.close()
        signal.alarm(END_S)  # one that nobody has closed ends when the tests' process does
        with contextlib.suppress(ChildProcessError):
            while os.wait():
                continue


main()
