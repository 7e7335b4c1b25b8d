"""The process that loads libraries once and forks a kernel for each notebook. Linux only; `ForkServer` starts it.

    python -c START REQUESTS RUNNER

It has one thread and only imports: a parallel region that has run here would hang in every fork. A request is a
datagram on the socket REQUESTS: the packages to load, and the working folder to load them in. A request for a kernel
comes with three descriptors: its line to the runner, the socket for its status, and a file for the trace of a crash.
When the runner closes REQUESTS, or ends in whatever way, this process kills its kernels and ends; if it has been killed
itself, a watchdog does so once the process RUNNER has ended.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.kernel.process_tree import become_subreaper, descendants, kill, kill_family, own_children, signal_group
from runner.kernel.watchdog import Watchdog

if TYPE_CHECKING:
    from runner.kernel.forked.kernel_app import ForkedApp

REQUEST_BYTES = 1 << 16
DESCRIPTORS = 3


@dataclass
class ForkedProcess:
    """One kernel, as its server sees it."""

    pid: int
    status: socket.socket
    ended: bool = False


@dataclass
class KernelServer:
    requests: socket.socket
    app: ForkedApp
    watchdog: Watchdog
    base: set[str]  # packages loaded before any notebook's
    kernels: dict[int, ForkedProcess] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    looked_for: int = -1  # so many of them had been loaded when it looked ahead
    libraries: Sequence[Any] = ()  # those loaded that have threads, as threadpoolctl's controllers
    added: set[str] = field(default_factory=set)  # packages loaded for notebooks
    spoiled: str = ""  # why nothing can be forked any more
    spoiled_by: str = ""

    def serve(self) -> None:
        """Until the runner is gone."""
        while True:
            sources: list[Any] = [self.requests, *(kernel.status for kernel in self.kernels.values())]
            for source in select.select(sources, [], [])[0]:
                if source is self.requests:
                    self._take()
                else:
                    self._drop(source)

    def _take(self) -> None:
        request, descriptors, _, _ = socket.recv_fds(self.requests, REQUEST_BYTES, DESCRIPTORS)
        if not request:
            self.end()
        settings = json.loads(request)
        with contextlib.suppress(OSError):  # no such folder, which the kernel's own start will say
            os.chdir(settings["folder"])
        for name in settings["modules"]:
            if name not in self.loaded and not self.spoiled:
                self._load(name, frozenset(settings["avoid"]))
        if descriptors:
            self._answer(*descriptors)

    def _answer(self, line: int, status: int, crashes: int) -> None:
        for number in (line, status, crashes):
            os.set_inheritable(number, False)  # no process that a cell starts holds the line
        if self.looked_for < len(self.loaded) and not self.spoiled:
            self._look_ahead()
        if _threads() > 1 and not self.spoiled:
            self.spoiled = "the fork server has a thread that it does not know"
        with socket.socket(fileno=line) as their_line:
            if self.spoiled:
                with socket.socket(fileno=status) as listener:
                    _tell(listener, refused=self.spoiled, by=self.spoiled_by)
            else:
                self._fork(their_line, socket.socket(fileno=status), crashes)
        os.close(crashes)

    def _look_ahead(self) -> None:
        from runner.kernel.forked import look_ahead  # after the watchdog's fork, as all that is large

        if self.looked_for < 0:
            look_ahead.warm_up(self.app)
        self.libraries = look_ahead.look_ahead()
        self.app.shell._sys_modules_keys = set(sys.modules)
        self.added = {name.partition(".")[0] for name in sys.modules} - self.base
        self.looked_for = len(self.loaded)

    def _load(self, name: str, avoid: frozenset[str]) -> None:
        self.app.preload.load(name, avoid)
        self.loaded.add(name)
        does = "starts a thread" if _threads() > 1 else "opens the GPU" if _has_opened_gpu() else ""
        if does:
            self.spoiled, self.spoiled_by = f"{name} {does} when it is imported", name.partition(".")[0]

    def _fork(self, line: socket.socket, status: socket.socket, crashes: int) -> None:
        self.app.preload.complete()
        gc.freeze()  # not collected before: that would look through all that was loaded
        pid = os.fork()
        if pid == 0:
            try:
                self._become_kernel(line, status, crashes)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(1)
        with contextlib.suppress(OSError):  # it may have done so itself, and ended
            os.setpgid(pid, pid)
        self.kernels[pid] = ForkedProcess(pid, status)
        self.watchdog.add(pid)
        _tell(status, pid=pid)
        self.reap()  # it may have ended before it was known here

    def _become_kernel(self, line: socket.socket, status: socket.socket, crashes: int) -> None:
        os.setpgid(0, 0)
        for number in (signal.SIGCHLD, signal.SIGIO, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for inherited in (self.requests, status, *(kernel.status for kernel in self.kernels.values())):
            inherited.close()
        self.watchdog.close()
        os.dup2(crashes, 1)
        os.dup2(crashes, 2)
        from runner.kernel.forked.kernel_main import run_kernel

        run_kernel(self.app, line, crashes=crashes, added=self.added, libraries=self.libraries)

    def reap(self) -> None:
        """Report the kernels that ended. They stay zombies until they are dropped, so that no pid is used again."""
        for kernel in self.kernels.values():
            if kernel.ended:
                continue
            end = os.waitid(os.P_PID, kernel.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                kernel.ended = True
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                _tell(kernel.status, code=code)

    def _drop(self, status: socket.socket) -> None:
        """The runner has closed a kernel."""
        kernel = next(kernel for kernel in self.kernels.values() if kernel.status is status)
        del self.kernels[kernel.pid]
        signal_group(kernel.pid, signal.SIGKILL)
        os.waitpid(kernel.pid, 0)
        self.watchdog.drop(kernel.pid)
        self._end_strays()
        status.close()

    def _end_strays(self) -> None:
        """Kill processes that ended kernels started in other sessions: they are this process's children now."""
        for process in own_children():
            if process.pid not in self.kernels:
                kill([process, *descendants(process.pid)])

    def end(self) -> None:
        for pid in list(self.kernels):
            kill_family(pid)
        for pid in list(self.kernels):  # what they have started is this process's once they have ended
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._end_strays()
        os._exit(0)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    watchdog = Watchdog(int(sys.argv[2]))
    become_subreaper()  # after the watchdog, which must not become a stray
    running: list[KernelServer] = []

    def changed(*_: object) -> None:
        if _hung_up(requests):
            running[0].end() if running else os._exit(0)

    # a signal for each change on the socket, so that the runner's end is noticed during an import too
    signal.signal(signal.SIGIO, changed)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) | os.O_ASYNC)
    changed()
    gc.disable()  # modules' objects stay
    import runner.kernel.forked.kernel_main  # noqa: F401  # once, and not in every fork
    from runner.kernel.forked.kernel_app import build

    server = KernelServer(requests, build(), watchdog, {name.partition(".")[0] for name in sys.modules})
    running.append(server)
    signal.signal(signal.SIGCHLD, lambda *_: server.reap())
    server.serve()


def _hung_up(requests: socket.socket) -> bool:
    poll = select.poll()
    poll.register(requests, 0)
    return bool(poll.poll(0))


def _tell(status: socket.socket, **facts: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        status.send(json.dumps(facts).encode())


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _has_opened_gpu() -> bool:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one by which the folder is read
            if str(link.readlink()).startswith("/dev/nvidia"):
                return True
    return False


if __name__ == "__main__":
    main()
