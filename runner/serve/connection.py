"""A connection with limits: on their number, on headers, and on the time that a slow client may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from runner.serve.app import Application

KEEP_ALIVE_S = 15
LINGER_S = 2.0  # for a client to read that its request was refused before it was read whole
HEADER_BYTES = 64 * 1024  # of a request: what is not its body
HEADERS = 256
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 38\r\n\r\n{"error": "Too many open connections"}'
)


class LimitedProtocol(HttpToolsProtocol):
    """Ends connections that wait for more of a request, or for a client to read, for too long, and those that send
    too much that is not a body: `unread` counts it, from a request's first byte or the last one of its body."""

    counted = False
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.application: Application = self.config.app  # type: ignore[assignment]
        self.timeout_s = self.application.limits.timeout_s
        if len(self.connections) > self.application.limits.connections:
            self.application.metrics.refused()
            transport.write(BUSY)
            transport.close()
            return
        self.counted = True
        self.application.metrics.connected(1)
        self.since, self.unread = self.loop.time(), 0
        self.timer = self.loop.call_later(self.timeout_s, self.check)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timer is not None:
            self.timer.cancel()
        if self.counted:
            self.application.metrics.connected(-1)

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
        self.headers = []  # the request's are all there: what follows its body is not added to them

    def fits(self) -> bool:
        lines = sum(len(name) + len(value) + 4 for name, value in self.scope["headers"])
        return lines + len(self.scope["raw_path"]) + len(self.scope["query_string"]) <= HEADER_BYTES

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
        return self.cycle is None or self.cycle.response_complete

    def stop_reading(self, cycle: object) -> None:
        if self.cycle is cycle:
            self.transport.abort()

    def check(self) -> None:
        """The headers may take `timeout_s`, the body as long, and as long the answer to be read."""
        waited = self.loop.time() - self.since
        idle = self.cycle is not None and not self.unread  # between two requests, for which uvicorn has a clock
        if (waited >= self.timeout_s and self.waits() and not idle) or waited >= 3 * self.timeout_s + KEEP_ALIVE_S:
            self.transport.abort()
        else:
            self.timer = self.loop.call_later(max(0.1, self.timeout_s / 4), self.check)
