"""The archive of a version in SageMaker's registry: the very one that was registered, or a refusal."""

from __future__ import annotations

from dataclasses import replace

from runner.aws.bucket import Bucket
from runner.aws.package import CODE, ModelSource, check_package
from runner.aws.registry import SageMakerRegistry
from runner.errors import Tampered
from runner.model.files import sha256_of
from runner.model.versions import ModelVersion, Registry


def check_registered(registry: Registry, version: ModelVersion) -> None:
    """As `check_archive`, where SageMaker keeps the registry."""
    if isinstance(registry, SageMakerRegistry):
        check_archive(registry, version)


def check_archive(
    registry: SageMakerRegistry, version: ModelVersion, *, running: bool = False
) -> tuple[ModelSource, dict[str, bytes]]:
    """The version's archive as an endpoint fetches it, and its files, all as registered.

    Raises Tampered where the archive, its package or the model in it is another, Refused as `check_package` does.
    """
    registered, label = registry.deployable(version.name, version.version), version.label
    bucket, _, key = registered.archive.removeprefix("s3://").partition("/")
    archive = Bucket(registry.session, bucket).get(key)
    if archive is None:
        raise Tampered(f"{registered.archive}, the model of {label}, is gone.")
    files = check_package(archive, registered.archive_sha256, running=running)
    if sha256_of({name: content for name, content in files.items() if not name.startswith(CODE)}) != version.sha256:
        raise Tampered(f"{registered.archive} has other files than {label} was registered with.")
    description = registry.groups.describe(registered.package)
    containers = description["InferenceSpecification"]["Containers"]
    addresses = [container.get("ModelDataUrl") for container in containers]
    if addresses != [registered.archive]:
        raise Tampered(f"{registered.package} names {addresses} as its model; registered was {registered.archive}.")
    return replace(registered, packaged_image=str(containers[0].get("Image", ""))), files
