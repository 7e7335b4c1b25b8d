"""What a kernel's process writes to its descriptors 1 and 2, by whatever means, as output of its cells.

`Capture` reads both with a thread of its own; a forked kernel's, the `Pump`, also flushes what cells print every fifth
of a second, and ends the process group once the runner is gone. Lives in the kernel's process.
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


class _Pipe:
    """One descriptor, replaced by a pipe that is read here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read, write = os.pipe()
        os.set_blocking(self.read, False)
        os.dup2(write, number)
        os.close(write)
        self.decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def text(self) -> str:
        """What there is to read now, at most PIECE_BYTES of it."""
        try:
            return self.decode(os.read(self.read, PIECE_BYTES))
        except BlockingIOError:
            return ""


class Capture:
    """The two descriptors from here on: what others write there, in the order of what this process prints itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pipes = {number: _Pipe(number) for number in (1, 2)}
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
        """Have the thread listen to more."""

    def _heard(self, descriptor: int) -> None: ...

    def _wait_ms(self) -> float | None:
        return None

    def _flush_due(self) -> None: ...


class Pump(Capture, IOPubThread):
    """Stands where ipykernel's streams expect their publishing thread: `schedule` runs at once, `call_later` later.

    A server makes it, and the process it forks connects it.
    """

    thread: Any
    io_loop: Any

    connected = False

    def __init__(self) -> None:
        # neither base's: IOPubThread opens zmq sockets, and the descriptors are the server's until `connect`
        self.thread = None
        self.io_loop = self
        self._lock = threading.RLock()

    def connect(self, line: socket.socket) -> None:
        """Capture the two descriptors from here on."""
        Capture.__init__(self)
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
        """Inside, everything written so far is in its stream, and nothing is published by this thread."""
        with self._lock:
            self.drain()
            yield

    def forget(self) -> None:
        """In a process that a cell forked: there is no thread here, and nobody holds the lock."""
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
