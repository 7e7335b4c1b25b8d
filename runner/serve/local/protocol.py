"""What the process behind a local target and those who ask it say to each other, and what it keeps in its folder.

state.json   what is served, replaced when the switch is made
alive        held by flock while the process lives; its id is in it, until it ends in an orderly way
control      the socket on which it is asked, by lines of JSON
log          its own words and the access logs of all versions, 64 MB at most and as much of before in log.1
lock         held by flock by whoever changes the target; see runner.model.deployment
"""

from __future__ import annotations

import contextlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from runner.errors import Refused
from runner.model.served import Deployment
from runner.records import FORMAT, Record, decode
from runner.serve.local.version_process import Start

STATE, ALIVE, CONTROL, LOG = "state.json", "alive", "control", "log"


class Address(Record, frozen=True, kw_only=True):
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class State(Record, frozen=True, kw_only=True):
    """state.json: the last change, how it was served, and whether requests had to bring a token."""

    format: int = FORMAT
    change: Deployment
    start: Start | None  # without its token
    address: Address
    needs_token: bool | None = False  # None where that is not known


class Ask(Record, frozen=True, kw_only=True):
    """`start`: bring a version up; `switch`: to it; `stop`: everything; `look`. One who leaves before `switch` takes
    the version that was started along."""

    do: Literal["start", "switch", "stop", "look"]
    change: Deployment | None = None
    start: Start | None = None


class Answer(Record, frozen=True, kw_only=True):
    said: Literal["ready", "serving", "stopped", "failed", "look"]
    why: str = ""
    change: Deployment | None = None
    address: Address | None = None
    needs_token: bool = False
    process: int | None = None  # of the version that serves
    restarts: int = 0


class Client:
    """A connection on the control socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setblocking(False)
        self._unread = b""

    def asks(self) -> list[Ask] | None:
        """What it asks; None when it has left."""
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [decode(Ask, line, where=CONTROL) for line in lines] if data or lines else None

    def answer(self, answer: Answer) -> None:
        with contextlib.suppress(OSError):  # it has left
            self.connection.sendall(msgspec.json.encode(answer) + b"\n")


class Conversation:
    """The other side: asks, and waits for what is said. Leaving it before `switch` changes nothing."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        """Raises OSError where nobody listens, Refused where the process is another account's."""
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(timeout_s)
        try:
            with contextlib.chdir(folder):  # a socket's path is 107 bytes at most
                self.connection.connect(CONTROL)
        except PermissionError as error:  # it executes a model's code, so only its own account may say which
            self.connection.close()
            raise Refused(
                f"The process of this target belongs to the account with the number {(folder / CONTROL).stat().st_uid}. "
                "Only that account, and root, can change what it serves."
            ) from error
        except OSError:
            self.connection.close()
            raise
        self._unread = b""

    def ask(self, ask: Ask) -> Answer:
        """Raises Refused where it fails, or the other side is gone."""
        try:
            self.connection.sendall(msgspec.json.encode(ask) + b"\n")
            while b"\n" not in self._unread:
                data = self.connection.recv(65536)
                if not data:
                    raise ConnectionResetError
                self._unread += data
        except OSError as error:
            raise Refused(f"The target's process does not answer: {error!r}.") from error
        line, _, self._unread = self._unread.partition(b"\n")
        answer = decode(Answer, line, where=CONTROL)
        if answer.said == "failed":
            raise Refused(answer.why)
        return answer

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
