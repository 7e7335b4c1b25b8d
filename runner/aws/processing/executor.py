"""Steps run as processing or training jobs: what they need goes up once, what comes back is what a person looks at."""

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
from runner.aws.processing import bundle, step_queue, training, wheels
from runner.aws.processing.inputs import put_inputs
from runner.aws.processing.jobs import OVER, PROCESSING, JobEnd, Jobs, Kind, kind_of, name_in
from runner.aws.processing.outcome import JobLog, bring, stopped, without_result
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import MODULE, JobAddresses, JobPlace, attempt_key, job_name, request
from runner.aws.processing.step_queue import ORDER, JobQueue, StepOrder
from runner.aws.session import AwsError, Session
from runner.aws.settings import OWN, Settings, lock_file, one_machine, settings
from runner.content import atomic_write, walk
from runner.errors import Detached, RemoteError
from runner.failpoint import reach
from runner.manifest import RunManifest, StepState
from runner.notebook.redaction import FORMS
from runner.records import Pipeline, StepJob, StepResult, decode, encode, read
from runner.run.folder import MODULES, step_folder
from runner.run.ports import Runtime
from runner.run.store import Store
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
        self._queues: list[JobQueue] = []  # jobs that wait for a step
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
        queue = self._waiting(job)
        try:
            made = self._request(folder, job, chosen, bucket, on_progress, queue)
        except BaseException:
            self._give_back(queue)
            raise
        if queue is not None and name_in(made) != queue.job:  # it was asked for elsewhere, before
            self._give_back(queue)
            queue = None
        if stop.is_set():
            self._give_back(queue)
            raise Detached(f"Step {job.step} was not started.", run=job.run)
        jobs = Jobs(self._session, poll_s=chosen.poll_s, kind=kind_of(made))
        at = replace_prefix(bucket, attempt_key(job.run, job.step, job.attempt))
        reach("job about to be created", job.step)
        if ORDER in made and not _stands(made, queue, jobs, bucket, at):
            made = self._request(folder, job, chosen, bucket, on_progress, None, anew=True)
        if ORDER not in made:
            jobs.ensure(made)
        reach("job created", job.step)
        log = JobLog(folder / LOG, job, on_progress)
        ended = self._followed(made, jobs, job, stop, log, at, queue)
        log.close()
        if ended is None:
            raise Detached(f"The job {name_in(made)} goes on.", run=job.run)
        reach("job ended", job.step)
        return self._collect(folder, made, job, chosen, at, ended, log)

    def _followed(
        self,
        made: dict[str, Any],
        jobs: Jobs,
        job: StepJob,
        stop: threading.Event,
        log: JobLog,
        at: Bucket,
        queue: JobQueue | None,
    ) -> JobEnd | None:
        name = name_in(made)
        if ORDER not in made and _arguments(made) != [step_queue.MODULE]:
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

    def _waiting(self, job: StepJob) -> JobQueue | None:
        """A job that takes the step. The others wait for nothing that comes: what runs next needs another machine."""
        with self._lock:
            found = next((queue for queue in self._queues if one_machine(self._pipeline, queue.step, job.step)), None)
            if found is not None:
                self._queues.remove(found)
        if found is None:
            self._end_queues()
        return found

    def _give_back(self, queue: JobQueue | None) -> None:
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
        queue: JobQueue | None,
        *,
        anew: bool = False,
    ) -> dict[str, Any]:
        """What creates the job, or orders the step from one that is there. Written down before it is sent, here and
        beside the job's input, so that a resumed run sends the very same, on whichever machine; `anew` in its place."""
        kept, key = folder / REQUEST, attempt_key(job.run, job.step, job.attempt)
        name = job_name(self._pipeline.name, job.run, job.step, job.attempt)
        if kept.exists() and not anew:
            made: dict[str, Any] = msgspec.json.decode(kept.read_bytes())
            if name in (name_in(made), made.get(ORDER, {}).get("for")):
                return made
        there = None if anew else bucket.get(key + REQUEST)
        if there is not None:
            atomic_write(kept, there)
            return dict(msgspec.json.decode(there))
        chosen = for_jobs(self._session, self._pipeline.name, chosen, self._root)
        on_progress(Progress(job.step, 0, 0, None, "uploading"))
        inputs, files = put_inputs(job, self._store, bucket)
        code = self._code(folder, job, chosen, bucket)
        place = JobPlace(
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
        if queue is not None:
            order = StepOrder(step=job.step, attempt=bucket.prefix + key, code=bucket.address(code), inputs=inputs)
            made = queue.request(order, name)
        else:
            at = JobAddresses(
                bundle=bucket.address(self._bundle(chosen, bucket)),
                step=bucket.address(code),
                attempt=bucket.address(key),
                inputs=inputs,
            )
            made = self._of_one_job(name, job, chosen, at, folder)
        content = msgspec.json.encode(made)
        # another machine may be first, or the reply be lost
        if not bucket.put(key + REQUEST, content, once=not anew):
            content = bucket.get(key + REQUEST) or content
            made = msgspec.json.decode(content)
        atomic_write(kept, content)
        on_progress(Progress(job.step, 0, 0, None, "waiting for the instance"))
        return made

    def _of_one_job(self, name: str, job: StepJob, chosen: Settings, at: JobAddresses, folder: Path) -> dict[str, Any]:
        """What creates a job for the step, and for those that may share it."""
        pipeline = self._pipeline
        if chosen.trains:
            metrics = training.metrics(pipeline, job.step, folder / SOURCE)
            return training.request(name, job, chosen, at, project=pipeline.name, metrics=metrics)
        shared = [step for step in pipeline.steps if one_machine(pipeline, job.step, step)]
        timeouts_s = {step: pipeline.steps[step].timeout_s for step in shared} | {job.step: job.timeout_s}
        module = step_queue.MODULE if len(timeouts_s) > 1 else MODULE
        return request(name, job, chosen, at, project=pipeline.name, module=module, timeouts_s=timeouts_s.values())

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

    def _collect(
        self, folder: Path, made: dict[str, Any], job: StepJob, chosen: Settings, at: Bucket, ended: JobEnd, log: JobLog
    ) -> StepResult:
        """The result as the job left it, with what is to be looked at; a failure of the job itself where it left none."""
        name, limit_s = name_in(made), made["StoppingCondition"]["MaxRuntimeInSeconds"]
        content = at.get(RESULT)
        result = decode(StepResult, content, where=at.address(RESULT)) if content is not None else None
        told = result.remote if result is not None else None
        if result is not None and (told is None or told.name != name or not told.at.startswith(at.address(""))):
            raise RemoteError(f"{at.address(RESULT)} is not the result of the job {name}. Nothing of it was taken in.")
        if result is None or not _is_last(result, ended):
            result = without_result(job, ended, name, log)
        else:
            assert result.remote is not None
            billed_s = ended.billed_s if result.remote.billed_s is None else result.remote.billed_s
            price = self._prices_for(chosen).of(chosen.instance, billed_s)
            paid = msgspec.structs.replace(result.remote, billed_s=billed_s, price_usd=price)
            result = msgspec.structs.replace(result, remote=paid)
            there = replace_prefix(at, paid.at.removeprefix(at.address("")))
            if result.executed is not None:
                bring(result.executed, folder, there)
            for output in result.outputs.values():
                if output.size_bytes <= chosen.small_mb * 1e6:
                    bring(output, folder, there)
        if ended.status == "Stopped" and result.error is not None and result.error.kind == "interrupted":
            result = stopped(result, result.error, ended, name, limit_s)
        atomic_write(folder / RESULT, encode(result))
        return result

    def _prices_for(self, chosen: Settings) -> Prices:
        with self._lock:
            if chosen.prices not in self._prices:
                self._prices[chosen.prices] = Prices.read(self._root / chosen.prices if chosen.prices else None)
            return self._prices[chosen.prices]


def kind_for(chosen: Settings) -> Kind:
    """Of the job that a step is made."""
    return "Training" if chosen.trains else PROCESSING


def job_of(manifest: RunManifest, state: StepState, store: Store, session: Session) -> tuple[Kind, str]:
    """Kind and name of the job that executes the step: its own, or the one it was ordered from."""
    chosen = settings(manifest.pipeline, state.name)
    name = job_name(manifest.pipeline.name, manifest.run, state.name, state.attempt)
    if not chosen.together:
        return kind_for(chosen), name
    kept = step_folder(store, manifest.run, state.name) / REQUEST
    key = attempt_key(manifest.run, state.name, state.attempt) + REQUEST
    content = Bucket(session, chosen.bucket, chosen.prefix).get(key) if not kept.exists() else kept.read_bytes()
    made = msgspec.json.decode(content) if content else {}
    return PROCESSING, str(made["ProcessingJobName"]) if made.get(ORDER, {}).get("for") == name else name


def _is_last(result: StepResult, ended: JobEnd) -> bool:
    """Whether the job's end is that of the start that left the result: one whose instance was taken away may have left
    one too, as interrupted."""
    if result.error is None:
        return ended.status == "Completed"
    return result.error.kind != "interrupted" or ended.status == "Stopped"


def _arguments(made: dict[str, Any]) -> list[str]:
    """Of the container; none of them are of a training job."""
    arguments: list[str] = made.get("AppSpecification", {}).get("ContainerArguments", [])
    return arguments


def _queue(made: dict[str, Any], job: StepJob) -> JobQueue:
    """The job that the step was ordered from, or that was made for it to be the first of some."""
    order = made.get(ORDER)
    limit = made["StoppingCondition"]
    if order is None:
        at = f"{attempt_key(job.run, job.step, job.attempt)}queue/"
        return JobQueue(made["ProcessingJobName"], at, job.step, limit)
    return JobQueue(made["ProcessingJobName"], order["at"], order["first"], limit, number=order["number"])


def _stands(made: dict[str, Any], queue: JobQueue | None, jobs: Jobs, bucket: Bucket, at: Bucket) -> bool:
    """Whether the job that the step is ordered from executes it, or has. It may have ended meanwhile."""
    order = made[ORDER]
    if queue is None:
        found = jobs.find(made["ProcessingJobName"])
        if found is None or found["ProcessingJobStatus"] in OVER:
            return found is not None and at.size(RESULT) is not None
    wanted = msgspec.convert(order["order"], StepOrder)
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
