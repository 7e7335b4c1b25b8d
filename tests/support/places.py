"""A project with two targets and three versions, and callers of what they serve."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import runner.errors
import runner.model
from runner.content import artifact
from runner.model.events import verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event, NewVersion
from support.commands import Done
from support.models import records, trained
from support.projects import Project

RUN = "20261122-1016{:02d}-7f3a"
MODEL = "steps/train/out/model"
TOML = """
name = "tiny"
[steps.train]
notebook = "train.ipynb"
[targets.staging]
kind = "local"
port = {}
workers = 1
[targets.production]
kind = "local"
port = {}
workers = 2
"""


@dataclass(frozen=True)
class Place(Project):
    """Three versions of tiny, of which the first two are approved, and two targets."""

    ports: dict[str, int] = field(default_factory=dict)

    @property
    def registry(self) -> LocalRegistry:
        return LocalRegistry(self.folder / "runs" / "registry.db")

    @property
    def events(self) -> list[Event]:
        found = list(self.registry.events("tiny"))
        assert verify_chain(found) is None
        return found

    @property
    def told(self) -> list[tuple[int, str]]:
        """What happened at targets."""
        return [(event.version, event.kind) for event in self.events if "target" in event.data]

    def model(self, version: int) -> Path:
        return self.folder / "runs" / RUN.format(version) / MODEL

    def sample(self, version: int) -> tuple[dict[str, Any], float]:
        said = json.loads((self.model(version) / "signature.json").read_text())
        return said["sample_request"], said["sample_prediction"]

    def state(self, target: str = "staging") -> dict[str, Any]:
        made: dict[str, Any] = json.loads((self.folder / "runs" / "targets" / target / "state.json").read_text())
        return made

    def log(self, target: str = "staging") -> str:
        return (self.folder / "runs" / "targets" / target / "log").read_text()

    def supervisor(self, target: str = "staging") -> int:
        return int((self.folder / "runs" / "targets" / target / "alive").read_text())

    def deploy(self, version: int, target: str = "staging", *more: str, **options: Any) -> Done:
        return self.runner("deploy", f"tiny/{version}", "--to", target, *more, **options)

    def scored(self, target: str = "staging") -> str:
        """Which version answers its own sample record, by asking it."""
        caller = Caller(self.ports[target], self.sample(1)[0])
        with contextlib.closing(caller):
            return caller.once()[0]

    def deployments(self, *more: str) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = self.runner("deployments", "--json", *more).json
        return made


def register_versions(folder: Path) -> Path:
    """In the folder of a project, which is given back; each test changes a copy."""
    registry = LocalRegistry(folder / "runs" / "registry.db")
    raw = records()
    for number in (1, 2, 3):
        made = folder / "runs" / RUN.format(number) / MODEL
        made.parent.mkdir(parents=True)
        runner.model.save(made, trained(raw, eta=0.1 * number), raw, target="left", positive="yes")
        fact = artifact(made, name=MODEL)
        registry.register(
            NewVersion(name="tiny", run=RUN.format(number), sha256=fact.sha256, artifact=fact, created_by="ana@desk")
        )
        if number < 3:
            registry.decide("tiny", number, "approved", who="ben@desk", why="reviewed")
    return folder


@contextlib.contextmanager
def placed(models: Path, folder: Path) -> Iterator[Place]:
    """A copy of the models in the folder, with two targets; what still serves there is killed at the end."""
    shutil.copytree(models, folder)
    ports = dict(zip(("staging", "production"), free_ports(2), strict=True))
    made = Place(folder, ports)
    made.toml(TOML.format(*ports.values()))
    yield made
    for target in ports:
        alive = folder / "runs" / "targets" / target / "alive"
        if alive.exists() and alive.read_text():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(alive.read_text()), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


class Caller:
    """Sends the same record again and again; keeps what was answered, and every failure."""

    def __init__(self, port: int, record: dict[str, Any], *, keeps: bool = True) -> None:
        self.port, self.keeps = port, keeps
        self.body = json.dumps([record]).encode()
        self.answers: list[tuple[str, float]] = []
        self.failures: list[str] = []
        self._connection: http.client.HTTPConnection | None = None

    def once(self) -> tuple[str, float]:
        """(version, prediction)"""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json", "accept": "text/csv"}
        self._connection.request("POST", "/invocations", self.body, headers)
        reply = self._connection.getresponse()
        answer = reply.read()
        if reply.will_close or not self.keeps:
            self.close()
        assert reply.status == 200, (reply.status, answer)
        return reply.headers["x-model"], float(answer)

    def until(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.answers.append(self.once())
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(repr(error))
                self.close()
            time.sleep(random.uniform(0, 0.01))
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@contextlib.contextmanager
def load(place: Place, target: str, clients: int) -> Iterator[list[Caller]]:
    """Clients at work, half of them with a new connection for each request."""
    ended = threading.Event()
    callers = [Caller(place.ports[target], place.sample(1)[0], keeps=number % 2 == 0) for number in range(clients)]
    threads = [threading.Thread(target=caller.until, args=[ended]) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def wait_for(held: Callable[[], bool], timeout_s: float = 90.0) -> None:
    until = time.monotonic() + timeout_s
    while not held():
        assert time.monotonic() < until
        time.sleep(0.05)


def remade(
    place: Place,
    version: int,
    change: Callable[[Path], object] = lambda _: None,
    *,
    starter: str = "ana@desk",
    approver: str = "ben@desk",
) -> None:
    """Register a further version: a copy of tiny/1's folder, changed before it was registered."""
    made = place.model(version)
    shutil.copytree(place.model(1), made)
    change(made)
    fact = artifact(made, name=MODEL)
    new = NewVersion(name="tiny", run=RUN.format(version), sha256=fact.sha256, artifact=fact, created_by=starter)
    assert place.registry.register(new).version == version
    if approver:
        place.registry.decide("tiny", version, "approved", who=approver, why="reviewed")
