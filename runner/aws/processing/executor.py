"""Steps run as processing jobs: what they need goes up once, what comes back is what a person looks at."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.own_image import for_jobs
from runner.aws.processing import bundle, step_queue, wheels
from runner.aws.processing.jobs import OVER, Ended, Jobs
from runner.aws.processing.outcome import Log, bring, stopped, without_result
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import MODULE, Addresses, Place, attempt_key, job_name, request
from runner.aws.processing.step_queue import ORDER, Order, Queue
from runner.aws.session import AwsError, Session
from runner.aws.settings import OWN, Settings, lock_file, one_machine, settings
from runner.content import atomic_write, walk
from runner.errors import Detached, RemoteError
from runner.failpoint import reach
from runner.manifest import RunManifest, StepState
from runner.notebook.redaction import FORMS
from runner.pipeline.file import is_address
from runner.records import InputFact, Pipeline, StepJob, StepResult, decode, encode, read
from runner.run.folder import MODULES, step_folder
from runner.run.inputs import origin
from runner.run.ports import Runtime
from runner.run.store import Store, facts_of
from runner.step.execute import JOB, RESULT, SOURCE, Progress

REQUEST, LOG = "request.json", "job.log"


class SageMakerExecutor:
    """Implements `runner.run.ports.Executor`. Safe to call from several threads."""

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
        self._queues: list[Queue] = []  # jobs that wait for a step
        self._prices: dict[str | None, Prices] = {}

    def expect(self, notebook: Path, *, threads: int) -> None:
        """A job starts when it is created; nothing can be had ahead."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """A job starts when it is created; nothing can be had ahead."""

    def close(self) -> None:
        """Jobs that wait for a step need not any more."""
        self._end_queues()

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """As the protocol says; setting `stop` leaves the job running and raises Detached."""
        job = read(StepJob, folder / JOB)
        chosen = settings(self._pipeline, job.step)
        bucket = Bucket(self._session, chosen.bucket, chosen.prefix)
        jobs, queue = Jobs(self._session, poll_s=chosen.poll_s), self._waiting(job)
        try:
            made = self._request(folder, job, chosen, bucket, on_progress, queue)
        except BaseException:
            self._give_back(queue)
            raise
        if queue is not None and made["ProcessingJobName"] != queue.job:  # it was asked for elsewhere, before
            self._give_back(queue)
            queue = None
        if stop.is_set():
            self._give_back(queue)
            raise Detached(f"Step {job.step} was not started.", run=job.run)
        at = replace_prefix(bucket, attempt_key(job.run, job.step, job.attempt))
        reach("job about to be created", job.step)
        if ORDER in made and not _stands(made, queue, jobs, bucket, at):
            made = self._request(folder, job, chosen, bucket, on_progress, None, anew=True)
        if ORDER not in made:
            jobs.ensure(made)
        reach("job created", job.step)
        log = Log(folder / LOG, job, on_progress)
        ended = self._followed(made, jobs, job, stop, log, at, queue)
        log.close()
        if ended is None:
            raise Detached(f"The job {made['ProcessingJobName']} goes on.", run=job.run)
        reach("job ended", job.step)
        return self._collect(folder, made, job, chosen, at, ended, log)

    def _followed(
        self,
        made: dict[str, Any],
        jobs: Jobs,
        job: StepJob,
        stop: threading.Event,
        log: Log,
        at: Bucket,
        queue: Queue | None,
    ) -> Ended | None:
        name = made["ProcessingJobName"]
        if ORDER not in made and made["AppSpecification"]["ContainerArguments"] != [step_queue.MODULE]:
            return jobs.follow(name, left=stop, on_line=log.line, on_status=log.status)
        queue = queue if queue is not None and queue.job == name else _queue(made, job)

        def is_done() -> bool:
            content = at.get(RESULT)
            return content is not None and decode(StepResult, content, where=at.address(RESULT)).error is None

        over = step_queue.follow(queue, jobs, job, left=stop, on_line=log.line, is_done=is_done)
        if over is None or over.goes_on:
            queue.number += ORDER in made
            self._give_back(queue)
        return over

    def _waiting(self, job: StepJob) -> Queue | None:
        """A job that takes the step. The others wait for nothing that comes: what runs next needs another machine."""
        with self._lock:
            found = next((queue for queue in self._queues if one_machine(self._pipeline, queue.step, job.step)), None)
            if found is not None:
                self._queues.remove(found)
        if found is None:
            self._end_queues()
        return found

    def _give_back(self, queue: Queue | None) -> None:
        if queue is not None:
            with self._lock:
                self._queues.append(queue)

    def _end_queues(self) -> None:
        with self._lock:
            waiting, self._queues = self._queues, []
        for queue in waiting:
            chosen = settings(self._pipeline, queue.step)
            with contextlib.suppress(AwsError):  # it ends by itself, later
                queue.end(Bucket(self._session, chosen.bucket, chosen.prefix))

    def _request(
        self,
        folder: Path,
        job: StepJob,
        chosen: Settings,
        bucket: Bucket,
        on_progress: Callable[[Progress], None],
        queue: Queue | None,
        *,
        anew: bool = False,
    ) -> dict[str, Any]:
        """What creates the job, or orders the step from one that is there. Written down before it is sent, here and
        beside the job's input, so that a resumed run sends the very same, on whichever machine; `anew` in its place."""
        kept, key = folder / REQUEST, attempt_key(job.run, job.step, job.attempt)
        name = job_name(self._pipeline.name, job.run, job.step, job.attempt)
        if kept.exists() and not anew:
            made: dict[str, Any] = msgspec.json.decode(kept.read_bytes())
            if name in (made["ProcessingJobName"], made.get(ORDER, {}).get("for")):
                return made
        there = None if anew else bucket.get(key + REQUEST)
        if there is not None:
            atomic_write(kept, there)
            return dict(msgspec.json.decode(there))
        chosen = for_jobs(self._session, self._pipeline.name, chosen, self._root)
        on_progress(Progress(job.step, 0, 0, None, "uploading"))
        inputs, files = self._inputs(job, bucket)
        code = self._code(folder, job, chosen, bucket)
        place = Place(
            job=name if queue is None else queue.job,
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
        if queue is None:
            at = Addresses(
                bundle=bucket.address(self._bundle(chosen, bucket)),
                step=bucket.address(code),
                attempt=bucket.address(key),
                inputs=inputs,
            )
            shared = [step for step in self._pipeline.steps if one_machine(self._pipeline, job.step, step)]
            timeouts_s = {step: self._pipeline.steps[step].timeout_s for step in shared} | {job.step: job.timeout_s}
            module = step_queue.MODULE if len(timeouts_s) > 1 else MODULE
            made = request(
                name, job, chosen, at, project=self._pipeline.name, module=module, timeouts_s=timeouts_s.values()
            )
        else:
            order = Order(step=job.step, attempt=bucket.prefix + key, code=bucket.address(code), inputs=inputs)
            made = queue.request(order, name)
        content = msgspec.json.encode(made)
        # another machine may be first, or the reply be lost
        if not bucket.put(key + REQUEST, content, once=not anew):
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
        self, folder: Path, made: dict[str, Any], job: StepJob, chosen: Settings, at: Bucket, ended: Ended, log: Log
    ) -> StepResult:
        """The result as the job left it, with what is to be looked at; a failure of the job itself where it left none."""
        name, limit_s = made["ProcessingJobName"], made["StoppingCondition"]["MaxRuntimeInSeconds"]
        content = at.get(RESULT)
        result = decode(StepResult, content, where=at.address(RESULT)) if content is not None else None
        if result is not None and (result.remote is None or result.remote.name != name):
            raise RemoteError(f"{at.address(RESULT)} is not the result of the job {name}. Nothing of it was taken in.")
        if result is None or (result.error is None and ended.status != "Completed"):
            result = without_result(job, ended, name, log)
        else:
            assert result.remote is not None
            billed_s = ended.billed_s if result.remote.billed_s is None else result.remote.billed_s
            price = self._prices_for(chosen).of(chosen.instance, billed_s)
            paid = msgspec.structs.replace(result.remote, billed_s=billed_s, price_usd=price)
            result = msgspec.structs.replace(result, remote=paid)
            if result.executed is not None:
                bring(result.executed, folder, at)
            for output in result.outputs.values():
                if output.size_bytes <= chosen.small_mb * 1e6:
                    bring(output, folder, at)
        if ended.status == "Stopped" and result.error is not None and result.error.kind == "interrupted":
            result = stopped(result, result.error, ended, name, limit_s)
        atomic_write(folder / RESULT, encode(result))
        return result

    def _prices_for(self, chosen: Settings) -> Prices:
        with self._lock:
            if chosen.prices not in self._prices:
                self._prices[chosen.prices] = Prices.read(self._root / chosen.prices if chosen.prices else None)
            return self._prices[chosen.prices]


