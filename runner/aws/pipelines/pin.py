"""What an execution of a SageMaker Pipeline is started with, checked and held to before its first notebook runs."""

from __future__ import annotations

import ast
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.package import serving_image
from runner.aws.pipelines.pushed import ABSENT, ABSENT_KEY, Pin, Pins, Pushed, pin_key, put_source
from runner.aws.registry import SageMakerRegistry
from runner.aws.s3 import S3
from runner.aws.session import AwsError, Session
from runner.aws.settings import settings
from runner.errors import PipelineError
from runner.manifest import Champion
from runner.model.versions import NewVersion
from runner.notebook.types import DoesNotFit, Type, parse_annotation, read_text
from runner.pipeline.addresses import public
from runner.pipeline.file import APPROVED, is_address
from runner.records import InputFact, InputSpec, Pipeline
from runner.run import provenance, sources
from runner.run.store import Store
from runner.run.web import Web


def pins(pushed: Pushed, values: Mapping[str, str], bucket: Bucket, *, execution: str, started: str) -> Pins:
    """Everything the execution depends on from outside, identified. `values` are the Pipeline's parameters by key.

    Raises PipelineError with every value that does not fit, RemoteError for a source that is not there.
    """
    _check(pushed, values)
    found: dict[str, Pin] = {}
    champion: Champion | None = None
    for of in pushed.sources:
        step, _, name = of.partition(".")
        spec = pushed.pipeline.steps[step].inputs[name]
        if spec.from_.startswith(APPROVED):
            found[pin_key(pushed, of)], pinned = _approved(of, spec, pushed.pipeline, bucket)
            champion = pinned or champion
        else:
            asked = msgspec.structs.replace(spec, from_=values[of])
            found[pin_key(pushed, of)] = _source(of, asked, bucket)
    who, arn = _starter(bucket.session, execution)
    return Pins(
        run=run_id(started, execution),
        execution=execution,
        started=started,
        started_by=who,
        identity=arn,
        parameters=dict(values),
        pins=found,
        champion=champion,
        environment=provenance.environment(),
        pushed=pushed,
    )


def run_id(started: str, execution: str) -> str:
    """The id of the run that an execution is, made of when it began (ISO 8601) and its ARN."""
    try:
        moment = datetime.fromisoformat(started).astimezone(UTC)
    except ValueError:
        moment = datetime.now(UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{hashlib.sha256(execution.encode()).hexdigest()[:4]}"


def registry(
    pipeline: Pipeline,
    bucket: Bucket,
    *,
    model_folder: Callable[[NewVersion], Path],
    run_address: Callable[[str], str] | None = None,
    image: str | None = None,
) -> SageMakerRegistry:
    """SageMaker's registry as the pipeline has it, for a job; `image` serves what is registered."""
    chosen = settings(pipeline)
    return SageMakerRegistry(
        bucket.session,
        bucket,
        model_folder=model_folder,
        run_address=run_address,
        image=lambda: serving_image(bucket.session.region, image or chosen.serving_image),
        tags=chosen.tags,
    )


def _check(pushed: Pushed, values: Mapping[str, str]) -> None:
    findings = []
    for parameter in pushed.parameters:
        for notebook, written in parameter.types.items():
            try:
                read_text(values[parameter.key], _type(written))
            except DoesNotFit as error:
                findings.append(f"-p {parameter.key}: {error}, declared in {notebook}.")
    for of in pushed.sources:
        if values.get(of) and not is_address(values[of]):
            findings.append(
                f"-p {of}: {values[of]!r} is not an address that a job can read; write s3://… or https://…."
            )
    if findings:
        raise PipelineError(*findings)


def _type(written: str | None) -> Type | None:
    return None if written is None else parse_annotation(ast.parse(written, mode="eval").body)


def _source(of: str, spec: InputSpec, bucket: Bucket) -> Pin:
    """A source as it is now; one on the web is brought into the bucket, from where jobs can be given it."""
    absent = Pin(of=of, fact=sources.absent(public(spec.from_)), address=bucket.address(ABSENT_KEY), digest=ABSENT)
    if not spec.from_:
        return absent
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        if not spec.from_.startswith("s3://") and spec.as_ == "path":
            spec = msgspec.structs.replace(spec, from_=_brought(spec.from_, bucket, Path(scratch)))
        service = S3(bucket.session) if spec.from_.startswith("s3://") else Web()
        fact = sources.remote(spec, store, lambda _: service, fetch=False)
    if fact.artifact is None:
        return absent
    return Pin(of=of, fact=fact, address=fact.source, digest=fact.artifact.sha256)


def _brought(address: str, bucket: Bucket, scratch: Path) -> str:
    service = Web()
    target = scratch / (PurePosixPath(address.partition("?")[0]).name or "source")
    with target.open("wb") as file:
        service.download(address, service.listing(address)[0], file)
    return put_source(target, bucket, below="runs/inputs/")  # where the jobs' role may write


def _approved(of: str, spec: InputSpec, pipeline: Pipeline, bucket: Bucket) -> tuple[Pin, Champion | None]:
    """The approved version's folder; its bytes are compared where they are read."""

    def nothing(_: NewVersion) -> Path:
        raise AssertionError

    name = spec.from_.removeprefix(APPROVED)
    version = registry(pipeline, bucket, model_folder=nothing).approved(name)
    if version is None:
        return Pin(of=of, fact=sources.absent(spec.from_), address=bucket.address(ABSENT_KEY), digest=ABSENT), None
    fact = InputFact(source=spec.from_, artifact=version.artifact, version=version.label)
    champion = Champion(name=version.name, version=version.version, run=version.run, sha256=version.sha256)
    return Pin(of=of, fact=fact, address=version.location, digest=version.sha256), champion


def _starter(session: Session, execution: str) -> tuple[str, str]:
    """(name, ARN) of whoever started the execution, as far as the job's role may know; the ARN is "" where it may not."""
    try:
        found = session.call(
            "sagemaker", "describe_pipeline_execution", about=execution, PipelineExecutionArn=execution
        ).get("CreatedBy", {})
    except AwsError:
        found = {}
    arn = str(found.get("IamIdentity", {}).get("Arn", ""))
    return str(found.get("UserProfileName") or arn.rpartition("/")[2] or f"pipeline {execution.split('/')[1]}"), arn
