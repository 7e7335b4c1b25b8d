"""Servers of kernels, forked from a process that has imported what one imports before it is asked for anything.

A run starts such a server as a process of its own, and importing ipykernel is three quarters of what a small run takes.
Whoever forks it here becomes what that process is: its folder, environment, session, streams and command line. Kernels
started by the tests' own process, and by commands that have a process of their own, have servers from their start.

A server whose environment is that of the tests is a fork of one that has also made the application that its kernels use,
which reads the environment.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.kernel.forked.client import ALONE

# read by an interpreter as it starts
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC")
UNREAD = ("RUNNER_", "OMP_")  # by what makes the kernels' application
# In it are no modules but those that a server has: it is not this one
FORKING = """
import sys
sys.flags.safe_path or sys.path.pop(0)
import gc, json, os, signal, socket
def ended(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
from runner.kernel.forked import server
gc.disable()
from runner.kernel.forked import kernel_app
requests, other = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
adds = {}
if os.fork() == 0:
    requests, other = other, requests
    before = dict(os.environ)
    app = kernel_app.build()
    adds = {name: value for name, value in os.environ.items() if before.get(name) != value}
    kernel_app.build = lambda: app
other.close()
gc.freeze()
signal.signal(signal.SIGCHLD, ended)
while True:
    data, descriptors, _, _ = socket.recv_fds(requests, 1 << 18, 4)
    if not data:
        os._exit(0)
    if os.fork() == 0:
        break
    for number in descriptors:
        os.close(number)
requests.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
asked = json.loads(data)
line, printed, said, told = descriptors
os.setsid()
os.write(told, str(os.getpid()).encode())
os.dup2(printed, 1)
os.dup2(said, 2)
for number in (printed, said, told):
    os.close(number)
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["environment"] | adds)
sys.argv = ["-c", str(line), asked["owner"]]
server.main()
"""


class Forked:
    """What `runner.kernel.forked.client` does with the process it has started."""

    def __init__(self, pid: int) -> None:
        self._pid, self._pidfd = pid, os.pidfd_open(pid)

    def poll(self) -> int | None:
        return 0 if select.select([self._pidfd], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a fork server", timeout or 0)
        return 0

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Starting:
    """In place of the module `subprocess` in `runner.kernel.forked.client`."""

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the process that forks; it ends with all that hold this."""
        self._plain, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._built, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._at_start = {**environment, **ALONE, "PYTHONHASHSEED": "0"}
        passed = [theirs.fileno(), others.fileno()]
        with theirs, others:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKING, *map(str, passed)],
                env=self._at_start, pass_fds=passed, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def Popen(self, line: Sequence[str], *, env: Mapping[str, str], **how: Any) -> Any:
        early = (name for name in {*env, *self._at_start} if name.startswith(READ_AT_START))
        if any(env.get(name) != self._at_start.get(name) for name in early):
            return subprocess.Popen(line, env=env, **how)
        asked = {"folder": str(Path.cwd()), "environment": dict(env), "owner": line[-1]}
        read, told = os.pipe()
        descriptors = [*how["pass_fds"], how["stdout"], how["stderr"], told]
        requests = self._built if _as_built(env) == _as_built(self._at_start) else self._plain
        socket.send_fds(requests, [json.dumps(asked).encode()], descriptors)
        os.close(told)
        with open(read, "rb") as heard:
            return Forked(int(heard.read()))


def _as_built(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(UNREAD)}
