"""Which executor, registry and remote store a pipeline gets: the one place that knows this machine and the cloud."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runner.errors import UsageError
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, Registry
from runner.pipeline.file import load
from runner.records import USUAL_KERNEL, Artifact, Pipeline
from runner.run import sources
from runner.run.sources import Remote
from runner.run.store import Store, facts_of, found_here
from runner.run.world import Executor, Runtime, Silent, Watcher, World

if TYPE_CHECKING:
    from runner.aws.session import Session
    from runner.aws.shared import SharedRuns
    from runner.aws.studio import Published
    from runner.model.deployment import Deployer
    from runner.model.signature import Signature
    from runner.records import FileFact
    from runner.step.local import ForkServers

RUNS, REGISTRY = "runs", "registry.db"
LOCAL, SAGEMAKER = "local", "sagemaker"  # where steps run


def store(pipeline: Path) -> Store:
    """The runs beside the pipeline file. Raises PipelineError where there is no such file."""
    spec = load(pipeline)
    runs = open_store(pipeline.parent)
    if spec.store.runs is not None:
        shared(spec, runs, pipeline.parent).pull()
    return runs


def registry(pipeline: Path, *, profile: str | None = None, patience_s: float | None = None) -> Registry:
    """`patience_s` is how long a registry elsewhere is asked again where it does not answer."""
    spec = load(pipeline, profile)
    return _registry(pipeline.parent, spec, patience_s)


def world(
    file: Path,
    spec: Pipeline,
    *,
    on: str = LOCAL,
    kernel: str = USUAL_KERNEL,
    servers: ForkServers | None = None,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
) -> World:
    """What a run of the pipeline in `file` talks to, with its steps on this machine or in SageMaker.

    Runs that share `servers`, see `fork_servers`, share what their kernels import.
    """
    runs = open_store(file.parent)
    if spec.store.runs is not None:
        shared(spec, runs, file.parent).pull()
    executor: Executor
    match on:
        case "sagemaker":
            from runner.aws.processing.executor import SageMakerExecutor, runtime
            from runner.run.cache import Cache

            elsewhere: Runtime | None = runtime(spec, file.parent)
            cache = Cache(runs, file.parent)
            executor = SageMakerExecutor(session(spec), spec, root=file.parent, store=runs, undeclared=cache.undeclared)
        case _:
            from runner.step.local import LocalExecutor

            elsewhere = None
            executor = LocalExecutor(file.parent, kernel=kernel, servers=servers)
    return World(
        store=runs,
        executor=executor,
        registry=_registry(file.parent, spec),
        remote_for=remote_for,
        watcher=watcher or Silent(),
        stop=stop or threading.Event(),
        runtime=elsewhere,
        place=sources.place if elsewhere is None else sources.name_only,
        shared=shared(spec, runs, file.parent) if spec.store.runs is not None else None,
        identity=lambda: identity(spec),
    )


@contextmanager
def fork_servers() -> Iterator[ForkServers]:
    """For several runs on this machine; ended with the context."""
    from runner.step.local import ForkServers

    made = ForkServers()
    try:
        yield made
    finally:
        made.close()


def remote_for(address: str) -> Remote:
    match urlsplit(address).scheme:
        case "s3":
            from runner.aws.s3 import S3  # boto3

            return S3()
        case _:
            from runner.run.web import Web

            return Web()


def find_run(pipeline: Path, reference: str) -> str:
    """The run id for an id, a unique part of one, `latest`, or NAME/VERSION."""
    name, slash, number = reference.partition("/")
    runs = store(pipeline)
    run = registry(pipeline).get(name, int(number)).run if slash and number.isdecimal() else runs.find(reference)
    spec = load(pipeline)
    if spec.store.runs is not None:
        shared(spec, runs, pipeline.parent).complete(run)
    return run


class _Elsewhere:
    """Implements `runner.run.store.Remote`; AWS is asked only where an object's bytes are wanted that are not here."""

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        from runner.aws.s3 import S3

        S3().fetch(address, fact, target)

    def digest(self, address: str) -> FileFact:
        from runner.aws.s3 import S3

        return S3().digest(address)


def open_store(root: Path) -> Store:
    return Store(root / RUNS, _Elsewhere())


def shared(spec: Pipeline, runs: Store, root: Path) -> SharedRuns:
    from runner.aws.session import Session
    from runner.aws.shared import SharedRuns

    assert spec.store.runs is not None
    return SharedRuns(spec.store.runs, runs, root, Session(spec.sagemaker.region, kms_key=spec.sagemaker.kms_key))


