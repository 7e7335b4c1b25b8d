"""What an endpoint has captured, in S3: the objects of some hours, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.aws.endpoint_request import endpoint_name
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.model.captured import hour_of, local_files, time_text, within
from runner.records import Pipeline, SageMakerTargetSpec

BATCH = "batch"  # among an endpoint's variants: what was scored elsewhere


@dataclass(frozen=True)
class CapturedObject:
    """Implements `runner.model.captured.CapturedFile`."""

    bucket: Bucket
    path: str

    def lines(self) -> Iterator[bytes]:
        content = self.bucket.get(self.path)
        for line in (content or b"").split(b"\n"):
            if line.strip():
                yield line


def capture_address(pipeline: Pipeline, target: str) -> str:
    """Where the endpoint of a target puts what it captures: s3://BUCKET/PREFIX/, as its configuration is made."""
    spec = pipeline.targets[target]
    written = spec.capture.to if spec.capture is not None else None
    aws = settings(pipeline)
    return f"{(written or f's3://{aws.bucket}/{aws.prefix}captured/{target}').rstrip('/')}/"


def send_captured(session: Session, pipeline: Pipeline, target: str, folder: Path) -> None:
    """Put the closed files of a folder, with what was scored here, beside what the endpoint captures itself."""
    spec = pipeline.targets[target]
    assert isinstance(spec, SageMakerTargetSpec)
    name, key = split(capture_address(pipeline, target))
    bucket = Bucket(session, name, f"{key}{endpoint_name(pipeline.name, target, spec)}/{BATCH}/")
    for file in local_files(folder):
        path = Path(file.path)
        bucket.upload(path.relative_to(folder).as_posix(), path)


def captured_files(
    session: Session, pipeline: Pipeline, target: str, *, since: str = "", until: str = ""
) -> Iterator[CapturedObject]:
    """The objects of the endpoint that may have requests of these times; see `runner.model.captured.windows`.

    The service puts them below ENDPOINT/VARIANT/yyyy/mm/dd/hh/, `send_captured` below ENDPOINT/batch/yyyy-mm-dd/hh-.
    """
    spec = pipeline.targets[target]
    assert isinstance(spec, SageMakerTargetSpec)
    name, key = split(capture_address(pipeline, target))
    bucket = Bucket(session, name, key)
    since, until = (time_text(bound) if bound else "" for bound in (since, until))
    below = f"{endpoint_name(pipeline.name, target, spec)}/"
    found = (CapturedObject(bucket, path) for path, _ in bucket.keys(below))
    yield from sorted((one for one in found if within(one.path, since, until)), key=lambda one: hour_of(one.path))