def job_of(manifest: RunManifest, state: StepState, store: Store, session: Session) -> str:
    """The name of the job that executes the step: its own, or the one it was ordered from."""
    chosen = settings(manifest.pipeline, state.name)
    name = job_name(manifest.pipeline.name, manifest.run, state.name, state.attempt)
    if not chosen.together:
        return name
    kept = step_folder(store, manifest.run, state.name) / REQUEST
    key = attempt_key(manifest.run, state.name, state.attempt) + REQUEST
    content = Bucket(session, chosen.bucket, chosen.prefix).get(key) if not kept.exists() else kept.read_bytes()
    made = msgspec.json.decode(content) if content else {}
    return str(made["ProcessingJobName"]) if made.get(ORDER, {}).get("for") == name else name


def _queue(made: dict[str, Any], job: StepJob) -> Queue:
    """The job that the step was ordered from, or that was made for it to be the first of some."""
    order = made.get(ORDER)
    limit = made["StoppingCondition"]
    if order is None:
        at = f"{attempt_key(job.run, job.step, job.attempt)}queue/"
        return Queue(made["ProcessingJobName"], at, job.step, limit)
    return Queue(made["ProcessingJobName"], order["at"], order["first"], limit, number=order["number"])


def _stands(made: dict[str, Any], queue: Queue | None, jobs: Jobs, bucket: Bucket, at: Bucket) -> bool:
    """Whether the job that the step is ordered from executes it, or has. It may have ended meanwhile."""
    order = made[ORDER]
    if queue is None:
        found = jobs.find(made["ProcessingJobName"])
        if found is None or found["ProcessingJobStatus"] in OVER:
            return found is not None and at.size(RESULT) is not None
    wanted = msgspec.convert(order["order"], Order)
    return step_queue.put_order(bucket, order["at"], order["number"], wanted)


