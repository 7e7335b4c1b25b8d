"""Runs a plan: pins what it depends on, executes its steps in order, judges, and has the model registered.

Sees the machine its steps run on, the registry and remote stores through protocols only. Everything that
happens is in run.json before the next thing starts.
"""

from __future__ import annotations

import os
import queue
import threading
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from runner import __version__
from runner.content import atomic_write, file_fact
from runner.errors import Detached, RemoteError, RunnerError
from runner.failpoint import reach
from runner.gate import judge
from runner.manifest import Chosen, RunManifest, StepState
from runner.pipeline.file import VERDICT
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import Artifact, InputFact, InputSpec, StepError, StepResult, Verdict, encode
from runner.run import folder as run_folder
from runner.run import provenance, registration
from runner.run.cache import Cache, Found
from runner.run.keys import step_key
from runner.run.pinned_inputs import pinned
from runner.run.ports import Options, World
from runner.run.retries import retries
from runner.run.sources import recorded, recorded_values

VERDICT_FILE = "verdict.json"


def run(plan: Plan, options: Options, world: World) -> RunManifest:
    """Execute the plan as a new run and return its final manifest.

    Steps that fail leave a failed run; RunnerError is raised only where nothing could be started, or where the
    registration was refused.
    """
    store = world.store
    store.prepare()
    first = next((step for step in plan.steps if not step.skip), None)
    if first is not None and options.beside == 1:
        world.executor.expect(first.notebook.path, threads=_cores(options))
    with store.shared():  # from the first byte that is kept for it, `gc` leaves everything alone
        return _begun(plan, options, world)


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
            pipeline=recorded(plan.pipeline),
            targets=list(options.targets),
            overrides=recorded_values(options.overrides),
            profile=options.profile,
            note=options.note,
            tags=list(options.tags),
            started_by=provenance.who(),
            identity=world.identity() if options.register and plan.pipeline.model is not None else "",
            started=_now(),
            on=options.on,
            register=options.register,
            chosen=Chosen(jobs=options.jobs, kernel=options.kernel, force=options.force, report=options.report),
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
    """The steps of one run on their way; `manifest` is always what run.json holds."""

    def __init__(self, plan: Plan, options: Options, world: World, manifest: RunManifest) -> None:
        self.plan, self.options, self.world, self.manifest = plan, options, world, manifest
        self.done: queue.Queue[tuple[PlannedStep, StepResult | BaseException]] = queue.Queue()
        self.results = {state.name: state.result for state in manifest.steps if state.result is not None}
        ended = {state.name for state in manifest.steps if state.status in ("succeeded", "cached", "skipped")}
        self.waiting = [step for step in plan.steps if step.name not in ended]
        self.going: set[str] = set()
        self.left: set[str] = set()  # steps that go on elsewhere while we leave
        self.registered = {state.name for state in manifest.steps if manifest.model_version is not None}
        self.cache = Cache(world.store, plan.root)
        self.threads = _cores(options) if world.runtime is None else 0  # elsewhere a step has a machine for itself
        # attempts number a step's executions over all resumptions; `retries` counts from this owner's first
        self.first = {state.name: state.attempt for state in manifest.steps}

    def finish(self) -> RunManifest:
        self.world.watcher.started(self.manifest)
        if self.world.shared is not None:
            self.world.shared.claim(self.manifest, take_over=self.options.take_over)
            self._share()  # from now on the others see it, and can go on with it should we not
        self._register_asked()  # a run that was killed before it could
        self._prepare_next()
        try:
            while self._start_ready():
                if self.going:
                    self._collect()
            if self.left:
                raise Detached(
                    f"Run {self.manifest.run} goes on without us: {', '.join(sorted(self.left))}.",
                    run=self.manifest.run,
                )
        except Exception as error:
            self._let_go(error)
            raise
        finally:
            self.world.executor.close()
            self.cache.checked.save()
        statuses = {step.status for step in self.manifest.steps}
        interrupted = self.world.stop.is_set() or "interrupted" in statuses
        status = "interrupted" if interrupted else "failed" if "failed" in statuses else "succeeded"
        reach("before the end")
        self._write(status=status, ended=_now())
        self._share(ended=True)
        return self.manifest

    def _share(self, *, ended: bool = False) -> None:
        """Let others see how far the run is. What fails on the way is made up for at its end."""
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
        """Start what can start; False once nothing goes on and nothing ever will."""
        before = len(self.waiting)
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
        # a step taken from an earlier run or skipped may have made others ready
        return bool(self.going) or len(self.waiting) < before

    def _start(self, step: PlannedStep, retry: int = 0) -> None:
        attempt = max(1, self.first[step.name]) + retry
        inputs = {name: self._input(step, name, spec) for name, spec in step.spec.inputs.items()}
        if not retry and not self._look_up(step, inputs):
            return
        job = run_folder.job(
            step,
            inputs,
            store=self.world.store,
            run=self.manifest.run,
            kernel=self.options.kernel,
            threads=self.threads,
            attempt=attempt,
            place=self.world.place,
        )
        self._set(step.name, status="running", attempt=attempt, job=job)
        self._share()
        reach("step about to run", step.name)
        self.going.add(step.name)
        threading.Thread(target=self._work, args=(step,), name=f"step-{step.name}").start()
        self._prepare_next()

    def _look_up(self, step: PlannedStep, inputs: dict[str, InputFact]) -> bool:
        """Note the step's key and why it has to run; False where an earlier result was put in place instead."""
        key = step_key(step, inputs, index_file=self.cache.packages_file, runtime=self.world.runtime)
        found = Found(why="forced") if self.options.force else self.cache.find(step, key)
        if found.state is None:
            self._note(step.name, key=key, why=found.why)
            return True
        self.cache.link(found, self.manifest.run)
        earlier = found.state
        self._take(step, earlier.result, status="cached", key=key, from_run=found.run, job=earlier.job)
        return False

    def _work(self, step: PlannedStep) -> None:
        """In a thread of its own: execute, and hand the outcome to the thread that owns the manifest."""
        folder = run_folder.step_folder(self.world.store, self.manifest.run, step.name)
        try:
            result = self.world.executor.run(
                folder, cwd=self._cwd(step), stop=self.world.stop, on_progress=self.world.watcher.progress
            )
            self.done.put((step, result))
        except BaseException as error:  # must reach the owner, whatever it is
            self.done.put((step, error))

    def _cwd(self, step: PlannedStep) -> Path:
        return (self.plan.root / step.spec.notebook).parent

    def _prepare_next(self) -> None:
        """The kernel of the next step starts beside the current one; one ahead is enough for two cores."""
        if self.waiting and self.options.beside == 1 and not self.world.stop.is_set():
            step = self.waiting[0]
            folder = run_folder.step_folder(self.world.store, self.manifest.run, step.name)
            self.world.executor.prepare(folder, cwd=self._cwd(step), threads=self.threads)

    def _next_done(self) -> tuple[PlannedStep, StepResult | BaseException]:
        while True:
            try:
                step, outcome = self.done.get(timeout=0.2)  # a signal's handler runs between two waits
                break
            except queue.Empty:
                continue
        self.going.discard(step.name)
        if isinstance(outcome, Detached):
            self.left.add(step.name)
        return step, outcome

    def _let_go(self, error: Exception) -> None:
        """After an error the other steps end, or go on without us; what ended is recorded, and nothing is started."""
        self.world.stop.set()
        for step, outcome in [self._next_done() for _ in range(len(self.going))]:
            if isinstance(outcome, StepResult):
                run_folder.seal(outcome, store=self.world.store, run=self.manifest.run, step=step.name)
                self._record(step, outcome, status=outcome.status)
            elif not isinstance(outcome, Detached):
                error.add_note(f"Step {step.name}: {outcome}")
        if self.left and not isinstance(error, Detached):
            error.add_note(
                f"{', '.join(sorted(self.left))} of run {self.manifest.run} goes on without us: "
                f"`runner resume {self.manifest.run}` follows it again, `runner stop {self.manifest.run}` ends it."
            )

    def _collect(self) -> None:
        """Wait for one step to end and take in what came of it."""
        step, outcome = self._next_done()
        if isinstance(outcome, Detached):
            return
        if isinstance(outcome, BaseException):
            raise outcome
        state = self._state(step.name)
        tried = state.attempt - max(1, self.first[step.name])
        if tried < retries(outcome.error, step) and not self.world.stop.is_set():
            self._start(step, tried + 1)
            return
        run_folder.seal(outcome, store=self.world.store, run=self.manifest.run, step=step.name)
        reach("step sealed", step.name)
        self._take(step, outcome, status=outcome.status)

    def _take(self, step: PlannedStep, result: StepResult | None, **state: object) -> None:
        """Take in a result, made now or earlier: metrics, state, and the registration it asks for."""
        assert result is not None
        self._record(step, result, **state)
        reach("step recorded", step.name)
        ended = self._state(step.name)
        self._register_asked()
        if ended.status == "succeeded":
            self.cache.remember(self.manifest.run, self._state(step.name))
        self._share()

    def _record(self, step: PlannedStep, result: StepResult, **state: object) -> None:
        self.results[step.name] = result
        metrics = {f"{step.name}.{name}": metric for name, metric in result.metrics.items()}
        problems = {f"{step.name}.{name}": problem for name, problem in result.problems.items()}
        self._write(metrics={**self.manifest.metrics, **metrics}, problems={**self.manifest.problems, **problems})
        self._set(step.name, result=result, **state)

    def _register_asked(self) -> None:
        """Register what steps ask for, once the gate has passed; where it says no, that is the run's last word."""
        verdict = self.manifest.verdict
        if not self.options.register or (self.plan.pipeline.gate and (verdict is None or verdict.outcome != "pass")):
            return
        for state in self.manifest.steps:
            asked = state.status in ("succeeded", "cached") and state.result is not None and state.result.registration
            if asked and state.name not in self.registered:
                self.registered.add(state.name)
                self._register(state)

    def _register(self, state: StepState) -> None:
        assert state.result is not None
        registry, content = self.world.registry, self.world.store.object
        reach("before registering")
        try:
            version = registration.commit(
                self.manifest, state.result, registry, content=content, from_run=state.from_run
            )
        except RunnerError as error:
            refused = StepError(kind="refused", ename=type(error).__name__, evalue=str(error))
            self._set(state.name, status="failed", result=msgspec.structs.replace(state.result, error=refused))
            self._write(status="failed", ended=_now())
            raise
        reach("registered")
        self._write(model_version=version)
        reach("version recorded")

    def _skip(self, step: PlannedStep) -> None:
        verdict = self._verdict()
        self._set(step.name, status="skipped", why=f"the gate's verdict is {verdict.outcome}")

    def _judge_when_ready(self) -> None:
        needed = {rule.metric.partition(".")[0] for rule in self.plan.pipeline.gate}
        ready = all(self._status(name) in ("succeeded", "cached") for name in needed)
        if self.plan.judges and self.manifest.verdict is None and ready:
            self._verdict()
        self._register_asked()

    def _verdict(self) -> Verdict:
        if self.manifest.verdict is None:
            verdict = judge(
                self.manifest.metrics,
                self.plan.pipeline.gate,
                problems=self.manifest.problems,
                present=_present(self.manifest),
            )
            atomic_write(self.world.store.folder(self.manifest.run) / VERDICT_FILE, encode(verdict))
            reach("verdict written")
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

    def _state(self, name: str) -> StepState:
        return next(state for state in self.manifest.steps if state.name == name)

    def _status(self, name: str) -> str | None:
        return next((state.status for state in self.manifest.steps if state.name == name), None)

    def _set(self, name: str, **changes: object) -> None:
        self._note(name, **changes)
        self.world.watcher.changed(self.manifest, name)

    def _note(self, name: str, **changes: object) -> None:
        """Write the step's state without telling anybody."""
        steps = [
            msgspec.structs.replace(state, **changes) if state.name == name else state for state in self.manifest.steps
        ]
        self._write(steps=steps)

    def _write(self, **changes: object) -> None:
        self.manifest = msgspec.structs.replace(self.manifest, **changes)
        self.world.store.write(self.manifest)


def _cores(options: Options) -> int:
    """This machine's cores for each step that runs at once."""
    return max(1, (os.cpu_count() or 1) // max(1, options.jobs * options.beside))


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
