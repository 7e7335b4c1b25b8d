"""Registries of both kinds, and versions of two models for them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from account import identities, key
from small_sagemaker import SmallSageMaker

from runner.aws.bucket import Bucket
from runner.aws.registry import SageMakerRegistry
from runner.aws.session import Session
from runner.content import folder_artifact
from runner.errors import Tampered
from runner.model.events import verify_chain
from runner.model.versions import ModelVersion, NewVersion, Registry
from runner.records import Artifact, FileFact, Metric

RUN = "20261122-1016{:02d}-7f3a"


# Two models, by the hash of their folders: SageMaker's registry takes the bytes themselves
def contents(trees: str) -> dict[str, bytes]:
    return {"model.json": f'{{"trees": "{trees}"}}'.encode(), "signature.json": b"{}"}


def hash_of(files: dict[str, bytes]) -> str:
    facts = {
        name: FileFact(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for name, data in files.items()
    }
    return folder_artifact("model", facts).sha256


MODELS = {hash_of(contents(trees)): contents(trees) for trees in ("first", "second")}
FIRST_MODEL, SECOND_MODEL = MODELS
BUCKET = "models"


@contextlib.contextmanager
def started() -> Iterator[SmallSageMaker]:
    """A SageMaker that this process and its children talk to, with a bucket."""
    with SmallSageMaker() as made, pytest.MonkeyPatch.context() as patch:
        # who registers and decides in this process, whatever the model and the prefix
        made.attach(identities(Project="any", Bucket=BUCKET, Prefix="*", Model="*"))
        for variable, value in {**made.environment, **key("owner")}.items():
            patch.setenv(variable, value)
        made.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": made.region})
        yield made


def emptied(cloud: SmallSageMaker) -> SmallSageMaker:
    """Without faults, recorded calls and groups, so that numbers begin at 1."""
    cloud.faults.clear()
    client = cloud.client("sagemaker")
    for group in client.list_model_package_groups()["ModelPackageGroupSummaryList"]:
        name = group["ModelPackageGroupName"]
        for package in client.list_model_packages(ModelPackageGroupName=name, MaxResults=100)[
            "ModelPackageSummaryList"
        ]:
            client.delete_model_package(ModelPackageName=package["ModelPackageArn"])
        client.delete_model_package_group(ModelPackageGroupName=name)
    cloud.forget_calls()
    return cloud


def folder_of(new: NewVersion, below: Path) -> Path:
    """The folder with the model of that hash."""
    folder = below / new.sha256
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in MODELS[new.sha256].items():
        if not (folder / name).exists():  # another process may be reading it
            (folder / name).write_bytes(data)
    return folder


def in_sagemaker(folder: Path, *, cache: Path | None = None, **settings: Any) -> SageMakerRegistry:
    """A registry at a prefix of the folder's name."""
    session = Session(patience_s=20)
    return SageMakerRegistry(
        session,
        Bucket(session, BUCKET, f"{folder.name}/"),
        model_folder=lambda new: folder_of(new, folder / "folders"),
        cache=cache,
        **settings,
    )


def new(number: int, *, name: str = "m", sha256: str = FIRST_MODEL) -> NewVersion:
    return NewVersion(
        name=name,
        run=RUN.format(number),
        sha256=sha256,
        artifact=Artifact(path="steps/train/out/model", sha256=sha256, size_bytes=12),
        metrics={"evaluate.auc": Metric(value=0.875, low=0.84, high=0.91, better="higher")},
        created_by="ana",
        commit="4e1c2d",
        sources={"data.source": "cd" * 32},
        description="Tiny model",
        card="# Card\n\nÄ small one.",
    )


def numbers(versions: Sequence[ModelVersion]) -> list[tuple[str, int, str]]:
    return [(version.name, version.version, version.status) for version in versions]


def everything(registry: Registry) -> list[Any]:
    """All that can be read from it, with the chains checked."""
    versions = registry.list()
    names = sorted({version.name for version in versions})
    events = [registry.events(name) for name in names]
    for name, chain in zip(names, events, strict=True):
        broken = verify_chain(chain)
        if broken is not None:
            raise Tampered(f"{name}: {broken}")
    single = [registry.get(version.name, version.version) for version in versions]
    return [versions, single, events, [registry.approved(name) for name in names]]
