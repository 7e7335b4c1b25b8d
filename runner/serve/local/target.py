"""A target on this machine: a process that is left to itself, holds the address and has versions serve behind it."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from runner.content import atomic_write
from runner.errors import NewerStore, Refused, RunnerError, Tampered, UsageError, counted
from runner.failpoint import reach
from runner.loopback import is_loopback
from runner.model.compatibility import signature_in
from runner.model.deployment import Health, locked
from runner.model.files import check_bytes
from runner.model.served import Deployment
from runner.model.signature import Signature
from runner.model.versions import ModelVersion
from runner.records import LocalTargetSpec, decode, encode, read, utc_text
from runner.serve.capture_settings import CaptureSettings
from runner.serve.local.protocol import (
    ALIVE,
    LOG,
    STATE,
    Address,
    ControlConnection,
    ControlReply,
    ControlRequest,
    State,
)
from runner.serve.local.version_process import Start, VersionMessage

HOST, PORT = "127.0.0.1", 8080
ASK_S = 180.0  # for a version to be ready, or to end
PING_S = 2.0


class LocalTarget:
    """Implements `runner.model.deployment.Deployer`. `folder` is the target's own.

    `token` is what requests must bring from now on: "" is none, None what they had to bring before. `recorded` gives
    the last change by the history, for where the folder's own record is damaged. `capture` is relative to `folder`.
    """

    def __init__(
        self,
        name: str,
        spec: LocalTargetSpec,
        folder: Path,
        *,
        model_folder: Callable[[ModelVersion], Path],
        recorded: Callable[[], Deployment | None],
        capture: CaptureSettings | None = None,
        token: str | None = None,
    ) -> None:
        self.name, self.spec, self.folder, self.token, self.capture = name, spec, folder, token, capture
        self.model_folder, self.recorded = model_folder, recorded
        self.address = Address(host=spec.host or HOST, port=spec.port or PORT)

    def changing(self, who: str) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder, self.name, who)

    def finish(self) -> None:
        """There is nothing to do: what was not switched to ended with whoever brought it."""

    def last(self) -> Deployment | None:
        state = self._state()
        return state.change if state else None

    def deploy(self, change: Deployment, version: ModelVersion) -> Deployment:
        start = self._start_of(version)
        with self._connection() as connection:
            self._asked(connection, ControlRequest(do="start", change=change, start=start))
            reach("target ready")
            answer = self._asked(connection, ControlRequest(do="switch"))
        assert answer.change is not None
        return answer.change

    def restart(self, last: Deployment, version: ModelVersion) -> Deployment:
        """Serve again what was served when this machine or the target's process went down; no new deployment."""
        return self.deploy(last, version)

    def remove(self, change: Deployment) -> Deployment:
        if self._alive():
            with ControlConnection(self.folder, ASK_S) as connection:
                connection.ask(ControlRequest(do="stop", change=change))
            self._wait_for_its_end()
        else:
            state = self._state()
            assert state is not None
            change = msgspec.structs.replace(change, at=utc_text(), place=state.address.url)
            try:
                atomic_write(self.folder / STATE, encode(msgspec.structs.replace(state, change=change, start=None)))
            except OSError as error:
                raise Refused(
                    f"{self.folder / STATE} cannot be written: {error.strerror}. Nothing was changed."
                ) from error
        last = self.last()
        assert last is not None
        return last

    def health(self) -> Health:
        state = self._state()
        if not self._alive():
            return Health(status="down", detail="its process is gone: runner deployments --restart")
        try:
            answer = self._look()
        except RunnerError as error:
            return Health(status="unhealthy", detail=str(error))
        address = (answer.address or (state.address if state else self.address)).url
        status, problem = _ping(answer.address or self.address)
        if answer.restarts:
            times = "once" if answer.restarts == 1 else f"{answer.restarts} times"
            problem = f"{problem}; started again {times}".lstrip("; ")
        detail = problem or f"{address} answers {status} to /ping"
        return Health(status="serving" if status == 200 else "unhealthy", detail=detail, process=answer.process)

    def signature(self, version: ModelVersion) -> Signature:
        return signature_in(self.model_folder(version), version)

    def plan(self, version: ModelVersion) -> Sequence[str]:
        self._start_of(version)
        label, last = version.label, self.last()
        served = last.label if last is not None and last.kind != "removed" else None
        workers = self._workers()
        return [
            f"start a process at {self.address.url}" if not self._alive() else f"use the process at {self.address.url}",
            f"load {label} ({version.sha256[:12]}) in {counted(workers, 'worker')}"
            + (f", beside {served}" if served else ""),
            "send it its sample record and compare the answer",
            f"let it accept requests{f', and {served} end once it has answered its own' if served else ''}",
        ]

    def _start_of(self, version: ModelVersion) -> Start:
        """Raises Tampered or Refused for a model that may not be loaded, UsageError for an address without a token."""
        folder = self.model_folder(version)
        check_bytes(version, folder)
        limits = {
            key: value
            for key in ("max_body_mb", "timeout_s", "max_connections")
            if (value := getattr(self.spec, key)) is not None
        }
        return Start(
            version=version,
            folder=os.path.relpath(os.path.realpath(folder), os.path.realpath(self.folder)),
            workers=self._workers(),
            unknown=self.spec.unknown,
            token=self._token(),
            capture=self.capture,
            **limits,
        )

    def _token(self) -> str | None:
        """What requests must bring: "" is none, None what the target's process has them bring now.

        Raises UsageError where they would need none though they did, or though other machines can ask.
        """
        if self.token:
            return self.token
        if self.token is None:
            if self._alive() and self._look().needs_token:
                return None
            state = self._state()
            if state is not None and state.needs_token is not False:
                had = "had to" if state.needs_token else f"may have had to ({STATE} is damaged)"
                raise UsageError(
                    f"Requests to {self.name} {had} bring a token, which is written nowhere. Set RUNNER_TOKEN to it "
                    "and say the same again, or add --no-token to serve without one."
                )
        if not is_loopback(self.address.host):
            raise UsageError(
                f"{self.address.host} can be reached from other machines, so a token is needed: "
                "RUNNER_TOKEN=… runner deploy …; clients send `Authorization: Bearer …`."
            )
        return ""

    def _workers(self) -> int:
        return self.spec.workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else "1")

    def _connection(self) -> ControlConnection:
        """With the target's process, which is started where there is none."""
        if self._alive():
            with contextlib.ExitStack() as leaving:
                connection = leaving.enter_context(ControlConnection(self.folder, ASK_S))
                answer = connection.ask(ControlRequest(do="look"))
                if answer.address == self.address:
                    leaving.pop_all()
                    return connection
                if answer.process is not None:
                    url = answer.address.url if answer.address else "?"
                    raise Refused(
                        f"{self.name} serves at {url}, and pipeline.toml says {self.address.url}. "
                        f"First: runner undeploy {self.name}"
                    )
                connection.ask(ControlRequest(do="stop"))
                self._wait_for_its_end()
        self._launch()
        return ControlConnection(self.folder, ASK_S)

    def _launch(self) -> None:
        try:
            opened = open(self.folder / LOG, "ab")  # noqa: SIM115
        except OSError as error:
            raise Refused(f"{self.folder / LOG} cannot be written: {error.strerror}. Nothing was changed.") from error
        with opened as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "runner.serve.local.supervisor", str(self.folder.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # not to end with the terminal
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(self.address) + b"\n")
                process.stdin.close()
            line = process.stdout.readline()
        message = (
            decode(VersionMessage, line, where=self.folder)
            if line
            else VersionMessage(status="failed", why="it ended at once")
        )
        if message.status != "ready":
            process.wait()
            raise Refused(f"The process of {self.name} cannot start: {message.why} The log: {self.folder / LOG}")
        process.returncode = 0  # nobody waits for it: it lives on

    def _wait_for_its_end(self) -> None:
        while self._alive():
            time.sleep(0.02)

    def _asked(self, connection: ControlConnection, ask: ControlRequest) -> ControlReply:
        try:
            return connection.ask(ask)
        except Refused as error:
            last, goes_on = self.last(), ""
            if last is not None and last.kind != "removed":
                health = self.health()
                goes_on = "goes on" if health.status == "serving" else f"is {health.status}, {health.detail}"
                goes_on = f" {last.label} {goes_on}."
            log = self.folder / LOG
            raise Refused(f"{self.name}: {error} Nothing was switched.{goes_on} The log: {log}") from error

    def _state(self) -> State | None:
        """The folder's own record. Where it is damaged: what its process knows, or what the history does."""
        file = self.folder / STATE
        try:
            return read(State, file) if file.exists() else None
        except NewerStore:
            raise
        except Tampered:
            answer = self._look() if self._alive() else None
            change = answer.change if answer is not None else self.recorded()
            if change is None:
                return None
            address = (answer.address if answer is not None else None) or self.address
            needs_token = answer.needs_token if answer is not None else None
            return State(change=change, start=None, address=address, needs_token=needs_token)

    def _look(self) -> ControlReply:
        """What the target's process knows. Raises Refused where it does not answer."""
        try:
            with ControlConnection(self.folder, PING_S) as connection:
                return connection.ask(ControlRequest(do="look"))
        except OSError as error:
            raise Refused(f"The process of {self.name} does not answer: {error}.") from error

    def _alive(self) -> bool:
        """Whether the target's process lives."""
        try:
            with open(self.folder / ALIVE) as alive:
                fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def _ping(address: Address) -> tuple[int, str]:
    """Status of /ping, 0 where there is none, and why."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    connection = http.client.HTTPConnection(host, address.port, timeout=PING_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/ping", headers={"connection": "close"})
            return connection.getresponse().status, ""
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{address.url} does not answer: {error!r}"
