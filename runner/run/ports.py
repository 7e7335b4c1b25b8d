"""What a run talks to, as protocols, and what its owner may choose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runner.manifest import RunManifest
from runner.model.versions import ModelVersion, NewVersion
from runner.records import USUAL_KERNEL, InputFact, StepResult, Verdict
from runner.run.sources import Remote, place
from runner.run.store import Store
from runner.step.execute import Progress


class Executor(Protocol):
    """Where steps run."""

    def expect(self, notebook: Path, *, threads: int) -> None:
        """The notebook is going to run first, as soon as its step folder is there."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """The step in `folder` is going to run soon."""

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """Execute the step folder; returns once its result.json is there. Raises Detached where it goes on without us."""

    def close(self) -> None:
        """Let go of everything prepared."""


class Registry(Protocol):
    """What a run asks of a model registry."""

    def register(self, new: NewVersion) -> ModelVersion: ...

    def approved(self, name: str) -> ModelVersion | None: ...

    def list(self, name: str | None = None) -> Sequence[ModelVersion]: ...


class Watcher(Protocol):
    """Told what happens, as it happens; called from one thread at a time."""

    def started(self, manifest: RunManifest) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def changed(self, manifest: RunManifest, step: str) -> None: ...

    def judged(self, verdict: Verdict) -> None: ...


class Shared(Protocol):
    """Runs that other machines see too. All raise RemoteError where they cannot be reached."""

    def claim(self, manifest: RunManifest, *, take_over: bool = False) -> None:
        """Own the run, also against other machines. Raises Refused naming who does."""

    def push(self, manifest: RunManifest, *, ended: bool) -> None:
        """Let the others see the run as it stands. Calling twice is safe."""


class Silent:
    """A watcher that tells nobody."""

    def started(self, manifest: RunManifest) -> None:
        """Nothing to tell."""

    def progress(self, progress: Progress) -> None:
        """Nothing to tell."""

    def changed(self, manifest: RunManifest, step: str) -> None:
        """Nothing to tell."""

    def judged(self, verdict: Verdict) -> None:
        """Nothing to tell."""


@dataclass(frozen=True)
class Options:
    jobs: int = 1
    kernel: str = USUAL_KERNEL
    note: str = ""
    tags: tuple[str, ...] = ()
    register: bool = True
    force: bool = False  # take nothing from earlier runs
    report: bool = True  # its pages are wanted, for whoever shows the run
    profile: str | None = None
    targets: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    on: str = "local"
    take_over: bool = False  # a run that another machine owned
    beside: int = 1  # how many runs share this machine


@dataclass(frozen=True)
class Runtime:
    """What a step elsewhere runs on, as far as its result may depend on it."""

    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class World:
    """Everything outside a run that it talks to. With a `runtime`, steps run elsewhere, and no input comes here."""

    store: Store
    executor: Executor
    registry: Registry
    remote_for: Callable[[str], Remote]
    watcher: Watcher
    stop: threading.Event
    runtime: Runtime | None = None
    place: Callable[[InputFact, str, Path, Store], InputFact] = place
    shared: Shared | None = None
    identity: Callable[[], str] = str  # the caller's ARN, where AWS keeps the registry; ""
