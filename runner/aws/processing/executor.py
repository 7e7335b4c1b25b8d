"""Steps run as processing jobs: what they need goes up once, what comes back is what a person looks at."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing import bundle, wheels
from runner.aws.processing.jobs import END, Ended, Jobs, read_progress
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import Addresses, Place, attempt_key, job_name, request
from runner.aws.session import Session
from runner.content import atomic_write, walk
from runner.errors import Detached, RemoteError, UsageError
from runner.failpoint import reach
from runner.manifest import RunManifest
from runner.pipeline.credentials import FORMS, Redactor
from runner.pipeline.file import is_address
from runner.pipeline.remote import Settings, settings
from runner.records import Artifact, InputFact, Pipeline, StepError, StepJob, StepResult, decode, encode, read
from runner.run.folder import MODULES
from runner.run.inputs import origin
from runner.run.retries import STOPPED_BEFORE
from runner.run.store import Store, facts_of, files_of
from runner.run.world import Runtime
from runner.step.execute import JOB, RESULT, SOURCE, Progress

REQUEST, LOG = "request.json", "job.log"
LAST_LINES = 30  # of the log, in the error of a job that left no result


class SageMakerExecutor:
    """Implements `runner.run.world.Executor`. Safe to call from several threads."""

    def __init__(
        self,
        session: Session,
        pipeline: Pipeline,
        *,
        root: Path,
        store: Store,
        undeclared: Callable[[str], Iterable[str]] = lambda _: (),
    ) -> None:
        """`undeclared` names the project's files that a step read last time without their being inputs: they go along."""
        self._session, self._pipeline, self._root, self._store = session, pipeline, root, store
        self._undeclared = undeclared
        self._lock = threading.Lock()
        self._bundles: dict[tuple[str, ...], str] = {}
        self._prices: dict[str | None, Prices] = {}

    def expect(self, notebook: Path, *, threads: int) -> None:
        """A job starts when it is created; nothing can be had ahead."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """A job starts when it is created; nothing can be had ahead."""

    def close(self) -> None:
        """Nothing is held."""

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """As the protocol says; setting `stop` leaves the job running and raises Detached."""
        job = read(StepJob, folder / JOB)
        chosen = settings(self._pipeline, job.step)
        bucket = Bucket(self._session, chosen.bucket, chosen.prefix)
        name = job_name(self._pipeline.name, job.run, job.step, job.attempt)
        made = self._request(folder, name, job, chosen, bucket, on_progress)
        if stop.is_set():
            raise Detached(f"Step {job.step} was not started.", run=job.run)
        reach("job about to be created", job.step)
        jobs = Jobs(self._session, poll_s=chosen.poll_s)
        jobs.ensure(made)
        reach("job created", job.step)
        log = _Log(folder / LOG, job, on_progress)
        ended = jobs.follow(name, left=stop, on_line=log.line, on_status=log.status)
        log.close()
        if ended is None:
            raise Detached(f"The job {name} goes on.", run=job.run)
        reach("job ended", job.step)
        at = replace_prefix(bucket, attempt_key(job.run, job.step, job.attempt))
        return self._collect(folder, made, job, chosen, at, ended, log)

    def _request(
        self,
        folder: Path,
        name: str,
        job: StepJob,
        chosen: Settings,
        bucket: Bucket,
        on_progress: Callable[[Progress], None],
    ) -> dict[str, Any]:
        """What creates the job. Written down before it is sent, here and beside the job's input, so that a resumed run
        sends the very same, on whichever machine."""
        kept, key = folder / REQUEST, attempt_key(job.run, job.step, job.attempt)
        if kept.exists():
            made: dict[str, Any] = msgspec.json.decode(kept.read_bytes())
            if made["ProcessingJobName"] == name:
                return made
        there = bucket.get(key + REQUEST)
        if there is not None:
            atomic_write(kept, there)
            return dict(msgspec.json.decode(there))
        on_progress(Progress(job.step, 0, 0, None, "uploading"))
        inputs, files = self._inputs(job, bucket)
        code = self._code(folder, job, chosen, bucket)
        place = Place(
            job=name,
            bucket=chosen.bucket,
            key=chosen.prefix + key,
            region=self._session.region,
            image=chosen.image,
            instance=chosen.instance,
            code=bundle.name_of(code),
            notebook_folder=str(PurePosixPath(job.notebook).parent),
            files=files,
            secrets=chosen.prefix,
            kms_key=chosen.kms_key,
        )
        bucket.put(f"{key}job/{JOB}", encode(job))
        bucket.put(f"{key}job/place.json", encode(place))
        at = Addresses(
            bundle=bucket.address(self._bundle(chosen, bucket)),
            step=bucket.address(code),
            attempt=bucket.address(key),
            inputs=inputs,
        )
        made = request(name, job, chosen, at, project=self._pipeline.name)
        content = msgspec.json.encode(made)
        if not bucket.put(key + REQUEST, content, once=True):  # another machine was first, or the reply was lost
            content = bucket.get(key + REQUEST) or content
            made = msgspec.json.decode(content)
        atomic_write(kept, content)
        on_progress(Progress(job.step, 0, 0, None, "waiting for the instance"))
        return made

    def _bundle(self, chosen: Settings, bucket: Bucket) -> str:
        """The key of the runner with its environment, put there once for all steps of this process."""
        with self._lock:
            key = (chosen.bucket, chosen.prefix, chosen.lock, chosen.python, chosen.platform, chosen.packages)
            if key not in self._bundles:
                self._bundles[key] = put_runner(chosen, bucket, root=self._root)
            return self._bundles[key]

    def _code(self, folder: Path, job: StepJob, chosen: Settings, bucket: Bucket) -> str:
        made = step_bundle(folder, job.notebook, self._root, chosen, also=self._undeclared(job.step))
        return bundle.upload(bucket, "steps/", made)[0]

    def _inputs(self, job: StepJob, bucket: Bucket) -> tuple[dict[str, str], dict[str, str]]:
        """The address of each input that is copied to the job, and the name of its file there."""
        manifest = self._store.manifest_as_written(job.run)
        addresses, files = {}, {}
        for name, fact in job.inputs.items():
            if not fact.present or fact.as_ == "uri":
                continue
            addresses[name] = _address(fact, manifest, self._store, bucket, f"Input {name} of step {job.step}")
            files[name] = "" if addresses[name].endswith("/") else PurePosixPath(addresses[name]).name
        return addresses, files

    def _collect(
        self, folder: Path, made: dict[str, Any], job: StepJob, chosen: Settings, at: Bucket, ended: Ended, log: _Log
    ) -> StepResult:
        """The result as the job left it, with what is to be looked at; a failure of the job itself where it left none."""
        name, limit_s = made["ProcessingJobName"], made["StoppingCondition"]["MaxRuntimeInSeconds"]
        content = at.get(RESULT)
        result = decode(StepResult, content, where=at.address(RESULT)) if content is not None else None
        if result is not None and (result.remote is None or result.remote.name != name):
            raise RemoteError(f"{at.address(RESULT)} is not the result of the job {name}. Nothing of it was taken in.")
        if result is None or (result.error is None and ended.status != "Completed"):
            result = _without_result(job, ended, name, log)
        else:
            assert result.remote is not None
            price = self._prices_for(chosen).of(chosen.instance, ended.billed_s)
            paid = msgspec.structs.replace(result.remote, billed_s=ended.billed_s, price_usd=price)
            result = msgspec.structs.replace(result, remote=paid)
            if result.executed is not None:
                _bring(result.executed, folder, at)
            for output in result.outputs.values():
                if output.size_bytes <= chosen.small_mb * 1e6:
                    _bring(output, folder, at)
        if ended.status == "Stopped" and result.error is not None and result.error.kind == "interrupted":
            result = _stopped(result, result.error, ended, name, limit_s)
        atomic_write(folder / RESULT, encode(result))
        return result

    def _prices_for(self, chosen: Settings) -> Prices:
        with self._lock:
            if chosen.prices not in self._prices:
                self._prices[chosen.prices] = Prices.read(self._root / chosen.prices if chosen.prices else None)
            return self._prices[chosen.prices]


def runtime(pipeline: Pipeline, root: Path) -> Runtime:
    """What the pipeline's steps run on: the lock's pins for the image's Python, or the image as it is."""
    chosen = settings(pipeline)
    if chosen.packages == "image" and chosen.allow_other_versions:
        return Runtime(f"CPython {chosen.python} in a job", {"image": chosen.image})
    pins = wheels.pins(lock(chosen, root), python=chosen.python, platform=chosen.platform)
    digest = hashlib.sha256(msgspec.json.encode(pins, order="sorted")).hexdigest()
    return Runtime(f"CPython {chosen.python} in a job", {chosen.lock: digest[:12]})


