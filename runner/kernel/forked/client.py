"""Kernels that a server forks: ready in milliseconds, with the notebook's libraries loaded. Linux only.

The other implementation of `runner.kernel.standard.Kernel`. Imports nothing heavy: a server is started before papermill
is imported, and loads libraries beside that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.kernel.forked.framing import Kind, frame
from runner.kernel.late_imports import late_packages, remember_late
from runner.kernel.process_tree import python, signal_group

if TYPE_CHECKING:  # starting a server does not need asyncio's queues and uuid, which it imports
    from runner.kernel.forked.kernel_client import ForkedKernelClient

SERVER = "runner.kernel.forked.server"
# OpenBLAS, MKL and numexpr start their threads when they are loaded; a kernel gets its number back after the fork.
# jemalloc, which Arrow may use, has a thread too.
ALONE = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
STATUS_BYTES = 4096
LAST_BYTES = 4000
END_S = 1.0


class ForkServer:
    """One running server; `close` ends it and every kernel it has forked, as does the end of this process."""

    def __init__(self, environment: Mapping[str, str], *, avoid: Iterable[str] = ()) -> None:
        """Start it; returns at once. Its hash seed and its OpenMP settings are those of `environment`; it never loads
        the packages in `avoid`, those of `late_packages`, and packages that import them."""
        self.avoid = {*late_packages(), *avoid}
        self.spoiled = False  # by having loaded what `avoid` has since; it forks no more
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stdout, self._stderr = os.memfd_create("stdout"), os.memfd_create("stderr")
        own = {name: value for name, value in environment.items() if not name.startswith("RUNNER_")}
        try:
            self._process = subprocess.Popen(
                [*python(SERVER), str(theirs.fileno()), str(os.getpid())],
                env={**own, **ALONE},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=self._stderr,
                start_new_session=True,
            )
        except BaseException:
            self._requests.close()
            os.close(self._stderr)
            raise
        finally:
            theirs.close()
            os.close(stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def load(self, modules: Iterable[str], *, cwd: Path) -> None:
        """Load them, in the notebook's working folder, ahead of the notebook. OSError where the server has ended."""
        self._ask(modules, cwd, [])

    def kernel(self, *, cwd: Path, environment: Mapping[str, str], modules: Iterable[str]) -> ForkedKernel:
        """A kernel that is forked once `modules` are loaded; returns at once. OSError where the server has ended."""
        line, their_line = socket.socketpair()
        status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        crashes = os.memfd_create("crashes")
        try:
            self._ask(modules, cwd, [their_line.fileno(), their_status.fileno(), crashes])
        except BaseException:
            line.close()
            status.close()
            os.close(crashes)
            raise
        finally:
            their_line.close()
            their_status.close()
        setup = json.dumps({"folder": str(cwd.absolute()), "environment": dict(environment)})
        with contextlib.suppress(OSError):  # it has just ended, which `status` says too
            line.sendall(frame(Kind.SETUP, setup.encode()))
        return ForkedKernel(self, line, status, crashes)

    def close(self) -> None:
        """Idempotent."""
        if self._requests.fileno() < 0:
            return
        self._requests.close()
        os.close(self._stderr)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # in the middle of something long
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The last line that it wrote: why it did not start."""
        text = "" if self._requests.fileno() < 0 else _end_of(self._stderr)
        return (text.strip().splitlines() or [""])[-1]

    def _ask(self, modules: Iterable[str], cwd: Path, descriptors: list[int]) -> None:
        request = {"modules": list(modules), "avoid": sorted(self.avoid), "folder": str(cwd.absolute())}
        socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)


class ForkedKernel:
    """One kernel of a server. `refused` says why the notebook needs the standard kernel, "" while it does not."""

    kind = "forked"
    instead = ""

    def __init__(self, server: ForkServer, line: socket.socket, status: socket.socket, crashes: int) -> None:
        self.server, self.line, self._status, self._crashes = server, line, status, crashes
        self.owns_server = False  # and closes it
        self.refused = ""
        self._pid: int | None = None
        self._pidfd: int | None = None  # watched if the server has ended and the kernel has not
        self._code: int | None = None
        self._ended = False
        self._waiting: set[asyncio.Future[None]] = set()
        status.setblocking(False)

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def returncode(self) -> int | None:
        self._read_status()
        return self._code

    async def died(self) -> int | None:
        """As of any Kernel, also once it has refused."""
        loop = asyncio.get_running_loop()
        self._read_status()
        while not self._ended:
            source = self._status if self._pidfd is None else self._pidfd
            change = loop.create_future()
            self._waiting.add(change)
            loop.add_reader(source, self._settle)
            try:
                await change
            finally:
                self._waiting.discard(change)
                if not self._waiting:
                    loop.remove_reader(source)
            self._read_status()
        return self._code

    def last_words(self) -> str:
        """The end of a crash's trace."""
        return _end_of(self._crashes)

    def signal(self, number: int) -> None:
        self._read_status()
        if self._pid is not None:
            signal_group(self._pid, number)

    def client(self) -> ForkedKernelClient:
        from runner.kernel.forked.kernel_client import ForkedKernelClient

        return ForkedKernelClient(self.line, on_left=self.mark_ended, on_refused=self.refuse)

    def mark_ended(self) -> None:
        """It has run its exit handlers; its process may still be freeing memory."""
        self._code = 0
        self._end()

    def refuse(self, why: str) -> None:
        self.refused = self.refused or why
        self._end()

    def close(self) -> None:
        if self._status.fileno() < 0:
            return
        self.signal(signal.SIGKILL)
        self._ended = True
        self.line.close()
        self._status.close()  # which the server notices
        for descriptor in (self._crashes, self._pidfd):
            if descriptor is not None:
                os.close(descriptor)
        if self.owns_server:
            self.server.close()

    def _read_status(self) -> None:
        """Take in what the server has reported so far."""
        while not self._ended:
            if self._pidfd is not None:
                if select.select([self._pidfd], [], [], 0)[0]:
                    self._end()
                return
            try:
                data = self._status.recv(STATUS_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._take(json.loads(data) if data else None)

    def _take(self, report: dict[str, Any] | None) -> None:
        match report:
            case {"refused": why, "by": package}:
                self.server.avoid.add(package)
                self.server.spoiled = True
                remember_late(package)
                self.refuse(why)
            case {"pid": pid}:
                self._pid = pid
            case {"code": code}:
                self._code = code
                self._end()
            case None if self._pid is not None:
                try:
                    self._pidfd = os.pidfd_open(self._pid)
                except ProcessLookupError:
                    self._end()
            case None:
                self.refuse(f"the fork server has ended. {self.server.last_words()}".strip())

    def _end(self) -> None:
        self._ended = True
        self._settle()

    def _settle(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)


def _end_of(file: int) -> str:
    return os.pread(file, LAST_BYTES, max(0, os.fstat(file).st_size - LAST_BYTES)).decode(errors="replace")
