"""Steps as processing or training jobs: their code and inputs are uploaded once, results for people come back."""

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
from runner.aws.processing.jobs import OVER, PROCESSING, JobEnd, Jobs, Kind, kind_of, machines_in, name_in
from runner.aws.processing.outcome import JobLog, download_results, result_at, stopped, with_price, without_result
from runner.aws.processing.prices import project_prices
from runner.aws.processing.request import MODULE, JobAddresses, JobKeys, JobPlace, attempt_key, job_name, job_timeout_s
from runner.aws.processing.request import request as processing_request
from runner.aws.processing.step_queue import ORDER, JobQueue, StepOrder
from runner.aws.session import AwsError, Session
from runner.aws.settings import OWN, Settings, lock_file, one_machine, settings
from runner.content import atomic_write, walk
from runner.errors import Detached, RemoteError
from runner.failpoint import reach
from runner.manifest import RunManifest, StepState
from runner.pipeline.mapping import source
from runner.records import Pipeline, StepJob, StepResult, encode, read
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
        """`undeclared` gives the project's files that a step has read without their being inputs: they are sent too."""
        self._session, self._pipeline, self._root, self._store = session, pipeline, root, store
        self._undeclared = undeclared
        self._lock = threading.Lock()
        self._runners: dict[tuple[str, ...], str] = {}  # keys of bundles
        self._queues: list[JobQueue] = []  # jobs that wait for a step

    def expect(self, notebook: Path, *, threads: int) -> None:
        """Nothing: a job starts when it is created."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """Nothing: a job starts when it is created."""

    def close(self) -> None:
        """End the jobs that wait for a step."""
        self._end_queues()

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        """As the protocol says; setting `stop` leaves the job running and raises Detached."""
        job = read(StepJob, folder / JOB)
        job_settings = settings(self._pipeline, job.step)
        bucket = Bucket(self._session, job_settings.bucket, job_settings.prefix)
        queue = self._waiting(job)
        try:
            request = self._request(folder, job, job_settings, bucket, on_progress, queue)
            if stop.is_set():
                raise Detached(f"Step {job.step} was not started.", run=job.run, goes_on=False)
        except BaseException:
            self._give_back(queue)
            raise
        if queue is not None and name_in(request) != queue.job:  # the step was ordered from another job before
            self._give_back(queue)
            queue = None
        jobs = Jobs(self._session, poll_s=job_settings.poll_s, kind=kind_of(request))
        attempt = replace_prefix(bucket, attempt_key(job.run, job.step, job.attempt))
        reach("job about to be created", job.step)
        if ORDER in request and not _is_ordered(request, queue, jobs, bucket, attempt):
            request = self._request(folder, job, job_settings, bucket, on_progress, None, anew=True)
        if ORDER not in request:
            jobs.ensure(request)
        reach("job created", job.step)
        log = JobLog(folder / LOG, job, on_progress)
        ended = self._follow(request, jobs, job, stop, log, attempt, queue)
        log.close()
        if ended is None:
            raise Detached(f"The job {name_in(request)} goes on.", run=job.run)
        reach("job ended", job.step)
        return self._collect(folder, request, job, job_settings, attempt, ended, log)

    def _follow(
        self,
        request: dict[str, Any],
        jobs: Jobs,
        job: StepJob,
        stop: threading.Event,
        log: JobLog,
        attempt: Bucket,
        queue: JobQueue | None,
    ) -> JobEnd | None:
        name = name_in(request)
        arguments = request.get("AppSpecification", {}).get("ContainerArguments")
        if ORDER not in request and arguments != [step_queue.MODULE]:
            return jobs.follow(name, detach=stop, log=jobs.logs(name, log.line, machines=machines_in(request)))
        if queue is None or queue.job != name:
            queue = _queue(request, job)

        def is_done() -> bool:
            result = result_at(attempt)
            return result is not None and result.error is None

        ended = step_queue.follow(queue, jobs, job, detach=stop, on_line=log.line, is_done=is_done)
        if ended is None or ended.goes_on:
            queue.number += ORDER in request
            self._give_back(queue)
        return ended

    def _waiting(self, job: StepJob) -> JobQueue | None:
        """A job that takes the step. Without one all others are ended: the next steps need another machine."""
        with self._lock:
            queue = next((queue for queue in self._queues if one_machine(self._pipeline, queue.step, job.step)), None)
            if queue is not None:
                self._queues.remove(queue)
        if queue is None:
            self._end_queues()
        return queue

    def _give_back(self, queue: JobQueue | None) -> None:
        if queue is not None:
            with self._lock:
                self._queues.append(queue)

    def _end_queues(self) -> None:
        with self._lock:
            waiting, self._queues = self._queues, []
        for queue in waiting:
            job_settings = settings(self._pipeline, queue.step)
            with contextlib.suppress(AwsError):  # it ends by itself, later
                queue.end(Bucket(self._session, job_settings.bucket, job_settings.prefix))

    def _request(
        self,
        folder: Path,
        job: StepJob,
        job_settings: Settings,
        bucket: Bucket,
        on_progress: Callable[[Progress], None],
        queue: JobQueue | None,
        *,
        anew: bool = False,
    ) -> dict[str, Any]:
        """The request that creates the job, or the order of the step from a running one. Written before it is sent,
        into the step's folder and into S3, so that a resumed run sends an equal one on any machine; `anew` replaces it.
        """
        file, key = folder / REQUEST, attempt_key(job.run, job.step, job.attempt)
        name = job_name(self._pipeline.name, job.run, job.step, job.attempt)
        if file.exists() and not anew:
            request: dict[str, Any] = msgspec.json.decode(file.read_bytes())
            if name in (name_in(request), request.get(ORDER, {}).get("for")):
                return request
        content = None if anew else bucket.get(key + REQUEST)
        if content is not None:
            atomic_write(file, content)
            return dict(msgspec.json.decode(content))
        job_settings = for_jobs(self._session, self._pipeline.name, job_settings, self._root)
        on_progress(Progress(job.step, 0, 0, None, "uploading"))
        inputs, files = put_inputs(job, self._store, bucket)
        step_code = step_bundle(folder, job.notebook, self._root, job_settings, also=self._undeclared(job.step))
        code = bundle.upload(bucket, "steps/", step_code)[0]
        place = JobPlace(
            job=name if queue is None else queue.job,
            bucket=job_settings.bucket,
            key=job_settings.prefix + key,
            region=self._session.region,
            image=job_settings.image,
            instance=job_settings.instance,
            machines=job_settings.instance_count,
            code=bundle.name_of(code),
            notebook_folder=str(PurePosixPath(job.notebook).parent),
            files=files,
            secrets=job_settings.prefix,
            kms_key=job_settings.kms_key,
            keys=self._keys(job, job_settings),
        )
        bucket.put(f"{key}job/{JOB}", encode(job))
        bucket.put(f"{key}job/place.json", encode(place))
        if queue is not None:
            order = StepOrder(step=job.step, attempt=bucket.prefix + key, code=bucket.address(code), inputs=inputs)
            request = queue.request(order, name)
        else:
            addresses = JobAddresses(
                bundle=bucket.address(self._runner(job_settings, bucket)),
                step=bucket.address(code),
                attempt=bucket.address(key),
                inputs=inputs,
            )
            request = self._new_job(name, job, job_settings, addresses, folder)
        content = msgspec.json.encode(request)
        # another machine may be first, or the reply be lost
        if not bucket.put(key + REQUEST, content, once=not anew):
            content = bucket.get(key + REQUEST) or content
            request = msgspec.json.decode(content)
        atomic_write(file, content)
        on_progress(Progress(job.step, 0, 0, None, "waiting for the instance"))
        return request

    def _new_job(
        self, name: str, job: StepJob, job_settings: Settings, addresses: JobAddresses, folder: Path
    ) -> dict[str, Any]:
        """The request that creates a job for the step, and for those that may share it."""
        pipeline = self._pipeline
        if job_settings.trains:
            metrics = training.metrics(pipeline, job.step, folder / SOURCE)
            return training.request(name, job, job_settings, addresses, project=pipeline.name, metrics=metrics)
        shared = [step for step in pipeline.steps if one_machine(pipeline, job.step, step)]
        timeouts_s = {step: job_timeout_s(pipeline.steps[step]) for step in {*shared, job.step}}
        module = step_queue.MODULE if len(timeouts_s) > 1 else MODULE
        return processing_request(
            name, job, job_settings, addresses, project=pipeline.name, module=module, timeouts_s=timeouts_s.values()
        )

    def _keys(self, job: StepJob, job_settings: Settings) -> JobKeys | None:
        """What a mapped step's job is told of its keys."""
        spec = self._pipeline.steps[job.step]
        if not spec.map:
            return None
        key = self._store.manifest_as_written(job.run).step(job.step).key
        assert key is not None
        return JobKeys(parameter=source(spec)[0], step_key=key, share=spec.share, small_mb=job_settings.small_mb)

    def _runner(self, job_settings: Settings, bucket: Bucket) -> str:
        """The key of the runner with its environment, uploaded once for all steps of this process."""
        with self._lock:
            key = (bucket.name, bucket.prefix, *packaging(job_settings))
            if key not in self._runners:
                self._runners[key] = put_runner(job_settings, bucket, root=self._root)
            return self._runners[key]

    def _collect(
        self,
        folder: Path,
        request: dict[str, Any],
        job: StepJob,
        job_settings: Settings,
        attempt: Bucket,
        ended: JobEnd,
        log: JobLog,
    ) -> StepResult:
        """The job's result, with small outputs downloaded; a failure of the job itself where there is no result."""
        name, limit_s = name_in(request), request["StoppingCondition"]["MaxRuntimeInSeconds"]
        prefix, result = attempt.address(""), result_at(attempt)
        remote = result.remote if result is not None else None
        if result is not None and (remote is None or remote.name != name or not remote.at.startswith(prefix)):
            raise RemoteError(f"{prefix}{RESULT} is not the result of the job {name}. Nothing of it was taken in.")
        if result is None or remote is None or not _is_last(result, ended):
            result = without_result(job, ended, name, log)
        else:
            result = with_price(result, project_prices(job_settings, self._root), ended.billed_s)
            source = replace_prefix(attempt, remote.at.removeprefix(prefix))
            download_results(result, folder, source, small_mb=job_settings.small_mb)
        if ended.status == "Stopped" and result.error is not None and result.error.kind == "interrupted":
            result = stopped(result, result.error, ended, name, limit_s)
        atomic_write(folder / RESULT, encode(result))
        return result


