"""Runs a plan: pins what it depends on, executes its steps in order, judges, and has the model registered.

Sees the machine its steps run on, the registry and remote stores through protocols only. Everything that
happens is in run.json before the next thing starts.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from runner import __version__
from runner.content import atomic_write, file_fact
from runner.errors import Refused, RunnerError
from runner.gate import judge
from runner.model.versions import ModelVersion, NewVersion
from runner.pipeline.file import APPROVED, VERDICT, is_address, is_path
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import (
    Artifact,
    Champion,
    InputFact,
    InputSpec,
    RunManifest,
    StepError,
    StepResult,
    StepState,
    Verdict,
    encode,
)
from runner.run import folder as run_folder
from runner.run import provenance, registration, sources
from runner.run.store import Store
from runner.step.execute import Progress

VERDICT_FILE = "verdict.json"
# what a second try can cure; a notebook that left early or wrote no output will do so again
RETRIED = ("exception", "kernel died", "timeout")


class Executor(Protocol):
    """Where steps run."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """The step in `folder` is going to run soon."""

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """Execute the step folder; returns once its result.json is there."""

    def close(self) -> None:
        """Let go of everything prepared."""


class Registry(Protocol):
    """What a run asks of a model registry."""

    def register(self, new: NewVersion) -> ModelVersion: ...

    def approved(self, name: str) -> ModelVersion | None: ...


class Watcher(Protocol):
    """Told what happens, as it happens; called from one thread at a time."""

    def started(self, manifest: RunManifest) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def changed(self, manifest: RunManifest, step: str) -> None: ...

    def judged(self, verdict: Verdict) -> None: ...


@dataclass(frozen=True)
class Options:
    jobs: int = 1
    kernel: str = "standard"
    note: str = ""
    tags: tuple[str, ...] = ()
    register: bool = True
    profile: str | None = None
    targets: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    on: str = "local"


@dataclass(frozen=True)
class World:
    """Everything outside a run that it talks to."""

    store: Store
    executor: Executor
    registry: Registry
    remote_for: Callable[[str], sources.Remote]
    watcher: Watcher
    stop: threading.Event


def run(plan: Plan, options: Options, world: World) -> RunManifest:
    """Execute the plan as a new run and return its final manifest.

    Steps that fail leave a failed run; RunnerError is raised only where nothing could be started, or where the
    registration was refused.
    """
    store = world.store
    store.prepare()
    pinned, champion = _pinned(plan, world)
    run_id = store.new()
    with store.lock(run_id):
        run_folder.snapshot(plan, store, run_id)
        manifest = RunManifest(
            run=run_id,
            pipeline_file=plan.file.name,
            pipeline=plan.pipeline,
            targets=list(options.targets),
            overrides=dict(options.overrides),
            profile=options.profile,
            note=options.note,
            tags=list(options.tags),
            started_by=provenance.who(),
            started=_now(),
            on=options.on,
            register=options.register,
            status="running",
            steps=[_state(step) for step in plan.steps],
            sources=pinned,
            champion=champion,
            git=provenance.git_state(plan.root, [step.notebook.path for step in plan.steps]),
            environment=provenance.environment(),
            runner_version=__version__,
        )
        store.write(manifest)
        return _Run(plan, options, world, manifest).finish()


def register(run_id: str, file: Path, options: Options, world: World) -> RunManifest:
    """Register the model of a run that passed and did not register; steps that were left out for it run now.

    Raises Refused where the run did not pass. A run that has registered is returned as it is.
    """
    store = world.store
    with store.lock(run_id):
        manifest = store.manifest(run_id)
        if manifest.model_version is not None:
            return manifest
        if manifest.status != "succeeded" or manifest.verdict is None or manifest.verdict.outcome != "pass":
            verdict = manifest.verdict.outcome if manifest.verdict else "none"
            raise Refused(
                f"Run {run_id} cannot be registered: its status is {manifest.status}, its verdict {verdict}. "
                "Only a run that passed its gate registers a model."
            )
        asked = next((state.result for state in manifest.steps if state.result and state.result.registration), None)
        if asked is not None:
            version = registration.commit(manifest, asked, world.registry)
            manifest = msgspec.structs.replace(manifest, model_version=version, register=True)
            store.write(manifest)
            return manifest
        plan = run_folder.plan_again(manifest, store, file)
        left_out = {step.name for step in plan.steps if step.needs_verdict}
        steps = [
            msgspec.structs.replace(state, status=None, why="") if state.name in left_out else state
            for state in manifest.steps
        ]
        manifest = msgspec.structs.replace(manifest, steps=steps, register=True, status="running", ended=None)
        manifest = _Run(plan, options, world, manifest).finish()
    if manifest.model_version is None:
        raise Refused(
            f"Run {run_id} has no step that calls runner.model.register, or it failed: `runner show {run_id}`."
        )
    return manifest


def _state(step: PlannedStep) -> StepState:
    return StepState(
        name=step.name,
        notebook=step.spec.notebook,
        parameters=step.parameters,
        status="skipped" if step.skip else None,
        why=step.skip,
    )


class _Run:
    """The steps of one run on their way; `manifest` is always what run.json holds."""

    def __init__(self, plan: Plan, options: Options, world: World, manifest: RunManifest) -> None:
        self.plan, self.options, self.world, self.manifest = plan, options, world, manifest
        self.done: queue.Queue[tuple[PlannedStep, StepResult | BaseException]] = queue.Queue()
        self.results = {state.name: state.result for state in manifest.steps if state.result is not None}
        ended = {state.name for state in manifest.steps if state.status in ("succeeded", "cached", "skipped")}
        self.waiting = [step for step in plan.steps if step.name not in ended]
        self.going: set[str] = set()
        self.threads = max(1, (os.cpu_count() or 1) // max(1, options.jobs))

    def finish(self) -> RunManifest:
        self.world.watcher.started(self.manifest)
        self._prepare_next()
        try:
            while self._start_ready() or self.going:
                self._collect()
        finally:
            self.world.executor.close()
        statuses = {step.status for step in self.manifest.steps}
        interrupted = self.world.stop.is_set() or "interrupted" in statuses
        status = "interrupted" if interrupted else "failed" if "failed" in statuses else "succeeded"
        self._write(status=status, ended=_now())
        return self.manifest

    def _start_ready(self) -> bool:
        """Start what can start; False once nothing ever will."""
        failed = any(step.status == "failed" for step in self.manifest.steps)
        for step in list(self.waiting):
            if self.world.stop.is_set() or failed or len(self.going) >= self.options.jobs:
                break
            if all(self._status(need) in ("succeeded", "cached") for need in step.needs):
                self.waiting.remove(step)
                if step.needs_verdict and self._verdict().outcome != "pass":
                    self._skip(step)
                else:
                    self._start(step)
        self._judge_when_ready()
        return bool(self.going)

    def _start(self, step: PlannedStep, attempt: int = 1) -> None:
        store, run_id = self.world.store, self.manifest.run
        job = run_folder.job(
            step,
            {name: self._input(step, name, spec) for name, spec in step.spec.inputs.items()},
            store=store,
            run=run_id,
            kernel=self.options.kernel,
            threads=self.threads,
            attempt=attempt,
        )
        self._set(step.name, status="running", attempt=attempt, job=job)
        self.going.add(step.name)
        threading.Thread(target=self._work, args=(step,), name=f"step-{step.name}").start()
        self._prepare_next()

    def _work(self, step: PlannedStep) -> None:
        """In a thread of its own: execute, and hand the outcome to the thread that owns the manifest."""
        folder = run_folder.step_folder(self.world.store, self.manifest.run, step.name)
        try:
            result = self.world.executor.run(
                folder, cwd=step.notebook.path.parent, stop=self.world.stop, on_progress=self.world.watcher.progress
            )
            self.done.put((step, result))
        except BaseException as error:  # must reach the owner, whatever it is
            self.done.put((step, error))

    def _prepare_next(self) -> None:
        """The kernel of the next step starts beside the current one; one ahead is enough for two cores."""
        if self.waiting and not self.world.stop.is_set():
            step = self.waiting[0]
            folder = run_folder.step_folder(self.world.store, self.manifest.run, step.name)
            self.world.executor.prepare(folder, cwd=step.notebook.path.parent, threads=self.threads)

    def _collect(self) -> None:
        """Wait for one step to end and take in what came of it."""
        while True:
            try:
                step, outcome = self.done.get(timeout=0.2)  # a signal's handler runs between two waits
                break
            except queue.Empty:
                continue
        self.going.discard(step.name)
        if isinstance(outcome, BaseException):
            raise outcome
        state = next(state for state in self.manifest.steps if state.name == step.name)
        retry = outcome.error is not None and outcome.error.kind in RETRIED and state.attempt <= step.spec.retries
        if retry and not self.world.stop.is_set():
            self._start(step, state.attempt + 1)
            return
        run_folder.seal(outcome, store=self.world.store, run=self.manifest.run, step=step.name)
        self.results[step.name] = outcome
        metrics = {f"{step.name}.{name}": metric for name, metric in outcome.metrics.items()}
        problems = {f"{step.name}.{name}": problem for name, problem in outcome.problems.items()}
        self._write(metrics={**self.manifest.metrics, **metrics}, problems={**self.manifest.problems, **problems})
        self._set(step.name, status=outcome.status, result=outcome)
        if outcome.registration is not None and outcome.status == "succeeded":
            self._register(step, outcome)

    def _register(self, step: PlannedStep, result: StepResult) -> None:
        if not self.options.register:
            return
        try:
            version = registration.commit(self.manifest, result, self.world.registry)
        except RunnerError as error:
            refused = StepError(kind="refused", ename=type(error).__name__, evalue=str(error))
            self._set(step.name, status="failed", result=msgspec.structs.replace(result, error=refused))
            self._write(status="failed", ended=_now())
            raise
        self._write(model_version=version)

    def _skip(self, step: PlannedStep) -> None:
        verdict = self._verdict()
        self._set(step.name, status="skipped", why=f"the gate's verdict is {verdict.outcome}")

    def _judge_when_ready(self) -> None:
        if not self.plan.judges or self.manifest.verdict is not None:
            return
        needed = {rule.metric.partition(".")[0] for rule in self.plan.pipeline.gate}
        if all(self._status(name) in ("succeeded", "cached") for name in needed):
            self._verdict()

    def _verdict(self) -> Verdict:
        if self.manifest.verdict is None:
            verdict = judge(
                self.manifest.metrics,
                self.plan.pipeline.gate,
                problems=self.manifest.problems,
                present=_present(self.manifest),
            )
            atomic_write(self.world.store.folder(self.manifest.run) / VERDICT_FILE, encode(verdict))
            self._write(verdict=verdict)
            self.world.watcher.judged(verdict)
            return verdict
        return self.manifest.verdict

    def _input(self, step: PlannedStep, name: str, spec: InputSpec) -> InputFact:
        source = spec.from_
        if f"{step.name}.{name}" in self.manifest.sources:
            return self.manifest.sources[f"{step.name}.{name}"]
        if source == VERDICT:
            path = self.world.store.folder(self.manifest.run) / VERDICT_FILE
            fact = file_fact(path)
            found = Artifact(path=VERDICT_FILE, sha256=fact.sha256, size_bytes=fact.size_bytes)
            self.world.store.seal(path.parent, found)
            return InputFact(source=VERDICT, artifact=found)
        upstream, _, output = source.partition(".")
        return run_folder.as_input(self.results[upstream], output, source)

    def _status(self, name: str) -> str | None:
        return next((state.status for state in self.manifest.steps if state.name == name), None)

    def _set(self, name: str, **changes: object) -> None:
        steps = [
            msgspec.structs.replace(state, **changes) if state.name == name else state for state in self.manifest.steps
        ]
        self._write(steps=steps)
        self.world.watcher.changed(self.manifest, name)

    def _write(self, **changes: object) -> None:
        self.manifest = msgspec.structs.replace(self.manifest, **changes)
        self.world.store.write(self.manifest)


def _pinned(plan: Plan, world: World) -> tuple[dict[str, InputFact], Champion | None]:
    """Everything the plan reads from outside, identified (and fetched) before the first kernel starts."""
    found: dict[str, InputFact] = {}
    champion: Champion | None = None
    for step in plan.steps:
        for name, spec in step.spec.inputs.items():
            if step.skip:
                continue
            key = f"{step.name}.{name}"
            if not spec.from_:
                found[key] = sources.absent("")
            elif is_path(spec.from_):
                found[key] = sources.local(spec, plan.root)
            elif is_address(spec.from_):
                found[key] = sources.remote(spec, world.store, world.remote_for)
            elif spec.from_.startswith(APPROVED):
                version = world.registry.approved(spec.from_.removeprefix(APPROVED))
                found[key] = _approved(spec.from_, version, world.store)
                if version is not None:
                    champion = Champion(
                        name=version.name, version=version.version, run=version.run, sha256=version.sha256
                    )
    return found, champion


def _approved(source: str, version: ModelVersion | None, store: Store) -> InputFact:
    """The approved version's folder; its bytes must still be those that were approved."""
    if version is None:
        return sources.absent(source)
    for fact in (version.artifact.files or {}).values():
        if file_fact(store.object(fact)) != fact:
            raise Refused(
                f"The approved {version.name}/{version.version} was altered: object {fact.sha256[:12]} has other bytes. "
                f"Restore it, or revoke it with `runner reject {version.name}/{version.version} --reason …`."
            )
    return InputFact(source=source, artifact=version.artifact, version=f"{version.name}/{version.version}")


def _present(manifest: RunManifest) -> set[str]:
    return {
        f"{state.name}.{name}"
        for state in manifest.steps
        if state.job is not None
        for name, fact in state.job.inputs.items()
        if fact.present
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
