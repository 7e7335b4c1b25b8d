"""A mapped step: its notebook executed once for each key, and their results as one.

    steps/<step>/keys/<folder>/state.json     of a key that has ended: its job and result
    steps/<step>/keys/<folder>/executed.ipynb
    steps/<step>/keys/<folder>/cluster/…      logs of the key's own cluster, where the step has one
    steps/<step>/out/<output>/<folder>/…      what the keys wrote, for the steps after it
    steps/<step>/out/<output>/keys.json       the keys with their folders

While a key runs, its folder is a step folder as any other; its notebook, modules and inputs are links to the step's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from runner.content import atomic_write, bytes_fact, folder_artifact
from runner.errors import RunnerError, counted
from runner.failpoint import reach
from runner.manifest import KeyState, StepState
from runner.pipeline import mapping
from runner.pipeline.plan import PlannedStep
from runner.records import (
    Artifact,
    ClusterFacts,
    Count,
    FileFact,
    InputFact,
    Key,
    KeyResult,
    Mapped,
    Opened,
    StepError,
    StepJob,
    StepKey,
    StepResult,
    StepStatus,
    encode,
    read,
    utc_text,
)
from runner.run import folder as run_folder
from runner.run import keys as step_keys
from runner.run.cache import Cache, Hit
from runner.run.ports import Executor
from runner.run.store import Store, check, facts_of
from runner.step.execute import EXECUTED, Progress

LINKED = (run_folder.SOURCE, run_folder.MODULES, "in")
NAMED = 3  # failed keys in a step's error


def keys_of(step: PlannedStep, results: Mapping[str, StepResult], store: Store) -> list[Key]:
    """The keys of the step in their order, () of one that is not mapped; `results` are those of the steps before it.

    Raises UsageError for an output that is no list of keys.
    """
    if not step.spec.map:
        return []
    parameter, keys = mapping.source(step.spec)
    declared, where = step.notebook.parameters.get(parameter), f"steps.{step.name}.map.{parameter}"
    if isinstance(keys, list):
        return mapping.checked(keys, where, declared)
    artifact = run_folder.upstream_input(keys, results).artifact
    assert artifact is not None
    content = store.object(FileFact(sha256=artifact.sha256, size_bytes=artifact.size_bytes)).read_bytes()
    return mapping.checked(mapping.keys_in(content, f"{keys}, from which {where} is,"), f"{where} ({keys})", declared)


def without_keys(step: PlannedStep, folder: Path, error: RunnerError) -> StepResult:
    """The result of a mapped step whose keys cannot be read, written to its folder."""
    now = utc_text()
    result = StepResult(
        status="failed",
        started=now,
        ended=now,
        seconds=0.0,
        cells=len(step.notebook.code),
        cells_run=0,
        error=StepError(kind="refused", ename=type(error).__name__, evalue=str(error)),
    )
    atomic_write(folder / run_folder.RESULT, encode(result))
    return result


def state_path(folder: Path, key_folder: str) -> Path:
    """The record of one key; `folder` is the step's."""
    return folder / run_folder.KEYS / key_folder / run_folder.STATE


def of_key(state: StepState, key_folder: str, store: Store) -> StepState:
    """The mapped step as it was for one key that has ended, with that key's job and result, fetched if need be.

    Raises Tampered where the key's record is gone or cannot be read.
    """
    assert state.result is not None
    assert state.result.mapped is not None
    fact = facts_of(state.result.mapped.files)[f"{key_folder}/{run_folder.STATE}"]
    ended = read(KeyState, store.object(fact))
    assert state.job is not None
    job = replace(ended.job, inputs=ended.job.inputs or state.job.inputs)
    return replace(state, job=job, result=replace(ended.result, inputs=job.inputs))


def states(folder: Path) -> list[KeyState]:
    """Of all keys in the step's folder that have ended and can be read."""
    found = []
    for path in sorted((folder / run_folder.KEYS).glob(f"*/{run_folder.STATE}")):
        with contextlib.suppress(RunnerError, OSError):
            found.append(read(KeyState, path))
    return found