def kind_for(job_settings: Settings) -> Kind:
    """The kind of job that a step with these settings has."""
    return "Training" if job_settings.trains else PROCESSING


def job_of(manifest: RunManifest, state: StepState, store: Store, session: Session) -> tuple[Kind, str]:
    """Kind and name of the job that executes the step: its own, or the one it was ordered from."""
    job_settings = settings(manifest.pipeline, state.name)
    name = job_name(manifest.pipeline.name, manifest.run, state.name, state.attempt)
    if not job_settings.together:
        return kind_for(job_settings), name
    file = step_folder(store, manifest.run, state.name) / REQUEST
    key = attempt_key(manifest.run, state.name, state.attempt) + REQUEST
    bucket = Bucket(session, job_settings.bucket, job_settings.prefix)
    content = file.read_bytes() if file.exists() else bucket.get(key)
    request = msgspec.json.decode(content) if content else {}
    return PROCESSING, str(request["ProcessingJobName"]) if request.get(ORDER, {}).get("for") == name else name


def _is_last(result: StepResult, ended: JobEnd) -> bool:
    """Whether the result is that of the job's last start: one whose instance was taken away may have left an
    interrupted one."""
    if result.error is None:
        return ended.status == "Completed"
    return result.error.kind != "interrupted" or ended.status == "Stopped"


