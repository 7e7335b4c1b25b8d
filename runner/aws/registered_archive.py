"""The archive of a version in SageMaker's registry: the very one that was registered, or a refusal."""

from __future__ import annotations

from runner.aws.bucket import Bucket
from runner.aws.endpoint_request import Source
from runner.aws.package import CODE, check_package
from runner.aws.registry import SageMakerRegistry
from runner.content import bytes_fact, folder_artifact
from runner.errors import Tampered
from runner.model.versions import ModelVersion, Registry


def check_registered(registry: Registry, version: ModelVersion) -> None:
    """As `check_archive`, where SageMaker keeps the registry."""
    if isinstance(registry, SageMakerRegistry):
        check_archive(registry, version)


def check_archive(registry: SageMakerRegistry, version: ModelVersion) -> tuple[Source, dict[str, bytes]]:
    """The version's archive as an endpoint will fetch it, and its files, all as registered.

    Raises Tampered where the archive, its package or the model in it is another, Refused for a pickle.
    """
    found, label = registry.deployable(version.name, version.version), version.label
    bucket, _, key = found.archive.removeprefix("s3://").partition("/")
    data = Bucket(registry.session, bucket).get(key)
    if data is None:
        raise Tampered(f"{found.archive}, the model of {label}, is gone.")
    files = check_package(data, found.archive_sha256)
    facts = {name: bytes_fact(content) for name, content in files.items() if not name.startswith(CODE)}
    if folder_artifact("", facts).sha256 != version.sha256:
        raise Tampered(f"{found.archive} has other files than {label} was registered with.")
    described = registry.groups.describe(found.package)
    addresses = [one.get("ModelDataUrl") for one in described["InferenceSpecification"]["Containers"]]
    if addresses != [found.archive]:
        raise Tampered(f"{found.package} names {addresses} as its model; registered was {found.archive}.")
    return Source(found.archive, found.archive_sha256, found.package, ""), files
