"""The pins of an execution: its parameters and sources, checked and identified before its first notebook runs."""

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
from runner.notebook.types import DoesNotFit, parse_annotation, read_text
from runner.pipeline.addresses import public
from runner.pipeline.file import APPROVED, AT_TARGET, is_address
from runner.records import InputFact, InputSpec, Pipeline
from runner.run import provenance, sources
from runner.run.store import Store
from runner.run.web import Web


def pins(pushed: Pushed, values: Mapping[str, str], bucket: Bucket, *, execution: str, started: str) -> Pins:
    """Everything outside that the execution depends on, identified. `values` are the Pipeline's parameters by key.

    Raises PipelineError with every value that does not fit, RemoteError for a source that does not exist.
    """
    _check(pushed, values)
    by_key: dict[str, Pin] = {}
    champion: Champion | None = None
    for of in pushed.sources:
        step, _, name = of.partition(".")
        spec = pushed.pipeline.steps[step].inputs[name]
        if spec.from_.startswith(APPROVED):
            by_key[pin_key(pushed, of)], approved = _approved(of, spec, pushed.pipeline, bucket)
            champion = approved or champion
        elif spec.from_.startswith(AT_TARGET):
            from runner.aws.pipelines.pin_target import target_pin  # numpy, which the first jobs of others have not

            versions = registry(pushed.watched or pushed.pipeline, bucket, model_folder=_no_folder)
            by_key[pin_key(pushed, of)] = target_pin(of, pushed, values, bucket, versions)
        else:
            by_key[pin_key(pushed, of)] = _source(of, msgspec.structs.replace(spec, from_=values[of]), bucket)
    who, arn = _starter(bucket.session, execution)
    return Pins(
        run=run_id(started, execution),
        execution=execution,
        started=started,
        started_by=who,
        identity=arn,
        parameters=dict(values),
        pins=by_key,
        champion=champion,
        environment=provenance.environment(),
        pushed=pushed,
    )


def run_id(started: str, execution: str) -> str:
    """The id of an execution as a run, made of its start (ISO 8601) and its ARN."""
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
    """SageMaker's registry for a job of the pipeline; `image` serves the versions that are registered."""
    defaults = settings(pipeline)
    return SageMakerRegistry(
        bucket.session,
        bucket,
        model_folder=model_folder,
        run_address=run_address,
        image=lambda: serving_image(bucket.session.region, image or defaults.serving_image),
        tags=defaults.tags,
    )


def _check(pushed: Pushed, values: Mapping[str, str]) -> None:
    findings = []
    for parameter in pushed.parameters:
        for notebook, written in parameter.types.items():
            try:
                type_ = None if written is None else parse_annotation(ast.parse(written, mode="eval").body)
                read_text(values[parameter.key], type_)
            except DoesNotFit as error:
                findings.append(f"-p {parameter.key}: {error}, declared in {notebook}.")
    for of in pushed.sources:
        if values.get(of) and not is_address(values[of]):
            findings.append(
                f"-p {of}: {values[of]!r} is not an address that a job can read; write s3://… or https://…."
            )
    if findings:
        raise PipelineError(*findings)


def _source(of: str, spec: InputSpec, bucket: Bucket) -> Pin:
    """A source as it is now; one on the web is copied into the bucket, for the jobs."""
    absent = Pin(of=of, fact=sources.absent(public(spec.from_)), address=bucket.address(ABSENT_KEY), digest=ABSENT)
    if not spec.from_:
        return absent
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        if not spec.from_.startswith("s3://") and spec.as_ == "path":
            spec = msgspec.structs.replace(spec, from_=_copied_source(spec.from_, bucket, Path(scratch)))
        service = S3(bucket.session) if spec.from_.startswith("s3://") else Web()
        fact = sources.remote(spec, store, lambda _: service, fetch=False)
    if fact.artifact is None:
        return absent
    return Pin(of=of, fact=fact, address=fact.source, digest=fact.artifact.sha256)


def _copied_source(address: str, bucket: Bucket, scratch: Path) -> str:
    service = Web()
    target = scratch / (PurePosixPath(address.partition("?")[0]).name or "source")
    with target.open("wb") as file:
        service.download(address, service.listing(address)[0], file)
    return put_source(target, bucket, below="runs/inputs/")  # where the jobs' role may write


def _approved(of: str, spec: InputSpec, pipeline: Pipeline, bucket: Bucket) -> tuple[Pin, Champion | None]:
    """The approved version's folder; its bytes are compared where they are read."""

    name = spec.from_.removeprefix(APPROVED)
    version = registry(pipeline, bucket, model_folder=_no_folder).approved(name)
    if version is None:
        return Pin(of=of, fact=sources.absent(spec.from_), address=bucket.address(ABSENT_KEY), digest=ABSENT), None
    fact = InputFact(source=spec.from_, artifact=version.artifact, version=version.label)
    champion = Champion(name=version.name, version=version.version, run=version.run, sha256=version.sha256)
    return Pin(of=of, fact=fact, address=version.location, digest=version.sha256), champion


def _no_folder(_: NewVersion) -> Path:
    """Of a registry in which nothing is registered."""
    raise AssertionError


def _starter(session: Session, execution: str) -> tuple[str, str]:
    """(name, ARN) of whoever started the execution; the ARN is "" where the job's role may not know it."""
    try:
        argument = {"PipelineExecutionArn": execution}
        description = session.call("sagemaker", "describe_pipeline_execution", about=execution, **argument)
    except AwsError:
        description = {}
    creator = description.get("CreatedBy", {})
    arn = str(creator.get("IamIdentity", {}).get("Arn", ""))
    return str(creator.get("UserProfileName") or arn.rpartition("/")[2] or f"pipeline {execution.split('/')[1]}"), arn