def _queue(request: dict[str, Any], job: StepJob) -> JobQueue:
    """The job that the step was ordered from, or that was created for it and steps to come."""
    name, limit, order = request["ProcessingJobName"], request["StoppingCondition"], request.get(ORDER)
    if order is None:
        return JobQueue(name, f"{attempt_key(job.run, job.step, job.attempt)}queue/", job.step, limit)
    return JobQueue(name, order["at"], order["first"], limit, number=order["number"])


def _is_ordered(request: dict[str, Any], queue: JobQueue | None, jobs: Jobs, bucket: Bucket, attempt: Bucket) -> bool:
    """Whether the job that the step is ordered from executes it, or has executed it. The job may have ended."""
    order = request[ORDER]
    if queue is None:
        description = jobs.find(request["ProcessingJobName"])
        if description is None or jobs.status(description) in OVER:
            return description is not None and attempt.size(RESULT) is not None
    return step_queue.put_order(bucket, order["at"], order["number"], msgspec.convert(order["order"], StepOrder))


def runtime(pipeline: Pipeline, root: Path) -> Runtime:
    """What the pipeline's steps run on: the lock's pins for the image's Python, or the image as it is."""
    job_settings = settings(pipeline)
    name = f"CPython {job_settings.python} in a job"
    if job_settings.packages == "image" and job_settings.allow_other_versions and job_settings.image != OWN:
        return Runtime(name, {"image": job_settings.image})
    digest = hashlib.sha256(msgspec.json.encode(_pins(job_settings, root), order="sorted")).hexdigest()
    return Runtime(name, {job_settings.lock: digest[:12]})


