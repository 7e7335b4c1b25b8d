"""What a run uses from outside, as protocols, and its options."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runner.errors import UsageError
from runner.manifest import RunManifest
from runner.model.versions import ModelVersion, Registry
from runner.records import USUAL_KERNEL, Artifact, Capture, InputFact, StepResult, Verdict
from runner.run.sources import RemoteSource, place_input
from runner.run.store import MANIFEST, Store
from runner.step.execute import Progress

if TYPE_CHECKING:
    from runner.model.captured import Captured


class Executor(Protocol):
    """Where steps run."""

    def expect(self, notebook: Path, *, threads: int) -> None:
        """The notebook runs first, as soon as its step folder exists."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """The step in `folder` runs soon."""

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """Execute the step folder and return its result. Raises Detached where it keeps running elsewhere."""

    def close(self) -> None:
        """End everything prepared."""


class RunWatcher(Protocol):
    """Is called when something happens, from one thread at a time."""

    def started(self, manifest: RunManifest) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def changed(self, manifest: RunManifest, step: str) -> None: ...

    def judged(self, verdict: Verdict) -> None: ...


class RunSharing(Protocol):
    """Runs that other machines see too. Both raise RemoteError where these cannot be reached."""

    def claim(self, manifest: RunManifest, *, take_over: bool = False) -> None:
        """Own the run, also for other machines. Raises Refused naming who owns it."""

    def push(self, manifest: RunManifest, *, ended: bool) -> None:
        """Let the others see the run as it is now. Idempotent."""


class Silent:
    """A watcher that does nothing."""

    def started(self, manifest: RunManifest) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def changed(self, manifest: RunManifest, step: str) -> None:
        """Nothing."""

    def judged(self, verdict: Verdict) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Options:
    jobs: int = 1
    kernel: str = USUAL_KERNEL
    note: str = ""
    tags: tuple[str, ...] = ()
    register: bool = True
    force: bool = False  # reuse no results of earlier runs
    report: bool = True  # write the report's pages
    profile: str | None = None
    targets: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    on: str = "local"
    take_over: bool = False  # a run that another machine owned
    beside: int = 1  # runs that share this machine, this one included


@dataclass(frozen=True)
class Runtime:
    """What a step elsewhere runs on and its result may depend on."""

    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class WatchedTarget:
    """A target as a pipeline that watches it sees it. `captured` gives the requests since one time and before another,
    "" for no bound."""

    capture: Capture
    captured: Callable[[str, str], Iterable[Captured]]


def _no_targets(name: str) -> WatchedTarget:
    raise UsageError(f"What was captured at {name} cannot be read where this step runs.")


@dataclass(frozen=True)
class World:
    """Everything outside a run that it uses. With a `runtime`, steps run elsewhere, and inputs are not brought here."""

    store: Store
    executor: Executor
    registry: Registry
    remote_for: Callable[[str], RemoteSource]
    watcher: RunWatcher
    stop: threading.Event
    runtime: Runtime | None = None
    place: Callable[[InputFact, str, Path, Store], InputFact] = place_input
    shared: RunSharing | None = None
    target: Callable[[str], WatchedTarget] = _no_targets  # raises UsageError where there is no such target
    identity: Callable[[], str] = str  # the caller's ARN, where AWS keeps the registry; ""

    def outputs_of(self, version: ModelVersion) -> Iterator[tuple[str, Artifact]]:
        """What the steps of the version's run have made, by name; none where the run is not here."""
        if version.imported is None and (self.store.folder(version.run) / MANIFEST).exists():
            for state in self.store.manifest(version.run).steps:
                if state.complete and state.result is not None:
                    yield from state.result.outputs.items()
