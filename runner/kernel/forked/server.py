"""The process that loads libraries once and forks a kernel for each notebook. Linux only; started by `runner.kernel.forked.client`.

    python -c START REQUESTS RUNNER

It has one thread, imports and does nothing else: a parallel region that has run here would hang in every fork. A
request is a datagram on the socket REQUESTS: the packages to load, and the working folder to load them in. For a
kernel it has three descriptors: its line to the runner, the socket where its fate is told, and a file for the trace of
a crash. When the runner closes REQUESTS, or ends in whatever way, this process kills what it forked and ends; where it
has been killed itself, a watcher does so once the process RUNNER is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.kernel.process_tree import adopt, children, descendants, kill, kill_family
from runner.kernel.watchdog import Watcher

if TYPE_CHECKING:
    from runner.kernel.forked.kernel_app import ForkedApp

REQUEST_BYTES = 1 << 16
DESCRIPTORS = 3


@dataclass
class Forked:
    """One kernel, as its server sees it."""

    pid: int
    told: socket.socket
    ended: bool = False


@dataclass
class Server:
    requests: socket.socket
    app: ForkedApp
    watcher: Watcher
    base: set[str]  # packages there before any was loaded for a notebook
    kernels: dict[int, Forked] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    spoiled: str = ""  # why nothing can be forked any more
    spoiled_by: str = ""

    def serve(self) -> None:
        """Until the runner is gone."""
        while True:
            sources: list[Any] = [self.requests, *(kernel.told for kernel in self.kernels.values())]
            for source in select.select(sources, [], [])[0]:
                if source is self.requests:
                    self._take()
                else:
                    self._drop(source)

    def _take(self) -> None:
        request, descriptors, _, _ = socket.recv_fds(self.requests, REQUEST_BYTES, DESCRIPTORS)
        if not request:
            self.end()
        wanted = json.loads(request)
        with contextlib.suppress(OSError):  # no such folder, which the kernel's own start will say
            os.chdir(wanted["folder"])
        for name in wanted["modules"]:
            if name not in self.loaded and not self.spoiled:
                self._load(name, frozenset(wanted["avoid"]))
        if descriptors:
            self._answer(*descriptors)

    def _answer(self, line: int, told: int, crashes: int) -> None:
        for number in (line, told, crashes):
            os.set_inheritable(number, False)  # nothing that a cell starts holds the line
        if _threads() > 1 and not self.spoiled:
            self.spoiled = "the fork server has a thread that it does not know"
        with socket.socket(fileno=line) as theirs:
            if self.spoiled:
                with socket.socket(fileno=told) as listener:
                    _tell(listener, refused=self.spoiled, by=self.spoiled_by)
            else:
                self._fork(theirs, socket.socket(fileno=told), crashes)
        os.close(crashes)

    def _load(self, name: str, avoid: frozenset[str]) -> None:
        self.app.preload.load(name, avoid)
        self.loaded.add(name)
        why = ""
        if _threads() > 1:
            why = f"{name} starts a thread when it is imported"
        elif _touches_gpu():
            why = f"{name} opens the GPU when it is imported"
        if why:
            self.spoiled, self.spoiled_by = why, name.partition(".")[0]

    def _fork(self, line: socket.socket, told: socket.socket, crashes: int) -> None:
        self.app.preload.complete()
        gc.freeze()  # not collected before: that would look through all that was loaded
        pid = os.fork()
        if pid == 0:
            try:
                self._become_kernel(line, told, crashes)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(1)
        with contextlib.suppress(OSError):  # it may have done so itself, and ended
            os.setpgid(pid, pid)
        self.kernels[pid] = Forked(pid, told)
        self.watcher.add(pid)
        _tell(told, pid=pid)
        self.reap()  # it may have ended before it was known here

    def _become_kernel(self, line: socket.socket, told: socket.socket, crashes: int) -> None:
        os.setpgid(0, 0)
        for number in (signal.SIGCHLD, signal.SIGIO, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for one in (self.requests, told, *(kernel.told for kernel in self.kernels.values())):
            one.close()
        self.watcher.close()
        os.dup2(crashes, 1)
        os.dup2(crashes, 2)
        from runner.kernel.forked.kernel_main import live

        added = {name.partition(".")[0] for name in sys.modules} - self.base
        live(self.app, line, crashes=crashes, added=added)

    def reap(self) -> None:
        """Tell of the kernels that ended. They stay zombies until they are dropped, so that no pid is used again."""
        for kernel in self.kernels.values():
            if kernel.ended:
                continue
            found = os.waitid(os.P_PID, kernel.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                kernel.ended = True
                code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
                _tell(kernel.told, code=code)

    def _drop(self, told: socket.socket) -> None:
        """The runner has closed a kernel."""
        kernel = next(kernel for kernel in self.kernels.values() if kernel.told is told)
        del self.kernels[kernel.pid]
        _kill(kernel.pid)
        os.waitpid(kernel.pid, 0)
        self.watcher.drop(kernel.pid)
        self._end_strays()
        told.close()

    def _end_strays(self) -> None:
        """Kill what kernels that have ended started in other sessions: it is this process's child now."""
        for process in children(os.getpid()):
            if process.pid not in self.kernels:
                kill([process, *descendants(process.pid)])

    def end(self) -> None:
        for pid in list(self.kernels):
            kill_family(pid)
        self._end_strays()
        os._exit(0)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    watcher = Watcher(int(sys.argv[2]))
    adopt()  # after the watcher, which must not become a stray
    running: list[Server] = []

    def changed(*_: object) -> None:
        if _hung_up(requests):
            running[0].end() if running else os._exit(0)

    # a signal for each change on the socket: the runner's end is noticed in the middle of an import too
    signal.signal(signal.SIGIO, changed)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) | os.O_ASYNC)
    changed()
    gc.disable()  # what modules make stays
    from runner.kernel.forked.kernel_app import build

    server = Server(requests, build(), watcher, {name.partition(".")[0] for name in sys.modules})
    running.append(server)
    signal.signal(signal.SIGCHLD, lambda *_: server.reap())
    server.serve()


def _hung_up(requests: socket.socket) -> bool:
    poll = select.poll()
    poll.register(requests, 0)
    return bool(poll.poll(0))


def _tell(told: socket.socket, **what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        told.send(json.dumps(what).encode())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _touches_gpu() -> bool:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one by which the folder is read
            if str(link.readlink()).startswith("/dev/nvidia"):
                return True
    return False


if __name__ == "__main__":
    main()
