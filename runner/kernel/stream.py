"""What a kernel's cells print and display, limited per cell, so that endless output costs no memory.

Lives in the kernel process, because a limit at the receiving end comes after the gigabyte was sent.
"""

# mypy: disallow-untyped-calls=False
# (ipykernel is not annotated)

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from ipykernel.iostream import OutStream
from jupyter_client.jsonutil import json_clean, json_default
from jupyter_client.session import Session, json_packer

from runner.kernel.display_limits import DisplayLimits
from runner.kernel.fd_capture import OutputCapture

LIMIT_CHARACTERS = 1_000_000  # of one stream in one cell
NOTE = f"\n[capped: this cell wrote more than {LIMIT_CHARACTERS:,} characters here; the rest was not kept]\n"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SENT_S = 0.001  # for zmq's own thread to send what it was given
OFTEN_S = 0.1  # code that flushes more often does not wait each time

T = TypeVar("T", bound=type)


def named_as(known: type) -> Callable[[T], T]:
    """Give a class the name of Jupyter's own, which libraries look for and `%config` lists."""

    def name(ours: T) -> T:
        for field in ("__name__", "__qualname__", "__module__"):
            setattr(ours, field, getattr(known, field))
        return ours

    return name


class Keeper(Protocol):
    """Receives all output while a library is loaded ahead of the cell that imports it."""

    def printed(self, name: str, text: str) -> None: ...

    def sent(self, kind: str, content: dict[str, Any], metadata: Any, buffers: Any) -> None: ...


@named_as(OutStream)
class CappedStream(OutStream):
    """A cell's stdout or stderr: drops text after LIMIT_CHARACTERS in one cell. Its descriptor is the captured one, so
    that what others write there is captured too, in order with what is printed."""

    capture: ClassVar[OutputCapture | None] = None
    keeper: ClassVar[Keeper | None] = None
    _cell: Any = None
    _written = 0
    _waited = 0.0

    def __init__(self, session: Any, thread: Any, name: str, **kwargs: Any) -> None:
        super().__init__(session, thread, name, **{**kwargs, "watchfd": False})

    def write(self, string: str) -> int:
        if self.keeper is not None and isinstance(string, str):
            self.keeper.printed(self.name, string)
            return len(string)
        if self.capture is not None and self._is_master_process():
            self.capture.drain()
        return self.take(string)

    def take(self, string: str) -> int:
        """Append it to the buffer."""
        cell = self.parent_header.get("msg_id")
        if cell != self._cell:
            self._cell, self._written = cell, 0
        room = LIMIT_CHARACTERS - self._written
        if self.closed or not isinstance(string, str) or len(string) <= room:
            super().write(string)
        elif room >= 0:
            super().write(string[:room] + NOTE)
            room = -1
        self._written = LIMIT_CHARACTERS + 1 if room < 0 else self._written + len(string)
        return len(string)

    def captured(self, string: str) -> None:
        """Text that came by the descriptor; dropped if a cell has closed the stream."""
        if self.keeper is not None:
            self.keeper.printed(self.name, string)
        elif not self.closed:
            self.take(string)

    def fileno(self) -> int:
        return 1 if self.name == "stdout" else 2

    def flush(self) -> None:
        """Also what others have written. Then the standard kernel's thread has handed all of it to zmq, so that it is
        not lost if the process dies next."""
        if self.capture is not None and self._is_master_process():
            self.capture.drain()
        waits = bool(self._buffers) and not self.closed and threading.current_thread() is not self.pub_thread.thread
        super().flush()
        if waits and self._is_master_process():
            self._wait_until_sent()

    def _wait_until_sent(self) -> None:
        handed = threading.Event()
        self.pub_thread.schedule(handed.set)  # behind the message, which ipykernel's `flush` may still find waiting
        handed.wait(self.flush_timeout)
        if time.monotonic() > self._waited + OFTEN_S:
            time.sleep(SENT_S)
            self._waited = time.monotonic()


class LimitedSession(Session):
    """A kernel's session: limits what a cell displays before it is sent; hands messages to `keeper` if there is one."""

    keeper: Keeper | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pack = pack
        self.display_limits = DisplayLimits()
        self.owner = os.getpid()

    @property
    def is_ours(self) -> bool:
        """False in a process that a cell forked."""
        return os.getpid() == self.owner

    def send(  # type: ignore[override]  # the others are `track`, and those that `msg` takes
        self, stream: Any, msg_or_type: Any, content: Any = None, parent: Any = None, ident: Any = None,
        buffers: Any = None, **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        track = others.pop("track", False)
        message = msg_or_type if isinstance(msg_or_type, dict) else self.msg(msg_or_type, content, parent, **others)
        kind = message["header"]["msg_type"]
        if self.keeper is not None:
            self.keeper.sent(kind, message["content"], message["metadata"], buffers)
        elif self.display_limits.allows(kind, message["content"]):
            self.deliver(stream, message, ident=ident, buffers=buffers, track=track)
        return message

    def deliver(self, stream: Any, message: dict[str, Any], **options: Any) -> None:
        """Send it. What a process that a cell forked has printed goes to the captured descriptor: by a socket of its
        own, as ipykernel sends it, it would stand anywhere in what the cell prints."""
        if self.is_ours or CappedStream.capture is None or message["header"]["msg_type"] != "stream":
            super().send(stream, message, **options)
        else:
            write_captured(message["content"])


def write_captured(content: dict[str, Any]) -> None:
    """Write a stream's text to its descriptor."""
    os.write(1 if content["name"] == "stdout" else 2, content["text"].encode(errors="replace"))


def pack(message: Any) -> bytes:
    """The message as JSON, with U+FFFD for half a character, which no file can hold."""
    try:
        return json_packer(message)
    except UnicodeEncodeError:
        text = json.dumps(json_clean(message), default=json_default, ensure_ascii=False, allow_nan=False)
        return LONE_SURROGATE.sub("\ufffd", text).encode()
