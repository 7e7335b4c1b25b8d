"""Runs a plan: pins its sources, executes its steps in order, judges, and registers the model.

It reaches executor, registry and remote stores through protocols only. run.json is written before each next action.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from runner import __version__
from runner.content import atomic_write, file_fact
from runner.errors import Detached, RemoteError, RunnerError
from runner.failpoint import reach
from runner.gate import judge
from runner.manifest import RunManifest, RunSettings, StepState, recorded
from runner.pipeline.file import VERDICT
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import (
    Artifact,
    InputFact,
    InputSpec,
    Key,
    Registration,
    StepError,
    StepJob,
    StepResult,
    Verdict,
    encode,
    utc_text,
)
from runner.run import folder as run_folder
from runner.run import mapped, provenance, registration
from runner.run.cache import Cache, Miss
from runner.run.keys import step_key
from runner.run.pinned_inputs import pinned
from runner.run.ports import Executor, Options, World
from runner.run.progress import ProgressFile
from runner.run.retries import retries
from runner.run.sources import public_values, without_credentials
from runner.run.turns import InTurn

VERDICT_FILE = "verdict.json"


def run(plan: Plan, options: Options, world: World) -> RunManifest:
    """Execute the plan as a new run and return its final manifest.

    Steps that fail leave a failed run. Raises RunnerError only if nothing could start, or the registration was refused.
    """
    world.store.prepare()
    if options.beside == 1:
        expect(next((step for step in plan.steps if not step.skip), None), options, world)
    with world.store.shared():  # keeps `gc` out from the first byte of the run
        return _begun(plan, options, world)


def expect(step: PlannedStep | None, options: Options, world: World) -> None:
    """Have what the step imports loaded, ahead of its kernel; one with a cluster starts its kernel by itself."""
    if step is not None and step.spec.cluster is None:
        world.executor.expect(step.notebook.path, threads=_cores(options))


def _begun(plan: Plan, options: Options, world: World) -> RunManifest:
    store = world.store
    sources, champion = pinned(plan, world)
    run_id = store.new()
    reach("run folder made")
    with store.lock(run_id):
        hashes = run_folder.snapshot(plan, store, run_id)
        reach("snapshot taken")
        manifest = RunManifest(
            run=run_id,
            pipeline_file=plan.file.name,
            pipeline=without_credentials(plan.pipeline),
            targets=list(options.targets),
            overrides=public_values(options.overrides),
            profile=options.profile,
            note=options.note,
            tags=list(options.tags),
            started_by=provenance.who(),
            identity=world.identity() if options.register and plan.pipeline.model is not None else "",
            started=utc_text(),
            on=options.on,
            register=options.register,
            chosen=RunSettings(jobs=options.jobs, kernel=options.kernel, force=options.force, report=options.report),
            status="running",
            steps=[_state(step, hashes[step.name]) for step in plan.steps],
            sources=sources,
            champion=champion,
            git=provenance.git_state(plan.root, [step.notebook.path for step in plan.steps]),
            environment=provenance.environment(),
            runner_version=__version__,
        )
        store.write(manifest)
        reach("run begun")
        return Steps(plan, options, world, manifest).finish()


def _state(step: PlannedStep, hashes: dict[str, str]) -> StepState:
    return StepState(
        name=step.name,
        notebook=step.spec.notebook,
        snapshot=hashes,
        parameters=step.parameters,
        registers=step.registers,
        status="skipped" if step.skip else None,
        why=step.skip,
    )


class Steps:
    """Executes the steps of one run; `manifest` is always what run.json holds."""

    def __init__(self, plan: Plan, options: Options, world: World, manifest: RunManifest) -> None:
        self.plan, self.options, self.world, self.manifest = plan, options, world, manifest
        self.outcomes: queue.Queue[tuple[PlannedStep, StepResult | BaseException]] = queue.Queue()
        self.results = {state.name: state.result for state in manifest.steps if state.result is not None}
        ended = {state.name for state in manifest.steps if state.complete or state.status == "skipped"}
        self.waiting = [step for step in plan.steps if step.name not in ended]
        self.running: set[str] = set()
        self.detached: dict[str, bool] = {}  # steps that this process leaves, and whether they keep running elsewhere
        self.registered = {state.name for state in manifest.steps if manifest.model_version is not None}
        self.cache = Cache(world.store, plan.root)
        self.progress = ProgressFile(world.store.folder(manifest.run), world.watcher.progress)
        # keys and steps share the places
        self.executor: Executor = world.executor
        if any(step.spec.map for step in plan.steps):
            self.executor = InTurn(world.executor, threading.Semaphore(options.jobs), ahead=True)
        # elsewhere each step has its own machine
        here = run_folder.MachineShare(_cores(options), options.jobs * options.beside)
        self.share = here if world.runtime is None else run_folder.MachineShare(0)
        # attempts number a step's executions over all resumptions; `retries` counts from this process's first
        self.first = {state.name: max(1, state.attempt) for state in manifest.steps}

    def finish(self) -> RunManifest:
        self.world.watcher.started(self.manifest)
        if self.world.shared is not None:
            self.world.shared.claim(self.manifest, take_over=self.options.take_over)
            self._share()  # from now on others see the run, and can resume it if this process dies
        self._register_pending()  # of a run that was killed before it registered
        self._prepare_next()
        try:
            while self._start_ready():
                if self.running:
                    self._collect()
            if self.detached:
                raise Detached(self._left(), run=self.manifest.run, goes_on=any(self.detached.values()))
        except Exception as error:
            self._wind_down(error)
            raise
        finally:
            self.world.executor.close()
            self.cache.hashes.save()
            self.progress.close()
        statuses = {step.status for step in self.manifest.steps}
        interrupted = self.world.stop.is_set() or "interrupted" in statuses
        status = "interrupted" if interrupted else "failed" if "failed" in statuses else "succeeded"
        refused = self._register_unasked() if status == "succeeded" else None
        reach("before the end")
        self._save(replace(self.manifest, status=status, ended=utc_text()))
        self._share(ended=True)
        if refused is not None:  # after the run has ended: none of its steps is to blame
            raise refused
        return self.manifest

    def _share(self, *, ended: bool = False) -> None:
        """Let others see the run as it is now. A failure before the end is ignored: the end shares everything."""
        if self.world.shared is None:
            return
        try:
            self.world.shared.push(self.manifest, ended=ended)
        except RemoteError as error:
            if ended:
                raise RemoteError(
                    f"Run {self.manifest.run} has ended and is whole here, but the others cannot see it: {error} "
                    f"`runner resume {self.manifest.run}` shares it."
                ) from error

    def _start_ready(self) -> bool:
        """Start what can start; False once nothing runs and nothing can start any more."""
        before = len(self.waiting)
        failed = any(step.status == "failed" for step in self.manifest.steps)
        for step in list(self.waiting):
            if self.world.stop.is_set() or failed or len(self.running) >= self.options.jobs:
                break
            if self._are_complete(step.needs):
                self.waiting.remove(step)
                if step.needs_verdict and (outcome := self._verdict().outcome) != "pass":
                    state = self.manifest.step(step.name)
                    self._announce(replace(state, status="skipped", why=f"the gate's verdict is {outcome}"))
                else:
                    self._start(step)
        if self.plan.judges and self._are_complete(rule.metric.partition(".")[0] for rule in self.plan.pipeline.gate):
            self._verdict()
        self._register_pending()
        # a step that was cached or skipped may have made others ready
        return bool(self.running) or len(self.waiting) < before

    def _are_complete(self, steps: Iterable[str]) -> bool:
        states = [self.manifest.find_step(name) for name in steps]
        return all(state is not None and state.complete for state in states)

    def _start(self, step: PlannedStep, retry: int = 0) -> None:
        inputs = {name: self._input(step, name, spec) for name, spec in step.spec.inputs.items()}
        try:
            keys = mapped.keys_of(step, self.results, self.world.store)
        except RunnerError as error:
            failed = mapped.without_keys(step, self._folder(step), error)
            self._complete(replace(self.manifest.step(step.name), status=failed.status), failed)
            return
        if not retry and self._use_cached(step, inputs, keys):
            return
        job = run_folder.job(
            step,
            inputs,
            store=self.world.store,
            run=self.manifest.run,
            kernel=self.options.kernel,
            share=self.share,
            attempt=self.first[step.name] + retry,
            place=self.world.place,
        )
        self._announce(replace(self.manifest.step(step.name), status="running", attempt=job.attempt, job=job))
        self._share()
        reach("step about to run", step.name)
        self.running.add(step.name)
        threading.Thread(target=self._execute, args=(step, job, keys), name=f"step-{step.name}").start()
        self._prepare_next()

    def _use_cached(self, step: PlannedStep, inputs: dict[str, InputFact], keys: list[Key]) -> bool:
        """Whether an earlier result was put in place; if not, the step's key and why it has to run are recorded."""
        runtime = self.world.runtime
        key = step_key(step, inputs, index_file=self.cache.packages_file, runtime=runtime, keys=keys)
        match = Miss("forced") if self.options.force else self.cache.find(step, key)
        state = replace(self.manifest.step(step.name), key=key)
        if isinstance(match, Miss):
            self._save_step(replace(state, why=match.why))
            return False
        self.cache.link(match, self.manifest.run)
        self._complete(replace(state, status="cached", from_run=match.run, job=match.job), match.result)
        return True

    def _execute(self, step: PlannedStep, job: StepJob, keys: list[Key]) -> None:
        """In a thread of its own: execute, and pass the outcome to the thread that owns the manifest."""
        folder = self._folder(step)
        note = self.progress.note
        one = functools.partial(self.executor.run, folder)
        here = self.world.runtime is None  # elsewhere one execution has all keys
        run: Callable[..., StepResult] = self._mapped(step, job, keys).run if keys and here else one
        try:
            self.outcomes.put((step, run(cwd=self._cwd(step), stop=self.world.stop, on_progress=note)))
        except BaseException as error:  # must reach the owner, whatever it is
            self.outcomes.put((step, error))

    def _mapped(self, step: PlannedStep, job: StepJob, keys: list[Key]) -> mapped.MappedExecution:
        key = self.manifest.step(step.name).key
        assert key is not None
        return mapped.MappedExecution(
            step,
            keys,
            job,
            key,
            folder=self._folder(step),
            store=self.world.store,
            cache=self.cache,
            executor=self.executor,
            jobs=self.options.jobs,
            force=self.options.force,
        )

    def _folder(self, step: PlannedStep) -> Path:
        return run_folder.step_folder(self.world.store, self.manifest.run, step.name)

    def _cwd(self, step: PlannedStep) -> Path:
        return (self.plan.root / step.spec.notebook).parent

    def _prepare_next(self) -> None:
        """Start the next step's kernel beside the current one; one in advance is enough for two cores."""
        if self.waiting and self.options.beside == 1 and not self.world.stop.is_set():
            step = self.waiting[0]
            if step.spec.cluster is not None:  # its kernel needs the cluster's address
                return
            if step.spec.map:  # each key has a kernel of its own
                self.world.executor.expect(step.notebook.path, threads=self.share.threads)
                return
            self.world.executor.prepare(self._folder(step), cwd=self._cwd(step), threads=self.share.threads)

    def _next_outcome(self) -> tuple[PlannedStep, StepResult | BaseException]:
        while True:
            with contextlib.suppress(queue.Empty):
                step, outcome = self.outcomes.get(timeout=0.2)  # a signal's handler runs between two waits
                break
        self.running.discard(step.name)
        if isinstance(outcome, Detached):
            self.detached[step.name] = outcome.goes_on
        return step, outcome

    def _wind_down(self, error: Exception) -> None:
        """After an error start nothing more, record what ends, and name in `error` what keeps running elsewhere."""
        self.world.stop.set()
        for step, outcome in [self._next_outcome() for _ in range(len(self.running))]:
            if isinstance(outcome, StepResult):
                run_folder.seal(outcome, store=self.world.store, run=self.manifest.run, step=step.name)
                self._record(replace(self.manifest.step(step.name), status=outcome.status), outcome)
            elif not isinstance(outcome, Detached):
                error.add_note(f"Step {step.name}: {outcome}")
        if self.detached and not isinstance(error, Detached):
            error.add_note(
                f"{self._left()} `runner resume {self.manifest.run}` goes on with it, "
                f"`runner stop {self.manifest.run}` ends it."
            )

    def _left(self) -> str:
        """Which steps keep running without this process, and which it has not started."""
        words = {True: "keep running", False: "were not started"}
        return " ".join(
            f"Steps of run {self.manifest.run} {word}: {', '.join(sorted(names))}."
            for goes_on, word in words.items()
            if (names := [name for name, on in self.detached.items() if on is goes_on])
        )

    def _collect(self) -> None:
        """Wait for one step to end, then retry it or take in its result."""
        step, outcome = self._next_outcome()
        if isinstance(outcome, Detached):
            return
        if isinstance(outcome, BaseException):
            raise outcome
        state = self.manifest.step(step.name)
        retry = state.attempt - self.first[step.name]
        if retry < retries(outcome.error, step) and not self.world.stop.is_set():
            self._start(step, retry + 1)
            return
        run_folder.seal(outcome, store=self.world.store, run=self.manifest.run, step=step.name)
        reach("step sealed", step.name)
        why = outcome.error.evalue if outcome.status == "pruned" and outcome.error is not None else state.why
        self._complete(replace(state, status=outcome.status, why=why), outcome)

    def _complete(self, state: StepState, result: StepResult) -> None:
        """Take in a new or an earlier result, and the registration it asks for."""
        self._record(state, result)
        reach("step recorded", state.name)
        self._register_pending()
        if state.status == "succeeded":
            self.cache.remember(self.manifest.run, self.manifest.step(state.name))
        self._share()

    def _record(self, state: StepState, result: StepResult) -> None:
        self.results[state.name] = result
        metrics, problems = recorded({state.name: result})
        self.manifest = replace(
            self.manifest, metrics={**self.manifest.metrics, **metrics}, problems={**self.manifest.problems, **problems}
        )
        self._announce(replace(state, result=result))

    def _register_pending(self) -> None:
        """Register what steps ask for, once the gate has passed. A refusal ends the run."""
        verdict = self.manifest.verdict
        if not self.options.register or (self.plan.pipeline.gate and (verdict is None or verdict.outcome != "pass")):
            return
        for state in self.manifest.steps:
            if state.complete and state.result and state.result.registration and state.name not in self.registered:
                self.registered.add(state.name)
                self._register(state, state.result.registration)

    def _register_unasked(self) -> RunnerError | None:
        """Register the model where no step does; the error that prevented it."""
        request = registration.own_request(self.manifest)
        if request is None or not self.options.register or self.manifest.model_version is not None:
            return None
        reach("before registering")
        try:
            version = registration.commit_unasked(
                self.manifest, request, self.world.registry, content=self.world.store.object
            )
        except RunnerError as error:
            error.add_note(
                f"Run {self.manifest.run} has passed and is whole; `runner register {self.manifest.run}` tries again."
            )
            return error
        reach("registered")
        self._save(replace(self.manifest, model_version=version))
        reach("version recorded")
        return None

    def _register(self, state: StepState, request: Registration) -> None:
        reach("before registering")
        try:
            version = registration.commit(
                self.manifest, request, self.world.registry, content=self.world.store.object, from_run=state.from_run
            )
        except RunnerError as error:
            refused = StepError(kind="refused", ename=type(error).__name__, evalue=str(error))
            assert state.result is not None
            self._announce(replace(state, status="failed", result=replace(state.result, error=refused)))
            self._save(replace(self.manifest, status="failed", ended=utc_text()))
            raise
        reach("registered")
        self._save(replace(self.manifest, model_version=version))
        reach("version recorded")

    def _verdict(self) -> Verdict:
        """The gate's verdict; judged and written when it is first needed."""
        if self.manifest.verdict is not None:
            return self.manifest.verdict
        verdict = judge(
            self.manifest.metrics,
            self.plan.pipeline.gate,
            problems=self.manifest.problems,
            present=self.manifest.present_inputs(),
            keyed=self.manifest.keyed(),
        )
        atomic_write(self.world.store.folder(self.manifest.run) / VERDICT_FILE, encode(verdict))
        reach("verdict written")
        self._save(replace(self.manifest, verdict=verdict))
        self.world.watcher.judged(verdict)
        return verdict

    def _input(self, step: PlannedStep, name: str, spec: InputSpec) -> InputFact:
        source = self.manifest.sources.get(f"{step.name}.{name}")
        if source is not None:
            return source
        if spec.from_ == VERDICT:
            folder = self.world.store.folder(self.manifest.run)
            fact = file_fact(folder / VERDICT_FILE)
            artifact = Artifact(path=VERDICT_FILE, sha256=fact.sha256, size_bytes=fact.size_bytes)
            self.world.store.seal(folder, artifact)
            return InputFact(source=VERDICT, artifact=artifact)
        return run_folder.upstream_input(spec.from_, self.results)

    def _announce(self, state: StepState) -> None:
        """Write the step's new state and tell the watcher."""
        self._save_step(state)
        self.world.watcher.changed(self.manifest, state.name)

    def _save_step(self, state: StepState) -> None:
        steps = [state if other.name == state.name else other for other in self.manifest.steps]
        self._save(replace(self.manifest, steps=steps))

    def _save(self, manifest: RunManifest) -> None:
        self.manifest = manifest
        self.world.store.write(manifest)


def _cores(options: Options) -> int:
    """This machine's cores for each step that runs at once."""
    return max(1, (os.cpu_count() or 1) // max(1, options.jobs * options.beside))