def session(spec: Pipeline, patience_s: float | None = None) -> Session:
    from runner.aws.session import PATIENCE_S, Session
    from runner.pipeline.remote import settings

    chosen = settings(spec)
    return Session(chosen.region, patience_s=PATIENCE_S if patience_s is None else patience_s, kms_key=chosen.kms_key)


def _registry(root: Path, spec: Pipeline, patience_s: float | None = None) -> Registry:
    """By [model] registry, wherever the steps run."""
    match spec.model.registry if spec.model else LOCAL:
        case "sagemaker":
            from runner.aws import own_image
            from runner.aws.bucket import Bucket
            from runner.aws.registry import SageMakerRegistry
            from runner.pipeline.remote import settings

            chosen, runs = settings(spec), open_store(root)
            bucket = Bucket(session(spec, patience_s), chosen.bucket, chosen.prefix)
            return SageMakerRegistry(
                bucket.session,
                bucket,
                model_folder=lambda new: model_folder(runs, new.run, new.artifact),
                run_address=lambda run: bucket.address(f"runs/{run}/"),
                image=lambda: own_image.serving(
                    bucket.session, spec.name, chosen, root, chosen.serving_image, what="[sagemaker] serving_image"
                ),
                tags=chosen.tags,
                cache=root / RUNS / "registry-cache",
            )
        case _:
            return LocalRegistry(root / RUNS / REGISTRY)


def model_folder(runs: Store, run: str, found: Artifact) -> Path:
    """The folder of a run's model, its bytes brought here where they never were."""
    folder = runs.folder(run) / found.path
    if not found_here(runs.folder(run), found, runs):
        runs.link(found, folder)
    return folder


def version_folder(runs: Store, version: ModelVersion) -> Path:
    """The files of a version: its run's, or what the registry keeps of them where the run is not here."""
    if not version.location or runs.folder(version.run).exists():
        return model_folder(runs, version.run, version.artifact)
    for path, fact in facts_of(version.artifact).items():
        if not runs.here(fact):
            runs.point(fact, version.location + path)
    folder = runs.root / "registry-cache" / "models" / version.sha256
    runs.link(version.artifact, folder)
    return folder


def signature(pipeline: Path, version: ModelVersion) -> Signature:
    """What the version's callers send. Raises Tampered where its file is gone or another."""
    from runner.model.compatibility import signature_in

    if version.location:
        from runner.aws.package import signature as in_s3

        return in_s3(session(load(pipeline)), version)
    return signature_in(model_folder(store(pipeline), version.run, version.artifact), version)


def identity(spec: Pipeline) -> str:
    """Whom AWS takes the caller for, where it keeps the registry."""
    if spec.model is None or spec.model.registry == LOCAL:
        return ""
    from runner.aws.registry import caller

    return caller(session(spec))


def deployer(pipeline: Path, target: str, *, no_token: bool = False) -> Deployer:
    """Of one of [targets]; with `no_token` requests need none from now on. Raises UsageError naming those there are."""
    from runner.pipeline.file import nearest

    spec, root = load(pipeline), pipeline.parent
    chosen = spec.targets.get(target)
    if chosen is None:
        raise UsageError(f"There is no target {target!r} in {pipeline.name}{nearest(target, spec.targets)}")

    folder = root / RUNS / "targets" / target

    def folder_of(version: ModelVersion) -> Path:
        return version_folder(store(pipeline), version)

    match chosen.kind:
        case "sagemaker":
            from runner.aws.endpoint import SageMakerTarget

            return SageMakerTarget(
                target, chosen, session(spec), spec, registry=_registry(root, spec), model_folder=folder_of, root=root,
                folder=folder,
            )  # fmt: skip
        case _:
            from runner.model.served import recorded
            from runner.serve.local_target import LocalTarget

            return LocalTarget(
                target, chosen, folder, model_folder=folder_of, recorded=lambda: recorded(_registry(root, spec), target),
                token="" if no_token else os.environ.get("RUNNER_TOKEN") or None,
            )  # fmt: skip


def publish_template(pipeline: Path, *, bucket: str | None, dry_run: bool) -> Published:
    """Put infra/project.yaml where Studio offers it as a project template."""
    from runner.aws.studio import publish

    return publish(load(pipeline), pipeline.parent, bucket=bucket, dry_run=dry_run)