def packaging(job_settings: Settings) -> tuple[str, ...]:
    """The settings that the runner's bundle depends on."""
    return job_settings.lock, job_settings.python, job_settings.platform, job_settings.packages


def _pins(job_settings: Settings, root: Path) -> dict[str, str]:
    file = lock_file(job_settings, root)
    return wheels.pins(file, python=job_settings.python, platform=job_settings.platform)


def lock_wheels(job_settings: Settings, root: Path) -> list[wheels.Wheel]:
    """The wheels that a job may install; none where the image has the packages."""
    if job_settings.packages != "lock":
        return []
    file, cache = lock_file(job_settings, root), wheels.kept_folder()
    return wheels.wheels(file, python=job_settings.python, platform=job_settings.platform, cache=cache)


def put_runner(job_settings: Settings, bucket: Bucket, *, root: Path) -> str:
    """Upload the runner with its environment for all jobs, once; its key."""
    packages = lock_wheels(job_settings, root)
    if job_settings.packages == "lock":
        wheels.upload(bucket, packages)
    return bundle.upload(bucket, "bundles/", runner_bundle(job_settings, packages, bucket, root=root))[0]


def runner_bundle(
    job_settings: Settings, packages: Sequence[wheels.Wheel], bucket: Bucket, *, root: Path
) -> bundle.Bundle:
    """The runner with environment.json, which the bootstrap compares the image with; `packages` as by `lock_wheels`."""
    environment = {
        "pins": _pins(job_settings, root),
        "python": job_settings.python,
        "packages": job_settings.packages,
        "allow_other_versions": job_settings.allow_other_versions,
        "wheels": wheels.described(bucket, packages) if job_settings.packages == "lock" else None,
    }
    library = next((wheel.path.read_bytes() for wheel in packages if wheel.filename.startswith("msgspec-")), None)
    return bundle.runner_bundle(environment, library=library)


def step_bundle(
    folder: Path, notebook: str, root: Path, job_settings: Settings, *, also: Iterable[str]
) -> bundle.Bundle:
    """A step's notebook and modules as in its run's folder, with the project's files that it reads beside them."""
    modules = dict(walk(folder / MODULES)) if (folder / MODULES).is_dir() else {}
    source = (folder / SOURCE).read_bytes()
    include = job_settings.include
    return bundle.code_bundle(source, notebook=notebook, modules=modules, root=root, include=include, also=also)


def replace_prefix(bucket: Bucket, key: str) -> Bucket:
    """The bucket with `key` added to its prefix."""
    return Bucket(bucket.session, bucket.name, bucket.prefix + key)
