"""Runs the application in one process per core: graceful ends, and workers that are replaced.

The model is loaded once, before the workers are forked, so that its memory is theirs together.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn

from runner.errors import RunnerError, UsageError
from runner.serve.app import Application
from runner.serve.connection import KEEP_ALIVE_S, LimitedProtocol

DRAIN_S = 25  # for requests under way when asked to end; then they are cut
LEAVING_S = 1.0  # in which clients are told to close their connections, before none is taken any more
ENDINGS = (signal.SIGTERM, signal.SIGINT)
AGAIN_S = 0.5  # before a worker that could not be started is tried again


def serve(application: Application, listening: socket.socket, *, workers: int, on_ready: Callable[[], None]) -> None:
    """Answer until SIGTERM or SIGINT; requests under way are answered first. Raises RunnerError where workers die."""
    if workers == 1:
        _work(application, listening, 0, on_ready)
    else:
        WorkerPool(application, listening, workers).run(on_ready)


class WorkerPool:
    """Keeps `workers` processes at work, and ends them together."""

    def __init__(self, application: Application, listening: socket.socket, workers: int) -> None:
        self._application, self._listening, self._workers = application, listening, workers
        self._numbers: dict[int, int] = {}  # by process id
        self._absent: list[int] = []  # workers that could not be started again
        self._ending = False

    def run(self, on_ready: Callable[[], None]) -> None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a model's code prints is the log
        for ending in ENDINGS:
            signal.signal(ending, self._end)
        signal.signal(signal.SIGALRM, self._kill)
        began, deaths = time.monotonic(), 0
        for number in range(self._workers):
            self._start(number)
        if not self._numbers:
            raise UsageError("No worker can be started: this machine has no process or memory to spare.")
        on_ready()
        while self._numbers or (self._absent and not self._ending):
            pid, status = self._wait()
            worker = self._numbers.pop(pid, None)
            if worker is None or self._ending:
                continue
            deaths += 1
            if deaths > 5 * (1 + (time.monotonic() - began) / 60):
                self._end()
                raise RunnerError(f"Workers die again and again, the last with status {status}; see the log above.")
            self._start(worker)

    def _wait(self) -> tuple[int, int]:
        """The process that has ended, and how; 0 where none has, and those that are absent were tried again."""
        if not self._absent:
            return os.wait()
        time.sleep(AGAIN_S)
        absent, self._absent = self._absent, []
        for number in absent:
            self._start(number)
        return os.waitpid(-1, os.WNOHANG) if self._numbers else (0, 0)

    def _start(self, number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # till the worker no longer has the supervisor's handlers
        try:
            pid = -1 if self._ending else os.fork()
        except OSError as error:  # no process or memory to spare just now
            pid = -1
            self._absent.append(number)
            self._application.log.note(f"worker {number} cannot be started: {error.strerror}; it is tried again")
        if pid:
            self._numbers |= {pid: number} if pid > 0 else {}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
            return
        code = 1
        try:
            for ending in ENDINGS:
                signal.signal(ending, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: not to outlive the supervisor
            _work(self._application, self._listening, number, lambda: None)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _end(self, *_: object) -> None:
        self._ending = True
        self._listening.close()  # or connections would queue here that nobody takes
        signal.alarm(DRAIN_S + 4)
        self._signal(signal.SIGTERM)

    def _kill(self, *_: object) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class WorkerServer(uvicorn.Server):
    """uvicorn's, that leaves its clients a moment to go."""

    def __init__(self, config: uvicorn.Config, application: Application, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._application, self._on_ready = application, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell clients to go, take the last of those that came, and answer all."""
        self._application.draining = True
        if self._application.left is not None:
            await self._leave_to_others(self._application.left)
        else:
            await asyncio.sleep(LEAVING_S)
            await self._take_the_last(sockets or [])
        await super().shutdown(sockets)
        self._application.log.flush()

    async def _leave_to_others(self, left: Callable[[], None]) -> None:
        """They accept now. A connection here is answered once more, closed by its client, or idle for too long."""
        for server in self.servers:
            server.close()
        left()
        await asyncio.sleep(LEAVING_S)
        until = time.monotonic() + KEEP_ALIVE_S
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.05)

    async def _take_the_last(self, sockets: list[socket.socket]) -> None:
        """Closing a listening socket resets the connections that wait in it: leave none there."""
        spare = [listening.dup() for listening in sockets]
        for listening in spare:
            _let_nobody_in(listening)
        for server in self.servers:
            server.close()
        late = []
        for listening in spare:
            listening.setblocking(False)
            with contextlib.suppress(OSError):  # none is left
                while True:
                    late.append(listening.accept()[0])
            listening.close()
        for connection in late:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LEAVING_S / 4)  # for their requests to be read

    def _protocol(self) -> asyncio.Protocol:
        return LimitedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal has been obeyed then and is not raised again."""
        for ending in ENDINGS:
            signal.signal(ending, self.handle_exit)
        yield


def _let_nobody_in(listening: socket.socket) -> None:
    """Linux drops what would open one more connection, and a client that tries again finds the socket closed: one that
    came between the last `accept` and `close` would be reset with its request sent. Elsewhere nothing happens."""
    drop = ctypes.create_string_buffer(struct.pack("@HBBI", 0x06, 0, 0, 0))  # BPF_RET: keep 0 bytes of each packet
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(drop)))  # SO_ATTACH_FILTER


def _work(application: Application, listening: socket.socket, number: int, on_ready: Callable[[], None]) -> None:
    sys.setswitchinterval(0.001)  # a large request is scored in a thread of its own, and must not hold up small ones
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the access log says it all, without customers' data
    gc.collect()
    gc.freeze()  # what is there now stays; looking through it again and again would take a third of a large request
    application.metrics.of_worker(number)
    application.log.worker = number
    config = uvicorn.Config(
        application,
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    if application.capture is not None:
        application.capture.start()
    try:
        WorkerServer(config, application, on_ready).run(sockets=[listening])
    finally:
        if application.capture is not None:
            application.capture.close()
