"""How the test process asks things of the server's process: method calls over a Unix socket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import Any


class ControlServer:
    """Answers calls of the methods named, each connection in a thread of its own."""

    def __init__(self, address: str, key: bytes, methods: Mapping[str, Callable[..., Any]]) -> None:
        self._listener = Listener(address, family="AF_UNIX", authkey=key, backlog=64)
        self._methods = methods
        threading.Thread(target=self._listen, daemon=True, name="control").start()

    def _listen(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except Exception:  # a client that went away in the middle of its greeting
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError), connection:
            name, arguments, named = connection.recv()
            try:
                reply: tuple[bool, Any] = (True, self._methods[name](*arguments, **named))
            except Exception as error:
                reply = (False, error)
            connection.send(reply)


class Control:
    """The test process's side."""

    def __init__(self, address: str, key: bytes) -> None:
        self._address = address
        self._key = key

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        with Client(self._address, family="AF_UNIX", authkey=self._key) as connection:
            connection.send((name, arguments, named))
            good, value = connection.recv()
        if not good:
            raise value
        return value
