"""Registration of a version inside a job of a SageMaker Pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec

from runner import __version__
from runner.aws.bucket import Bucket
from runner.aws.pipelines.execution_job import ExecutionJob
from runner.aws.pipelines.pin import registry
from runner.aws.pipelines.pushed import Pins
from runner.aws.processing import inside
from runner.aws.registry import SageMakerRegistry
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.errors import RunnerError
from runner.manifest import RunManifest, StepState, recorded
from runner.model.versions import NewVersion
from runner.records import StepError, StepJob, StepResult, Verdict, encode
from runner.run.registration import commit, commit_unasked, own_request
from runner.run.store import facts_of

VERSION = "version.json"


def registered(
    results: Mapping[str, StepResult],
    job: StepJob,
    execution_job: ExecutionJob,
    pins: Pins,
    bucket: Bucket,
    verdict: Verdict | None,
) -> StepResult:
    """The result of `job`, one of `results`, after its model is registered; a failed one where that was refused."""
    request = results[job.step].registration
    assert request is not None
    manifest = _manifest(results, pins, verdict)
    with _registry(results, job, execution_job, pins, bucket) as versions:
        try:
            version = commit(manifest, request, versions, content=None)
        except RunnerError as error:
            refused = StepError(kind="refused", ename=type(error).__name__, evalue=str(error))
            return msgspec.structs.replace(results[job.step], status="failed", error=refused)
    execution_job.folder(bucket.session, job.step).put(VERSION, encode(version))
    return results[job.step]


def register_unasked(
    results: Mapping[str, StepResult],
    jobs: Mapping[str, StepJob],
    execution_job: ExecutionJob,
    pins: Pins,
    bucket: Bucket,
    verdict: Verdict,
) -> None:
    """Register the model of an execution that passed, where no step of its pipeline does.

    `jobs` are those that gave the results, in this execution or an earlier one. Raises as `commit_unasked`.
    """
    manifest = _manifest(results, pins, verdict)
    states = [
        msgspec.structs.replace(
            state,
            status="succeeded" if jobs[state.name].run == pins.run else "cached",
            parameters=jobs[state.name].parameters,
        )
        for state in manifest.steps
    ]
    manifest = msgspec.structs.replace(manifest, steps=states)
    request = own_request(manifest)
    if request is None:
        return
    with _registry(results, None, execution_job, pins, bucket) as versions:
        version = commit_unasked(manifest, request, versions, content=None)
    execution_job.folder(bucket.session).put(VERSION, encode(version))


def _manifest(results: Mapping[str, StepResult], pins: Pins, verdict: Verdict | None) -> RunManifest:
    """What is known of the execution as a run, while it goes on."""
    pushed, (metrics, problems) = pins.pushed, recorded(results)
    specs = pushed.pipeline.steps
    return RunManifest(
        run=pins.run,
        pipeline_file=pushed.file,
        pipeline=pushed.pipeline,
        started_by=pins.started_by,
        identity=pins.identity,
        started=pins.started,
        status="running",
        steps=[StepState(name=name, notebook=specs[name].notebook, result=result) for name, result in results.items()],
        sources={pin.of: pin.fact for pin in pins.pins.values()},
        champion=pins.champion,
        metrics=metrics,
        problems=problems,
        verdict=verdict,
        git=pushed.git,
        environment=pins.environment,
        runner_version=__version__,
    )


@contextmanager
def _registry(
    results: Mapping[str, StepResult], job: StepJob | None, execution_job: ExecutionJob, pins: Pins, bucket: Bucket
) -> Iterator[SageMakerRegistry]:
    """The registry, and in the context what it downloads."""
    with tempfile.TemporaryDirectory() as scratch:
        yield registry(
            pins.pushed.pipeline,
            bucket,
            model_folder=lambda new: _model(new, job, results, bucket.session, Path(scratch)),
            run_address=lambda _: execution_job.execution,
            image=pins.pushed.serving_image,
        )


def _model(
    new: NewVersion, job: StepJob | None, results: Mapping[str, StepResult], session: Session, scratch: Path
) -> Path:
    """The model's folder: where the step read it, or downloaded from the results of the step that made it."""
    for name, fact in job.inputs.items() if job is not None else ():
        if fact.artifact is not None and fact.artifact.sha256 == new.sha256:
            return (inside.step_folder() / "in" / name).resolve()
    step = PurePosixPath(new.artifact.path).parts[1]
    remote = results[step].remote
    assert remote is not None
    name, key = split(remote.at)
    path = new.artifact.path.removeprefix(f"steps/{step}/")
    for relative, part in facts_of(new.artifact).items():
        (scratch / relative).parent.mkdir(parents=True, exist_ok=True)
        Bucket(session, name, key).download(f"{path}/{relative}", scratch / relative, part)
    return scratch