def runtime(pipeline: Pipeline, root: Path) -> Runtime:
    """What the pipeline's steps run on: the lock's pins for the image's Python, or the image as it is."""
    chosen = settings(pipeline)
    if chosen.packages == "image" and chosen.allow_other_versions and chosen.image != OWN:
        return Runtime(f"CPython {chosen.python} in a job", {"image": chosen.image})
    pins = wheels.pins(lock_file(chosen, root), python=chosen.python, platform=chosen.platform)
    digest = hashlib.sha256(msgspec.json.encode(pins, order="sorted")).hexdigest()
    return Runtime(f"CPython {chosen.python} in a job", {chosen.lock: digest[:12]})


def environment(chosen: Settings, *, root: Path, keys: wheels.Environment | None) -> dict[str, Any]:
    """environment.json: what the job's bootstrap compares the image with, and where it finds what the image lacks."""
    return {
        "pins": dict(wheels.pins(lock_file(chosen, root), python=chosen.python, platform=chosen.platform)),
        "python": chosen.python,
        "packages": chosen.packages,
        "allow_other_versions": chosen.allow_other_versions,
        "wheels": keys.described if keys is not None else None,
    }


def put_runner(chosen: Settings, bucket: Bucket, *, root: Path) -> str:
    """Put the runner with its environment where jobs find it, once; its key."""
    keys, found = None, []
    if chosen.packages == "lock":
        found = wheels.wheels(
            lock_file(chosen, root), python=chosen.python, platform=chosen.platform, cache=wheels.kept_folder()
        )
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
