"""A target on this machine: a process that is left to itself, holds the address and has versions serve behind it."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from runner.content import atomic_write
from runner.errors import Refused, RunnerError, UsageError
from runner.failpoint import reach
from runner.model.deployment import Deployment, Health, check_bytes, locked
from runner.model.versions import ModelVersion
from runner.records import Target, decode, encode, read
from runner.serve.control import (
    ALIVE,
    LOG,
    STATE,
    Address,
    Answer,
    Ask,
    Conversation,
    State,
    now,
)
from runner.serve.generation import Start, Word

HOST, PORT = "127.0.0.1", 8080
ASK_S = 180.0  # for a version to be ready, or to end
PING_S = 2.0


class LocalTarget:
    """Implements `runner.model.deployment.Deployer`. `folder` is the target's own; `token` what requests must bring."""

    def __init__(
        self,
        name: str,
        spec: Target,
        folder: Path,
        *,
        model_folder: Callable[[ModelVersion], Path],
        token: str | None = None,
    ) -> None:
        self.name, self.spec, self.folder, self.token = name, spec, folder, token
        self.model_folder = model_folder
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
        with self._conversation() as conversation:
            self._asked(conversation, Ask(do="start", change=change, start=start))
            reach("target ready")
            answer = self._asked(conversation, Ask(do="switch"))
        assert answer.change is not None
        return answer.change

    def restart(self) -> Deployment:
        """Serve again what was served when this machine or the target's process went down; no new deployment."""
        state = self._state()
        if state is None or state.start is None:
            raise Refused(f"Nothing was served at {self.name}.")
        return self.deploy(state.change, state.start.version)

    def remove(self, change: Deployment) -> Deployment:
        if self._alive():
            with Conversation(self.folder, ASK_S) as conversation:
                conversation.ask(Ask(do="stop", change=change))
            self._wait_for_its_end()
        else:
            state = self._state()
            assert state is not None
            change = msgspec.structs.replace(change, at=now(), place=state.address.url)
            atomic_write(self.folder / STATE, encode(State(change=change, start=None, address=state.address)))
        last = self.last()
        assert last is not None
        return last

    def health(self) -> Health:
        state = self._state()
        if not self._alive():
            return Health(status="down", said="its process is gone: runner deployments --restart")
        try:
            with Conversation(self.folder, PING_S) as conversation:
                answer = conversation.ask(Ask(do="look"))
        except (OSError, RunnerError) as error:
            return Health(status="unhealthy", said=f"its process does not answer: {error}")
        address = (answer.address or (state.address if state else self.address)).url
        status, said = _ping(answer.address or self.address)
        if answer.restarts:
            said = f"{said}; started again {answer.restarts} times".lstrip("; ")
        return Health(
            status="serving" if status == 200 else "unhealthy", said=said or f"{address} answers {status} to /ping",
            process=answer.process,
        )  # fmt: skip

    def plan(self, version: ModelVersion) -> Sequence[str]:
        self._start_of(version)
        label, last = f"{version.name}/{version.version}", self.last()
        served = last.label if last is not None and last.kind != "removed" else None
        workers = self._workers()
        return [
            f"start a process at {self.address.url}" if not self._alive() else f"use the process at {self.address.url}",
            f"load {label} ({version.sha256[:12]}) in {workers} worker{'s' * (workers > 1)}"
            + (f", beside {served}" if served else ""),
            "send it its sample record and compare the answer",
            f"let it accept requests{f', and {served} end once it has answered its own' if served else ''}",
        ]

    def _start_of(self, version: ModelVersion) -> Start:
        """Raises Tampered or Refused for a model that may not be loaded, UsageError for an address without a token."""
        folder = self.model_folder(version)
        check_bytes(version, folder)
        if not self.token and not _is_loopback(self.address.host):
            raise UsageError(
                f"{self.address.host} can be reached from other machines, so a token is needed: "
                "RUNNER_TOKEN=… runner deploy …; clients send `Authorization: Bearer …`."
            )
        given = {
            key: value
            for key in ("max_body_mb", "timeout_s", "max_connections")
            if (value := getattr(self.spec, key)) is not None
        }
        return Start(
            version=version,
            folder=str(folder.absolute()),
            workers=self._workers(),
            unknown=self.spec.unknown,
            token=self.token or None,
            **given,
        )

    def _workers(self) -> int:
        return self.spec.workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else "1")

    def _conversation(self) -> Conversation:
        """With the target's process, which is started where there is none."""
        if self._alive():
            with contextlib.ExitStack() as leaving:
                conversation = leaving.enter_context(Conversation(self.folder, ASK_S))
                there = conversation.ask(Ask(do="look"))
                if there.address == self.address:
                    leaving.pop_all()
                    return conversation
                if there.process is not None:
                    was = there.address.url if there.address else "?"
                    raise Refused(
                        f"{self.name} serves at {was}, and pipeline.toml says {self.address.url}. "
                        f"First: runner undeploy {self.name}"
                    )
                conversation.ask(Ask(do="stop"))
                self._wait_for_its_end()
        self._launch()
        return Conversation(self.folder, ASK_S)

    def _launch(self) -> None:
        with open(self.folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "runner.serve.supervisor", str(self.folder.absolute())],
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
        word = decode(Word, line, where=self.folder) if line else Word(said="failed", why="it ended at once")
        if word.said != "ready":
            process.wait()
            raise Refused(f"The process of {self.name} cannot start: {word.why} The log: {self.folder / LOG}")
        process.returncode = 0  # nobody waits for it: it lives on

    def _wait_for_its_end(self) -> None:
        while self._alive():
            time.sleep(0.02)

    def _asked(self, conversation: Conversation, ask: Ask) -> Answer:
        try:
            return conversation.ask(ask)
        except Refused as error:
            last, goes_on = self.last(), ""
            if last is not None and last.kind != "removed":
                health = self.health()
                goes_on = "goes on" if health.status == "serving" else f"is {health.status}, {health.said}"
                goes_on = f" {last.label} {goes_on}."
            log = self.folder / LOG
            raise Refused(f"{self.name}: {error} Nothing was switched.{goes_on} The log: {log}") from error

    def _state(self) -> State | None:
        file = self.folder / STATE
        return read(State, file) if file.exists() else None

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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
