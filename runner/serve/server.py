"""Runs the application in one process per core: connections with limits, graceful ends, workers that are replaced.

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
from typing import Any

import uvicorn

from runner.errors import RunnerError, UsageError
from runner.serve.app import Application

DRAIN_S = 25  # for requests under way when asked to end; then they are cut
LEAVING_S = 1.0  # in which clients are told to close their connections, before none is taken any more
LINGER_S = 2.0  # for a client to read that its request was refused before it was read whole
KEEP_ALIVE_S = 15
ENDINGS = (signal.SIGTERM, signal.SIGINT)
HEADER_BYTES = 64 * 1024  # of a request: what is not its body
HEADERS = 256
AGAIN_S = 0.5  # before a worker that could not be started is tried again
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 38\r\n\r\n{"error": "Too many open connections"}'
)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UsageError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be served: {error.strerror}.") from error
    made.setblocking(False)
    return made


def serve(application: Application, listening: socket.socket, *, workers: int, on_ready: Callable[[], None]) -> None:
    """Answer until SIGTERM or SIGINT; requests under way are answered first. Raises RunnerError where workers die."""
    if workers == 1:
        _work(application, listening, 0, on_ready)
    else:
        Supervisor(application, listening, workers).run(on_ready)


class Supervisor:
    """Keeps `workers` processes at work, and ends them together."""

    def __init__(self, application: Application, listening: socket.socket, workers: int) -> None:
        self._application, self._listening, self._workers = application, listening, workers
        self._numbers: dict[int, int] = {}  # by process id
        self._absent: list[int] = []  # workers that could not be started again
        self._ending = False

    def run(self, on_ready: Callable[[], None]) -> None:
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


class Server(uvicorn.Server):
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
        """They accept now. Every connection here is answered once more, or closed by its client, or idle for too long."""
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
        made: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

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
        http=_protocol(application),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    Server(config, application, on_ready).run(sockets=[listening])


def _protocol(application: Application) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol (httptools' where that is installed) with limits on connections and slow clients."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    timeout_s, most = application.limits.timeout_s, application.limits.connections

    class Limited(base):  # type: ignore[misc]
        """Ends connections that wait for more of a request, or for a client to read, for too long, and those that send
        too much that is not a body: `unread` counts it, from a request's first byte or the last one of its body."""

        counted = False
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                application.metrics.refused()
                transport.write(BUSY)
                transport.close()
                return
            self.counted = True
            application.metrics.connected(1)
            self.since, self.unread = self.loop.time(), 0
            self.timer = self.loop.call_later(timeout_s, self.check)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.timer is not None:
                self.timer.cancel()
            if self.counted:
                application.metrics.connected(-1)

        def data_received(self, data: bytes) -> None:
            if not self.unread and self.waits():
                self.since = self.loop.time()  # of a request's first byte
            cycle = self.cycle
            before = cycle and (cycle.more_body, len(cycle.body))
            self.unread += len(data)
            super().data_received(data)
            if self.cycle is not cycle:  # the headers are whole
                if self.unread > HEADER_BYTES and not self.fits():
                    self.cut()
                self.unread = 0
            elif cycle is not None and (cycle.more_body, len(cycle.body)) != before:
                self.unread = 0
            if self.unread > HEADER_BYTES or len(self.headers or ()) > HEADERS:
                self.cut()

        def on_chunk_header(self) -> None:
            self.headers: list[
                tuple[bytes, bytes]
            ] = []  # of the request they are all there: what follows its body is not added to them

        def fits(self) -> bool:
            scope = self.scope
            lines = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            return bool(lines + len(scope["raw_path"]) + len(scope["query_string"]) <= HEADER_BYTES)

        def cut(self) -> None:
            if self.cycle is not None:
                self.cycle.disconnected = True  # or it would be scored for nobody
            self.transport.abort()

        def on_response_complete(self) -> None:
            cycle = self.cycle
            super().on_response_complete()
            self.since = self.loop.time()
            if cycle.more_body:
                self.loop.call_later(LINGER_S, self.stop_reading, cycle)

        def waits(self) -> bool:
            """For a request to begin, or for the rest of its headers."""
            return self.cycle is None or bool(self.cycle.response_complete)

        def stop_reading(self, cycle: object) -> None:
            if self.cycle is cycle:
                self.transport.abort()

        def check(self) -> None:
            """The headers may take `timeout_s`, the body as long, and as long the answer to be read."""
            waited = self.loop.time() - self.since
            idle = self.cycle is not None and not self.unread  # between two requests, for which uvicorn has a clock
            if (waited >= timeout_s and self.waits() and not idle) or waited >= 3 * timeout_s + KEEP_ALIVE_S:
                self.transport.abort()
            else:
                self.timer = self.loop.call_later(max(0.1, timeout_s / 4), self.check)

    return Limited