def lock(chosen: Settings, root: Path) -> Path:
    """The project's lock file. Raises UsageError where there is none."""
    path = root / chosen.lock
    if not path.exists():
        raise UsageError(
            f"There is no {path}, which says what packages a job runs with. Write it with "
            f"`uv pip compile --universal --generate-hashes -o {chosen.lock} pyproject.toml`, or name it in [sagemaker] lock."
        )
    return path


def wheel_cache() -> Path:
    """Where downloaded wheels are kept, for all projects of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runner" / "wheels"


def environment(chosen: Settings, *, root: Path, keys: wheels.Environment | None) -> dict[str, Any]:
    """environment.json: what the job's bootstrap compares the image with, and where it finds what the image lacks."""
    return {
        "pins": dict(wheels.pins(lock(chosen, root), python=chosen.python, platform=chosen.platform)),
        "python": chosen.python,
        "packages": chosen.packages,
        "allow_other_versions": chosen.allow_other_versions,
        "wheels": keys.described if keys is not None else None,
    }


def put_runner(chosen: Settings, bucket: Bucket, *, root: Path) -> str:
    """Put the runner with its environment where jobs find it, once; its key."""
    keys, found = None, []
    if chosen.packages == "lock":
        found = wheels.wheels(lock(chosen, root), python=chosen.python, platform=chosen.platform, cache=wheel_cache())
        keys = wheels.upload(bucket, found)
    return bundle.upload(bucket, "bundles/", runner_bundle(chosen, found, root=root, keys=keys))[0]


