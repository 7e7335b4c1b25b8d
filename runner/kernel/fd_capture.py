"""What a kernel's process writes to its descriptors 1 and 2, by whatever means, as output of its cells.

`OutputCapture` reads both in a thread; the `Pump` of a forked kernel also flushes what cells print every fifth of a
second, and ends the process group once the runner has ended. Lives in the kernel's process.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ipykernel.iostream import IOPubThread

PIECE_BYTES = 1 << 16  # what a pipe holds, if nobody has made it larger
Write = Callable[[str], Any]


class CapturedDescriptor:
    """One descriptor, replaced by a pipe that is read here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read, write = os.pipe()
        os.set_blocking(self.read, False)
        os.dup2(write, number)
        os.close(write)
        self.decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def text(self) -> str:
        """The text that can be read now, at most PIECE_BYTES."""
        try:
            return self.decode(os.read(self.read, PIECE_BYTES))
        except BlockingIOError:
            return ""


class OutputCapture:
    """Captures both descriptors: what others write there, in order with what this process prints itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pipes = {number: CapturedDescriptor(number) for number in (1, 2)}
        self._writes: dict[int, Write] = {}
        self._ready = select.poll()
        for pipe in self._pipes.values():
            self._ready.register(pipe.read, select.POLLIN)

    def begin(self, stdout: Write, stderr: Write) -> None:
        self._writes = {1: stdout, 2: stderr}
        threading.Thread(target=self._run, name="Capture", daemon=True).start()

    def drain(self) -> None:
        """Take in what has been written so far."""
        with self._lock:
            if self._ready.poll(0):
                for number in self._pipes:
                    self._move(number)

    def _move(self, number: int) -> None:
        with self._lock:
            if text := self._pipes[number].text():
                self._writes[number](text)

    def _run(self) -> None:
        poll = select.poll()
        sources = {pipe.read: number for number, pipe in self._pipes.items()}
        for descriptor in sources:
            poll.register(descriptor, select.POLLIN)
        self._watch(poll)
        while True:
            for descriptor, events in poll.poll(self._wait_ms()):
                if descriptor not in sources:
                    self._heard(descriptor)
                elif events & select.POLLIN:
                    self._move(sources[descriptor])
                else:  # closed by everyone who could write to it
                    poll.unregister(descriptor)
            self._flush_due()

    def _watch(self, poll: select.poll) -> None:
        """Add descriptors for the thread to watch."""

    def _heard(self, descriptor: int) -> None: ...

    def _wait_ms(self) -> float | None:
        return None

    def _flush_due(self) -> None: ...


class Pump(OutputCapture, IOPubThread):
    """Replaces the publishing thread of ipykernel's streams: `schedule` calls now, `call_later` later. A server makes
    it, and each forked process connects it."""

    thread: Any
    io_loop: Any

    connected = False

    def __init__(self) -> None:
        # without the bases' own: IOPubThread opens zmq sockets, and until `connect` the descriptors are the server's
        self.thread = None
        self.io_loop = self
        self._lock = threading.RLock()

    def connect(self, line: socket.socket) -> None:
        """Capture the two descriptors."""
        OutputCapture.__init__(self)
        self._line = line
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._wake, False)
        self.connected = True

    def schedule(self, f: Callable[[], None]) -> None:
        f()

    def call_later(self, delay_s: float, f: Callable[[], None]) -> None:
        with self._lock:
            self._due.append((time.monotonic() + delay_s, f))
        os.write(self._woken, b".")

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, everything written so far is in its stream, and this thread publishes nothing."""
        with self._lock:
            self.drain()
            yield

    def forget(self) -> None:
        """In a process that a cell forked, which has neither the thread nor a holder of the lock."""
        self._lock = threading.RLock()
        self._due = []

    def _watch(self, poll: select.poll) -> None:
        poll.register(self._wake, select.POLLIN)
        poll.register(self._line, select.POLLRDHUP)

    def _heard(self, descriptor: int) -> None:
        if descriptor == self._line.fileno():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, PIECE_BYTES)

    def _wait_ms(self) -> float | None:
        soonest = min((when for when, _ in self._due), default=None)
        return None if soonest is None else max(0.0, soonest - time.monotonic()) * 1000

    def _flush_due(self) -> None:
        now = time.monotonic()
        with self._lock:
            due, self._due = [f for when, f in self._due if when <= now], [p for p in self._due if p[0] > now]
            for f in due:
                f()
