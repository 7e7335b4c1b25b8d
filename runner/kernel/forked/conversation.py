"""What nbclient knows as a kernel's client, spoken with a forked kernel over its line instead of zmq's sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from runner.kernel.forked.framing import CHUNK_BYTES, Frames, Kind, frame


class Channel:
    """Messages of one kind in the order of their coming."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:
        """The next one; raises queue.Empty after `timeout` seconds without."""
        if timeout is None:
            return await self.messages.get()
        try:
            return await asyncio.wait_for(self.messages.get(), timeout)
        except TimeoutError:
            from queue import Empty

            raise Empty from None


class Conversation:
    """The part of jupyter_client's AsyncKernelClient that executing a notebook needs. Lives in one event loop."""

    allow_stdin = False

    def __init__(self, line: socket.socket, *, on_left: Callable[[], None], on_refused: Callable[[str], None]) -> None:
        """`on_left` is called once the kernel has run its exit handlers, `on_refused` with why it will not do."""
        self._line, self._on_left, self._on_refused = line, on_left, on_refused
        self._frames = Frames()
        self._session = uuid.uuid4().hex
        self._asked = 0
        self.shell_channel, self.iopub_channel = Channel(), Channel()

    def start_channels(self, **_: bool) -> None:
        asyncio.get_running_loop().add_reader(self._line, self._read)

    def stop_channels(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line)

    def kernel_info(self) -> str:
        return self._ask("kernel_info_request", {})

    def execute(self, code: str, *, store_history: bool = True, stop_on_error: bool = True) -> str:
        """Send a cell; the id of the request, which its outputs name."""
        content = {
            "code": code,
            "silent": False,
            "store_history": store_history,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": stop_on_error,
        }
        return self._ask("execute_request", content)

    def shutdown(self) -> str:
        return self._ask("shutdown_request", {"restart": False})

    def _ask(self, kind: str, content: dict[str, Any]) -> str:
        self._asked += 1
        header = {
            "msg_id": f"{self._session}_{self._asked}",
            "msg_type": kind,
            "username": "runner",
            "session": self._session,
            "date": datetime.now(UTC).isoformat(),
            "version": "5.4",
        }
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        with contextlib.suppress(OSError):  # it has ended, which is noticed elsewhere
            self._line.sendall(frame(Kind.REQUEST, json.dumps(request).encode()))
        return str(header["msg_id"])

    def _read(self) -> None:
        try:
            data = self._line.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.stop_channels()
        for kind, payload in self._frames.feed(data):
            self._take(kind, payload)

    def _take(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.LEFT:
            self._on_left()
            return
        said = json.loads(payload.decode("utf-8", "replace"))  # as jupyter_client does
        if kind is Kind.REFUSED:
            self._on_refused(said)
            return
        message = {
            "header": {"msg_type": said["type"], "date": datetime.now(UTC)},
            "msg_type": said["type"],
            "parent_header": {"msg_id": said["parent"]},
            "content": said["content"],
            "metadata": {},
            "buffers": [],
        }
        (self.shell_channel if kind is Kind.REPLY else self.iopub_channel).messages.put_nowait(message)