def runner_bundle(
    chosen: Settings, found: Sequence[wheels.Wheel], *, root: Path, keys: wheels.Environment | None
) -> bundle.Bundle:
    """The runner with its environment; `found` are the lock's wheels, where the job may install them."""
    library = next((wheel.path.read_bytes() for wheel in found if wheel.filename.startswith("msgspec-")), None)
    return bundle.runner_bundle(environment(chosen, root=root, keys=keys), library=library)


def step_bundle(folder: Path, notebook: str, root: Path, chosen: Settings, *, also: Iterable[str]) -> bundle.Bundle:
    """A step's notebook and modules as in its run's folder, with the project's files that it reads beside them."""
    modules = dict(walk(folder / MODULES)) if (folder / MODULES).is_dir() else {}
    return bundle.code_bundle(
        (folder / SOURCE).read_bytes(),
        notebook=notebook,
        modules=modules,
        root=root,
        include=chosen.include,
        also=also,
        forms=FORMS,
    )


def replace_prefix(bucket: Bucket, key: str) -> Bucket:
    """The place below `key`."""
    return Bucket(bucket.session, bucket.name, bucket.prefix + key)


def _address(fact: InputFact, manifest: RunManifest, store: Store, bucket: Bucket, where: str) -> str:
    """Where the input's bytes lie in S3: where they are, or where they are put now, once for all jobs."""
    assert fact.artifact is not None
    if fact.listed:
        return fact.source
    upstream, _, output = fact.source.partition(".")
    state = next((state for state in manifest.steps if state.name == upstream), None)
    made = state.result if state is not None else None
    if made is not None and made.remote is not None and output in made.outputs:
        return made.remote.at + made.outputs[output].path
    outside = origin(fact, where, store)
    whole = fact.artifact.files is not None
    key = f"inputs/{fact.artifact.sha256}/"
    path = fact.artifact.path.partition("?")[0] if is_address(fact.source) else fact.artifact.path
    name = PurePosixPath(path.rstrip("/")).name or "source"
    for relative, part in facts_of(fact.artifact).items():
        found = store.object(part) if outside is None else outside / relative if relative else outside
        bucket.upload(key + (relative or name), found)
    return bucket.address(key if whole else key + name)


def _bring(found: Artifact, folder: Path, at: Bucket) -> None:
    for path, fact in files_of(found):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{path}.partial"
        at.download(path, beside, fact)
        beside.replace(folder / path)


def _without_result(job: StepJob, ended: Ended, name: str, log: _Log) -> StepResult:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    said = " ".join(filter(None, [ended.reason, ended.message])) or "it left no result"
    if ended.status == "Stopped":
        error = StepError(kind="interrupted", ename="Stopped", evalue=f"the job {name} was stopped")
    else:
        error = StepError(
            kind="remote",
            ename=ended.reason.partition(":")[0] or "NoResult",
            evalue=f"the job {name} ended {ended.status}: {said}",
            traceback=log.lines[-LAST_LINES:],
        )
    return StepResult(
        status="interrupted" if error.kind == "interrupted" else "failed",
        started=now,
        ended=now,
        seconds=ended.billed_s,
        cells=0,
        cells_run=0,
        inputs=dict(job.inputs),
        error=error,
        kernel=job.kernel,
    )


def _stopped(result: StepResult, error: StepError, ended: Ended, name: str, limit_s: int) -> StepResult:
    """The result of a step that was told to stop, by its time limit or by somebody; the service says Stopped of both."""
    if ended.billed_s >= limit_s:
        said = f"the job {name} ran into its time limit of {limit_s} s"
        late = msgspec.structs.replace(error, kind="timeout", ename="StepTimeout", evalue=said)
        return msgspec.structs.replace(result, status="failed", error=late)
    if ended.stopped_before:
        return msgspec.structs.replace(result, error=msgspec.structs.replace(error, ename=STOPPED_BEFORE))
    return result


class _Log:
    """The job's lines, written beside the step; those that say how far it is go to the display."""

    def __init__(self, path: Path, job: StepJob, on_progress: Callable[[Progress], None]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._job, self._on_progress = job, on_progress
        self._redactor = Redactor()
        self.lines: list[str] = []

    def line(self, line: str) -> None:
        progress = read_progress(line)
        if progress is not None:
            self._on_progress(Progress(self._job.step, *progress))
        elif line != END:
            text, _ = self._redactor.text(line)
            self.lines = [*self.lines[-LAST_LINES:], text]
            self._file.write(text + "\n")
            self._file.flush()

    def status(self, status: str) -> None:
        """What SageMaker calls it is not more than a person sees already."""

    def close(self) -> None:
        self._file.close()
