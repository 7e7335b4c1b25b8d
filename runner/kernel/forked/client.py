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
from runner.kernel.process_tree import python

if TYPE_CHECKING:  # it imports asyncio's queues and uuid, which starting a server does not need
    from runner.kernel.forked.conversation import Conversation

SERVER = "runner.kernel.forked.server"
# OpenBLAS, MKL and numexpr start their threads when they are loaded; a kernel gets its number back after the fork.
# jemalloc, which Arrow may use, has a thread too.
ALONE = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
TOLD_BYTES = 4096
LAST_BYTES = 4000
END_S = 1.0


class ForkServer:
    """One running server; `close` ends it and every kernel it has forked, as does the end of this process."""

    def __init__(self, environment: Mapping[str, str], *, avoid: Iterable[str] = ()) -> None:
        """Start it; returns at once. Its hash seed and its OpenMP settings are those of `environment`; the packages in
        `avoid` are never loaded, nor are the late ones, nor what imports them."""
        self.avoid = {*late_packages(), *avoid}
        self.spoiled = False  # by having loaded what `avoid` has since; it forks no more
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        printed, self._said = os.memfd_create("printed"), os.memfd_create("said")  # its stdout and stderr
        own = {name: value for name, value in environment.items() if not name.startswith("RUNNER_")}
        try:
            self._process = subprocess.Popen(
                [*python(SERVER), str(theirs.fileno()), str(os.getpid())],
                env={**own, **ALONE},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=self._said,
                start_new_session=True,
            )
        except BaseException:
            self._requests.close()
            os.close(self._said)
            raise
        finally:
            theirs.close()
            os.close(printed)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def load(self, modules: Iterable[str], *, cwd: Path) -> None:
        """Load them, in the notebook's working folder, ahead of the notebook. OSError where the server has ended."""
        self._ask(modules, cwd, [])

    def kernel(self, *, cwd: Path, environment: Mapping[str, str], modules: Iterable[str]) -> ForkedKernel:
        """A kernel that is forked once `modules` are loaded; returns at once. OSError where the server has ended."""
        line, their_line = socket.socketpair()
        told, their_told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        crashes = os.memfd_create("crashes")
        try:
            self._ask(modules, cwd, [their_line.fileno(), their_told.fileno(), crashes])
        except BaseException:
            for one in (line, told):
                one.close()
            os.close(crashes)
            raise
        finally:
            their_line.close()
            their_told.close()
        setup = json.dumps({"folder": str(cwd.absolute()), "environment": dict(environment)})
        with contextlib.suppress(OSError):  # it has ended just now, which `told` says too
            line.sendall(frame(Kind.SETUP, setup.encode()))
        return ForkedKernel(self, line, told, crashes)

    def close(self) -> None:
        """Calling twice is safe."""
        if self._requests.fileno() < 0:
            return
        self._requests.close()
        os.close(self._said)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # in the middle of something long
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The last line that it wrote: why it did not start."""
        said = "" if self._requests.fileno() < 0 else _end_of(self._said)
        return (said.strip().splitlines() or [""])[-1]

    def _ask(self, modules: Iterable[str], cwd: Path, descriptors: list[int]) -> None:
        wanted = {"modules": list(modules), "avoid": sorted(self.avoid), "folder": str(cwd.absolute())}
        socket.send_fds(self._requests, [json.dumps(wanted).encode()], descriptors)


class ForkedKernel:
    """One kernel of a server. `refused` says why the notebook needs the standard kernel, "" while it does not."""

    kind = "forked"
    instead = ""

    def __init__(self, server: ForkServer, line: socket.socket, told: socket.socket, crashes: int) -> None:
        self.server, self.line, self._told, self._crashes = server, line, told, crashes
        self.owns_server = False  # which is then closed with it
        self.refused = ""
        self._pid: int | None = None
        self._pidfd: int | None = None  # watched where the server is gone and the kernel is not
        self._code: int | None = None
        self._over = False
        self._waiting: set[asyncio.Future[None]] = set()
        told.setblocking(False)

    @property
    def returncode(self) -> int | None:
        self._hear()
        return self._code

    async def died(self) -> int | None:
        """The exit code, once it has ended or refused; negative for a signal, None where nobody can know."""
        loop = asyncio.get_running_loop()
        self._hear()
        while not self._over:
            source = self._told if self._pidfd is None else self._pidfd
            heard = loop.create_future()
            self._waiting.add(heard)
            loop.add_reader(source, self._settle)
            try:
                await heard
            finally:
                self._waiting.discard(heard)
                if not self._waiting:
                    loop.remove_reader(source)
            self._hear()
        return self._code

    def last_words(self) -> str:
        """The end of a crash's trace."""
        return _end_of(self._crashes)

    def signal(self, number: int) -> None:
        """Send to the kernel and everything it started; nothing happens where all are gone."""
        self._hear()
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)

    def client(self) -> Conversation:
        from runner.kernel.forked.conversation import Conversation

        return Conversation(self.line, on_left=self.leave, on_refused=self.refuse)

    def leave(self) -> None:
        """It has run its exit handlers, and is over for us while the process takes its memory down."""
        self._code = 0
        self._end()

    def refuse(self, why: str) -> None:
        self.refused = self.refused or why
        self._end()

    def close(self) -> None:
        """Kill whatever is left of it. Calling twice is safe."""
        if self._told.fileno() < 0:
            return
        self.signal(signal.SIGKILL)
        self._over = True
        for one in (self.line, self._told):  # by which the server knows
            one.close()
        for descriptor in (self._crashes, self._pidfd):
            if descriptor is not None:
                os.close(descriptor)
        if self.owns_server:
            self.server.close()

    def _hear(self) -> None:
        """Take in what the server has told so far."""
        while not self._over:
            if self._pidfd is not None:
                if select.select([self._pidfd], [], [], 0)[0]:
                    self._end()
                return
            try:
                data = self._told.recv(TOLD_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._take(json.loads(data) if data else None)

    def _take(self, what: dict[str, Any] | None) -> None:
        if what is None and self._pid is None:
            self.refuse(f"the fork server has ended. {self.server.last_words()}".strip())
        elif what is None:
            try:
                self._pidfd = os.pidfd_open(self._pid or 0)
            except ProcessLookupError:
                self._end()
        elif "refused" in what:
            self.server.avoid.add(what["by"])
            self.server.spoiled = True
            remember_late(what["by"])
            self.refuse(what["refused"])
        elif "pid" in what:
            self._pid = what["pid"]
        else:
            self._code = what["code"]
            self._end()

    def _end(self) -> None:
        self._over = True
        self._settle()

    def _settle(self) -> None:
        for heard in self._waiting:
            if not heard.done():
                heard.set_result(None)


def _end_of(file: int) -> str:
    return os.pread(file, LAST_BYTES, max(0, os.fstat(file).st_size - LAST_BYTES)).decode(errors="replace")
