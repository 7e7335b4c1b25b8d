"""A model served in a process of its own, and its client."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.content import artifact
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion
from runner.records import Metric
from support.models import saved
from support.projects import Project

JSON, CSV = "application/json", "text/csv"
ROW = {"minutes": 180.5, "calls": 3, "plan": "gold", "roaming": True}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One connection that is kept open, and opened again where the server closed it."""

    port: int
    connection: http.client.HTTPConnection | None = field(default=None)
    patient: bool = False  # asks again where the server has closed the connection, which it may when it was idle

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        used = self.connection is not None
        try:
            return self._ask(method, path, body, **headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not (used and self.patient):
                raise
            self.close()
            return self._ask(method, path, body, **headers)

    def _ask(self, method: str, path: str, body: bytes | None, **headers: str) -> Answer:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, named)
        answer = self.connection.getresponse()
        made = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        if made.headers.get("connection") == "close":
            self.close()
        return made

    def score(self, body: Any, kind: str = JSON, **headers: str) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", "/invocations", content, content_type=kind, **headers)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    lines: list[str]
    reader: threading.Thread

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def wait_for_line(self, seen: int, path: str, status: int) -> dict[str, Any]:
        """The first of such lines after `seen` others: a line follows its answer, and those of two requests any order."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for line in self.log[seen:]:
                if (line.get("path"), line.get("status")) == (path, status):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line of {path} with {status}: {self.log[seen:]}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(40)
        self.reader.join(5)
        return code


@contextmanager
def serving(project: Project, *arguments: str, model: str = "tiny", **environment: str) -> Iterator[Served]:
    """`runner serve` on a free port, ready."""
    process = project.start("serve", model, "--port", "0", *arguments, env=environment)
    assert process.stderr is not None
    assert process.stdout is not None
    lines: list[str] = []
    first = process.stderr.readline()
    found = re.search(r"http://[^ ]*:(\d+)", first)
    assert found, first + process.stderr.read()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    served = Served(process, int(found[1]), [first], reader)
    served.lines = lines
    try:
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(40)
        reader.join(10)
        process.stdout.close()
        process.stderr.close()


def approved(project: Project, make: Callable[[Path], Path] = saved, name: str = "tiny", approve: bool = True) -> Path:
    """A version of the model in the project's registry, as if a run had made it; its folder."""
    run = f"20261122-101630-{len(list(project.folder.glob('runs/2*'))):04x}"
    folder = project.folder / "runs" / run / "steps/train/out/model"
    folder.parent.mkdir(parents=True)
    make(folder)
    (project.folder / "pipeline.toml").write_text('name = "tiny"\n[steps.train]\nnotebook = "train.ipynb"\n')
    made = artifact(folder, name="steps/train/out/model")
    registry = LocalRegistry(project.folder / "runs/registry.db")
    new = NewVersion(
        name=name, run=run, sha256=made.sha256, artifact=made, metrics={"evaluate.auc": Metric(value=0.9, low=0.8, high=0.95)}, created_by="ana", description="Who <leaves>",
    )  # fmt: skip
    version = registry.register(new)
    if approve:
        registry.decide(name, version.version, "approved", who="ben", why="looked & liked")
    return folder