@dataclass
class MappedExecution:
    """The keys of one step; `job` is the step's as a whole, with its inputs in place, `key` its key.

    `executor` decides how many run at once, `jobs` how many are made ready for it.
    """

    step: PlannedStep
    keys: Sequence[Key]
    job: StepJob
    key: StepKey
    folder: Path
    store: Store
    cache: Cache
    executor: Executor
    jobs: int
    force: bool = False

    def run(self, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]) -> StepResult:
        """Execute the keys that are missing; the result of the step, which is also in its result.json.

        A key that fails ends no other. Raises what an execution raised, once those that run have ended.
        """
        began, clock = datetime.now(UTC), time.monotonic()
        names = mapping.folders(self.keys)
        shown, lock = Progress(self.step.name, 0, len(names), unit="keys"), threading.Lock()

        def show(**changes: Any) -> None:
            nonlocal shown
            shown = dataclasses.replace(shown, **changes)
            on_progress(shown)

        def one(number: int) -> tuple[KeyState, KeyResult] | None:
            own = ""  # where the key's cluster is; that of the key that began last is shown

            def note(progress: Progress) -> None:
                nonlocal own
                if progress.note != own:
                    own = progress.note
                    with lock:
                        show(note=own)

            ended = self._one(self.keys[number], names[number], cwd, stop, note)
            with lock:
                done = shown.done + (ended is not None)
                show(done=done, first_line=str(self.keys[number]), note="" if shown.note == own else shown.note)
            return ended

        on_progress(shown)
        # one more than run at once, so that a core does not wait while a key is made ready or sealed
        with ThreadPoolExecutor(self.jobs + 1) as pool:
            futures = [pool.submit(one, number) for number in range(len(names))]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        ended = [_outcome(future) for future in futures]
        result = self._result(names, ended, stop)
        result = replace(result, started=utc_text(began), ended=utc_text(), seconds=round(time.monotonic() - clock, 3))
        atomic_write(self.folder / run_folder.RESULT, encode(result))
        reach("result written", self.step.name)
        return result

    def _one(
        self, key: Key, name: str, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> tuple[KeyState, KeyResult] | None:
        """One key: taken from this run or an earlier one, or executed. None where it was not started."""
        folder = self.folder / run_folder.KEYS / name
        step_key = step_keys.of_one(self.key, mapping.source(self.step.spec)[0], key)
        digest = step_keys.digest(step_key)
        if (earlier := self._earlier(folder, digest)) is not None:
            return earlier, line(earlier)
        if stop.is_set():
            return None
        hit = None if self.force else self.cache.find_key(self.step.name, step_key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if isinstance(hit, Hit):
            if hit.result.executed is not None:
                self.store.link(hit.result.executed, folder / EXECUTED)
            state = KeyState(key=key, folder=name, step_key=digest, from_run=hit.run, job=hit.job, result=hit.result)
        else:
            result, job = self._executed(key, folder, cwd, stop, on_progress)
            # the inputs are the step's, and may be folders of thousands of files
            job, result = replace(job, inputs={}), replace(result, inputs={})
            state = KeyState(key=key, folder=name, step_key=digest, job=job, result=result)
        atomic_write(folder / run_folder.STATE, encode(state))
        _tidy(folder)
        if state.from_run is None and state.result.error is None:
            self.cache.remember_key(self.job.run, self.step.name, name, step_key, state.result)
        reach("key ended", f"{self.step.name}/{name}")
        return state, line(state)

    def _earlier(self, folder: Path, digest: str) -> KeyState | None:
        """What this run has of the key already, if it succeeded, is of the same key and nothing of it was altered."""
        with contextlib.suppress(RunnerError, OSError):
            state = read(KeyState, folder / run_folder.STATE)
            if state.step_key == digest and state.result.error is None:
                for output in state.result.outputs.values():
                    for fact in facts_of(output).values():
                        self.store.object(fact)
                if state.result.executed is not None:
                    check(folder, state.result.executed, self.store)
                _tidy(folder)
                return state
        return None

    def _executed(
        self, key: Key, folder: Path, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> tuple[StepResult, StepJob]:
        (self.folder / run_folder.MODULES).mkdir(exist_ok=True)  # a run that came from elsewhere has no empty folders
        for name in LINKED:
            if (self.folder / name).exists():
                (folder / name).symlink_to(Path("..", "..", name))
        parameter, _ = mapping.source(self.step.spec)
        inputs = {name: _in_brief(fact) for name, fact in self.job.inputs.items()}
        parameters = {**self.job.parameters, parameter: key}
        job = replace(self.job, parameters=parameters, inputs=inputs, beside=self._beside())
        atomic_write(folder / run_folder.JOB, encode(job), lasting=False)  # of use while the key runs
        if job.cluster is None:  # else its kernel needs the cluster's address
            self.executor.prepare(folder, cwd=cwd, threads=job.threads)
        result = self.executor.run(folder, cwd=cwd, stop=stop, on_progress=on_progress)
        for artifact in result.artifacts():
            self.store.seal(folder, artifact)
        return result, job

    def _beside(self) -> Count:
        """Of how many clusters a key's may be one; the job's own number where that is larger."""
        if self.job.cluster is None or self.jobs == 1:
            return self.job.beside
        return self.jobs if self.job.beside is UNSET else max(self.jobs, self.job.beside)

    def _result(
        self, names: Sequence[str], ended: Sequence[tuple[KeyState, KeyResult] | None], stop: threading.Event
    ) -> StepResult:
        """The keys' results as one, with their outputs put where the steps after it take them from."""
        lines = [
            pair[1] if pair is not None else KeyResult(key=key, folder=name, status="skipped")
            for key, name, pair in zip(self.keys, names, ended, strict=True)
        ]
        pairs = [pair for pair in ended if pair is not None]
        good = [(state, line) for state, line in pairs if line.complete]
        status: StepStatus = "failed"
        if stop.is_set() and len(good) < len(names):
            status = "interrupted"
        elif good and len(good) >= self.step.spec.share * len(names) - 1e-9:
            status = "succeeded"
        results = [state.result for state, line in pairs if line.from_run is None]
        first = next((state.result for state, _ in pairs), None)
        return StepResult(
            status=status,
            started="",
            ended="",
            seconds=0.0,
            cells=len(self.step.notebook.code) * len(names),
            cells_run=sum(result.cells_run for result in results),
            inputs=dict(self.job.inputs),
            outputs={name: self._output(name, good) for name in self.job.outputs} if good else {},
            mapped=Mapped(parameter=mapping.source(self.step.spec)[0], keys=lines, files=_files(pairs)),
            error=None if status == "succeeded" else self._error(lines, pairs, status),
            kernel=first.kernel if first is not None else self.job.kernel,
            threads=self.job.threads,
            opened=_opened(state.result for state, _ in pairs),
            redacted=sorted({place for result in results for place in result.redacted}),
            cluster=_clusters([state.result.cluster for state, _ in pairs if state.result.cluster is not None]),
        )

    def _output(self, name: str, good: Sequence[tuple[KeyState, KeyResult]]) -> Artifact:
        """An output of all keys as one folder, put in place."""
        index = [{"key": line.key, "folder": line.folder} for _, line in good]
        content = json.dumps(index, ensure_ascii=False, indent=1).encode() + b"\n"
        fact = bytes_fact(content)
        files = {mapping.INDEX: fact}
        for state, line in good:
            output = state.result.outputs[name]
            for path, part in facts_of(output).items():
                files[f"{line.folder}/{path or PurePosixPath(output.path).name}"] = part
        whole = folder_artifact(f"{run_folder.OUT}/{name}/", files)
        place = self.folder / run_folder.OUT / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / mapping.INDEX).write_bytes(content)
        self.store.seal(place, Artifact(path=mapping.INDEX, sha256=fact.sha256, size_bytes=fact.size_bytes))
        self.store.link(whole, place)
        return whole

    def _error(
        self, lines: Sequence[KeyResult], pairs: Sequence[tuple[KeyState, KeyResult]], status: StepStatus
    ) -> StepError:
        """Why the step did not succeed: the first key that failed, and how many more."""
        errors = [(state.result.error, line) for state, line in pairs if state.result.error is not None]
        total = f"{len(lines):,} keys"
        if status == "interrupted":
            missing = sum(not line.complete for line in lines)
            return StepError(kind="interrupted", ename="Interrupted", evalue=f"{missing:,} of {total} are missing")
        error, _ = errors[0]
        named = "; ".join(f"{line.folder}: {line.error}" for _, line in errors[:NAMED])
        more = f"; and {counted(len(errors) - NAMED, 'more key')}" if len(errors) > NAMED else ""
        text = f"{len(errors):,} of {total} failed: {named}{more}"
        return replace(error, ename="KeysFailed", evalue=text)


def _outcome(future: Future[tuple[KeyState, KeyResult] | None]) -> tuple[KeyState, KeyResult] | None:
    """None for a key that was cancelled after another raised; raises what its execution raised."""
    return None if future.cancelled() else future.result()


def line(state: KeyState) -> KeyResult:
    """What run.json has of the key."""
    result, error = state.result, state.result.error
    words = f"{error.ename}: {next(iter(error.evalue.strip().splitlines()), '')}" if error is not None else ""
    return KeyResult(
        key=state.key,
        folder=state.folder,
        status="cached" if state.from_run is not None else result.status,
        seconds=result.seconds,
        metrics=result.metrics,
        problems=result.problems,
        error=words[:300],
        cell=error.cell if error is not None else None,
        from_run=state.from_run,
    )


def _files(pairs: Sequence[tuple[KeyState, KeyResult]]) -> Artifact:
    """What lies in `keys/`: of each key its state and its executed notebook."""
    files = {}
    for state, line in pairs:
        files[f"{line.folder}/{run_folder.STATE}"] = bytes_fact(encode(state))
        if (executed := state.result.executed) is not None:
            files[f"{line.folder}/{EXECUTED}"] = facts_of(executed)[""]
    return folder_artifact(f"{run_folder.KEYS}/", files)


def _opened(results: Iterable[StepResult]) -> dict[str, Opened]:
    """The undeclared files that the keys read; one that changed meanwhile has no hash, so that nothing equals it."""
    opened: dict[str, Opened] = {}
    for result in results:
        for name, fact in result.opened.items():
            known = opened.setdefault(name, fact)
            if known.sha256 != fact.sha256:
                opened[name] = replace(known, sha256="")
    return dict(sorted(opened.items()))


def _clusters(facts: Sequence[ClusterFacts]) -> ClusterFacts | None:
    """The keys' clusters as one: restarts of all, and the most workers and memory that one key had."""
    if not facts:
        return None
    return ClusterFacts(
        engine=facts[0].engine,
        workers=max(fact.workers for fact in facts),
        machines=max(fact.machines for fact in facts),
        versions=next((fact.versions for fact in facts if fact.versions), {}),
        restarts=sum(fact.restarts for fact in facts),
        peak_memory_bytes=max(fact.peak_memory_bytes for fact in facts),
    )


def _in_brief(fact: InputFact) -> InputFact:
    """The input without the names of a folder's files, which an execution does not need."""
    return fact if fact.artifact is None else replace(fact, artifact=replace(fact.artifact, files=None))


def _tidy(folder: Path) -> None:
    """Remove what only the execution needs; its outputs are objects now."""
    for name in LINKED:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
    shutil.rmtree(folder / run_folder.OUT, ignore_errors=True)
    for name in (run_folder.JOB, run_folder.RESULT):
        (folder / name).unlink(missing_ok=True)
