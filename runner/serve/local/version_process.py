"""One version at work behind a target's socket: loaded, tried on its sample record over HTTP, and only then let on.

    python -m runner.serve.local.version_process      started by runner.serve.local.supervisor

They exchange lines of JSON. stdin: Start, then `go`. stdout: the message "ready" or "failed", then "serving", "left"
of each worker that accepts no more. All else that is printed is the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runner.errors import Refused, RunnerError
from runner.model.sample import check_answer, sample_body
from runner.model.versions import ModelVersion
from runner.records import Record, decode
from runner.serve.capture_settings import CaptureSettings

if TYPE_CHECKING:
    from runner.serve.app import Application

GO = b"go\n"
TRIAL_S = 30.0


class Start(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What to serve, and how."""

    version: ModelVersion
    folder: str  # relative to the target's, so that a project can be moved while it serves
    workers: int
    unknown: str = "error"
    max_body_mb: float = 6.0
    timeout_s: float = 30.0
    max_connections: int = 512
    token: str | None = None  # that requests must bring; "" is none, None that of what serves
    capture: CaptureSettings | None = None  # paths relative to the target's folder
    listening: int = -1  # the file descriptor of the socket, which is inherited


class VersionMessage(Record, frozen=True, kw_only=True):
    """What one process tells another."""

    status: str = msgspec.field(name="said")
    why: str = ""


class VersionProcess:
    """A child process that serves, or is to serve, one version."""

    def __init__(self, start: Start, listening: socket.socket) -> None:
        self.start = start
        self.began = time.monotonic()
        self.message = VersionMessage(status="starting")
        self.left = 0  # workers that accept no more
        self._unread = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner.serve.local.version_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # a process per core
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._tell(msgspec.json.encode(msgspec.structs.replace(start, listening=listening.fileno())) + b"\n")

    @property
    def channel(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def hear(self) -> bool:
        """Take in what it says; False when it will say no more."""
        try:
            data = os.read(self.channel, 65536)
        except BlockingIOError:
            return True
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self.message = decode(VersionMessage, line, where="the message of a version")
            self.left += self.message.status == "left"
        return bool(data)

    @property
    def accepts(self) -> bool:
        return self.left < self.start.workers and self.process.poll() is None

    def go(self) -> None:
        self._tell(GO)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died; `process.poll` says so
            self.process.stdin.write(line)
            self.process.stdin.flush()


def main() -> None:
    _end_with(os.getppid())
    channel = os.dup(1)  # what a model's own code prints is not for the supervisor
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # workers end without emptying a buffer

    def report(status: str, why: str = "") -> None:
        os.write(channel, msgspec.json.encode(VersionMessage(status=status, why=why)) + b"\n")

    start = decode(Start, sys.stdin.buffer.readline(), where="the request to serve")
    try:
        application, listening = _ready(start)
    except RunnerError as error:
        report("failed", str(error))
        sys.exit(error.exit_code)
    report("ready")
    if sys.stdin.buffer.readline() != GO:
        return
    from runner.serve.server import WorkerPool

    application.left = lambda: report("left")
    WorkerPool(application, listening, start.workers).run(lambda: report("serving"))


def _ready(start: Start) -> tuple[Application, socket.socket]:
    """The application that answered its sample record as recorded. Raises RunnerError."""
    from runner.serve.app import Application, RequestLimits
    from runner.serve.approved import load
    from runner.serve.metrics import Metrics

    scorer = load(start.version, Path(start.folder), unknown="missing" if start.unknown == "missing" else "error")
    limits = RequestLimits(
        body_bytes=int(start.max_body_mb * 2**20), timeout_s=start.timeout_s, connections=start.max_connections
    )
    trial = Application(scorer, start.version, limits=limits, metrics=Metrics(1), token=start.token or None)
    with _trial(trial) as port:
        check_answer(scorer.signature, _ask(port, sample_body(scorer.signature), start.token), scorer.model)
    metrics, capture = Metrics(start.workers), None
    if start.capture is not None:
        from runner.serve.capture import RequestCapture

        capture = RequestCapture(scorer, start.capture, metrics=metrics, writers=start.workers)
    application = Application(
        scorer, start.version, limits=limits, metrics=metrics, token=start.token or None, capture=capture
    )
    return application, socket.socket(fileno=start.listening)


@contextlib.contextmanager
def _trial(application: Application) -> Iterator[int]:
    """A worker of its own on a port of its own, as the workers to come will be."""
    from runner.serve.listening import bind
    from runner.serve.server import serve

    private = bind("127.0.0.1", 0)
    pid = os.fork()
    if not pid:
        _end_with(os.getppid())
        try:
            serve(application, private, workers=1, on_ready=lambda: None)
        finally:
            os._exit(1)
    port = private.getsockname()[1]
    private.close()
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _ask(port: int, body: bytes, token: str | None) -> bytes:
    """The answer to the request. Raises Refused where there is none."""
    headers = {"content-type": "application/json", "accept": "text/csv"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TRIAL_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/ping")
            pinged = connection.getresponse()
            pinged.read()
            connection.request("POST", "/invocations", body, headers)
            reply = connection.getresponse()
            answer = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(f"It does not answer: {error!r}.") from error
    if (pinged.status, reply.status) != (200, 200):
        raise Refused(f"It answers {pinged.status} to /ping and {reply.status} to its sample record: {answer[:200]!r}.")
    return answer


def _end_with(parent: int) -> None:
    """Not to outlive the parent: nobody would know of us. Linux only; elsewhere one that outlives keeps the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    main()
