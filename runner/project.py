"""The one object that a command works with: a pipeline file and what belongs to it, each read or opened once.

The only place that chooses between this machine and the cloud; what runs, keeps or serves is behind a protocol.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from runner.content import atomic_write
from runner.errors import Refused, UsageError
from runner.failpoint import reach
from runner.manifest import Imported, ModelVersionRef, RunManifest
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, NewVersion, Registry
from runner.pipeline.file import load, nearest
from runner.records import USUAL_KERNEL, Artifact, Capture, Pipeline, SageMakerTargetSpec, Target, utc_text
from runner.run import sources
from runner.run.folder import PIPELINE
from runner.run.ports import Executor, Runtime, RunWatcher, Silent, WatchedTarget, World
from runner.run.sources import RemoteSource
from runner.run.store import Store, facts_of, is_fetched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.aws.session import Session
    from runner.aws.shared import SharedRuns
    from runner.model.captured import Captured
    from runner.model.deployment import Deployer
    from runner.model.signature import Signature
    from runner.records import FileFact
    from runner.serve.capture_settings import CaptureSettings
    from runner.step.local import ForkServers

RUNS, REGISTRY = "runs", "registry.db"
LOCAL, SAGEMAKER = "local", "sagemaker"  # where steps run, and where versions are registered
LOOK_S = 5.0  # for a version's present status; without an answer the run is shown as it ended


class Project:
    """The pipeline in `file`, with `profile` over it; its runs lie beside the file.

    Nothing is read before it is needed. Every part but `store_here` raises PipelineError for a missing or wrong file.
    """

    def __init__(self, file: Path, *, profile: str | None = None, patience_s: float | None = None) -> None:
        """`patience_s` is how long requests to AWS are repeated; None is minutes, for who has started something."""
        self.file, self.root, self.profile, self.patience_s = file, file.parent, profile, patience_s

    @cached_property
    def spec(self) -> Pipeline:
        return load(self.file, self.profile)

    @cached_property
    def watched(self) -> Project:
        """The project whose targets this one's notebooks look at: of the file in [monitor] of, beside this one."""
        monitor = self.spec.monitor
        if monitor is None or monitor.of == self.file.name:
            return self
        return Project(self.root / monitor.of, patience_s=self.patience_s)

    def of(self, spec: Pipeline) -> Project:
        """The same place with another specification, such as the one that a run was made by."""
        project = Project(self.file, patience_s=self.patience_s)
        project.spec = spec
        return project

    @cached_property
    def store_here(self) -> Store:
        """The runs as they lie on this machine."""
        return Store(self.root / RUNS, _RemoteObjects())

    @cached_property
    def shared(self) -> SharedRuns | None:
        """What keeps the runs where others see them, where [store] runs is set."""
        if self.spec.store.runs is None:
            return None
        from runner.aws.session import Session
        from runner.aws.shared import SharedRuns

        session = Session(self.spec.sagemaker.region, kms_key=self.spec.sagemaker.kms_key)
        return SharedRuns(self.spec.store.runs, self.store_here, self.root, session)

    @cached_property
    def store(self) -> Store:
        """The runs, with those that others have shared."""
        if self.shared is not None:
            self.shared.pull()
        return self.store_here

    @cached_property
    def registry(self) -> Registry:
        """By [model] registry, wherever the steps run."""
        return self.registry_within(None)

    @property
    def registry_is_remote(self) -> bool:
        return self.spec.model is not None and self.spec.model.registry != LOCAL

    @property
    def local_registry(self) -> LocalRegistry:
        return LocalRegistry(self.root / RUNS / REGISTRY)

    def registry_within(self, patience_s: float | None) -> Registry:
        """`patience_s` is how long requests to a remote registry are repeated while it does not answer."""
        if self.watched is not self:
            return self.watched.registry_within(patience_s)
        if not self.registry_is_remote:
            return self.local_registry
        from runner.aws import own_image
        from runner.aws.bucket import Bucket
        from runner.aws.registry import SageMakerRegistry
        from runner.aws.settings import settings

        aws, store = settings(self.spec), self.store_here
        bucket = Bucket(self.session(patience_s), aws.bucket, aws.prefix)
        key = "[sagemaker] serving_image"
        return SageMakerRegistry(
            bucket.session,
            bucket,
            model_folder=lambda new: model_folder(store, new.run, new.artifact),
            run_address=lambda run: bucket.address(f"runs/{run}/"),
            image=lambda: own_image.serving(
                bucket.session, self.spec.name, aws, self.root, aws.serving_image, what=key
            ),
            tags=aws.tags,
            cache=self.root / RUNS / "registry-cache",
        )

    def rebuild_registry(self) -> None:
        """Make the local registry anew from its events' copies; see `LocalRegistry.rebuild`."""
        load(self.file, self.profile)
        self.local_registry.rebuild()

    def session(self, patience_s: float | None = None) -> Session:
        from runner.aws.session import PATIENCE_S, Session
        from runner.aws.settings import settings

        aws, known = settings(self.spec), (patience_s, self.patience_s, PATIENCE_S)
        patience_s = next(limit for limit in known if limit is not None)
        return Session(aws.region, patience_s=patience_s, kms_key=aws.kms_key)

    @property
    def identity(self) -> str:
        """The caller's ARN where AWS keeps the registry; otherwise ""."""
        if not self.registry_is_remote:
            return ""
        from runner.aws.registry import caller

        return caller(self.session())

    def world(
        self,
        *,
        on: str = LOCAL,
        kernel: str = USUAL_KERNEL,
        servers: ForkServers | None = None,
        watcher: RunWatcher | None = None,
        stop: threading.Event | None = None,
    ) -> World:
        """What a run talks to, with its steps on this machine or in SageMaker.

        Runs that share `servers`, see `fork_servers`, share what their kernels import.
        """
        store = self.store
        executor: Executor
        runtime: Runtime | None = None
        if on == SAGEMAKER:
            from runner.aws.processing import executor as remote
            from runner.run.cache import Cache

            runtime = remote.runtime(self.spec, self.root)
            undeclared = Cache(store, self.root).undeclared
            executor = remote.SageMakerExecutor(
                self.session(), self.spec, root=self.root, store=store, undeclared=undeclared
            )
        else:
            from runner import cluster
            from runner.step.local import LocalExecutor

            cluster.require(self.spec)
            executor = LocalExecutor(self.root, kernel=kernel, servers=servers)
        return World(
            store=store,
            executor=executor,
            registry=self.registry,
            remote_for=remote_for,
            watcher=watcher or Silent(),
            stop=stop or threading.Event(),
            runtime=runtime,
            place=sources.place_input if runtime is None else sources.name_only,
            shared=self.shared,
            target=self.watched.watched_target,
            identity=lambda: self.identity,
        )

    def find_run(self, reference: str) -> str:
        """The run id for an id, a unique part of one, `latest`, or NAME/VERSION."""
        name, slash, number = reference.partition("/")
        of_version = slash and number.isdecimal()
        run = self.registry.get(name, int(number)).run if of_version else self.store.find(reference)
        if self.shared is not None:
            self.shared.complete(run)
        return run

    def run(self, reference: str) -> RunManifest:
        """The manifest of the run that `find_run` finds."""
        return self.store.manifest(self.find_run(reference))

    def stop(self, reference: str) -> list[str]:
        """Stop a run's process or its jobs; the names of what is stopped."""
        from runner.run.resume import stop

        manifest = self.store.manifest_as_written(self.find_run(reference))
        stopped: list[str] = []
        if manifest.on == SAGEMAKER:
            from runner.aws.processing.executor import job_of
            from runner.aws.processing.jobs import Jobs

            session = self.of(manifest.pipeline).session()
            running = [state for state in manifest.steps if state.status == "running"]
            jobs = [job_of(manifest, state, self.store, session) for state in running]
            stopped = [f"job {name}" for kind, name in jobs if Jobs(session, poll_s=0, kind=kind).stop(name)]
        return stopped + stop(manifest, self.store)

    def import_pack(self, file: Path) -> tuple[RunManifest, ModelVersion | None]:
        """Import the run of a pack. Its version is registered here, pending, as the next of its name; None where it has
        none, or where the project's versions are in SageMaker. An empty folder becomes a project."""
        from runner.audit.archive import unpack
        from runner.run.provenance import who

        store, is_project = self.store_here, self.file.exists()
        by = Imported(who=who(), identity=self.identity if is_project else "", at=utc_text())
        is_new = not store.root.exists()
        store.prepare()
        try:
            with store.shared():
                pack = unpack(file, store, by)
                if not is_project:  # commands need a pipeline file to look at the run
                    atomic_write(self.file, (store.folder(pack.manifest.run) / PIPELINE).read_bytes())
                spec = self.spec if is_project else pack.manifest.pipeline
                if pack.version is None or self.of(spec).registry_is_remote:
                    return pack.manifest, None
                return self._registered(pack.manifest, pack.version)
        finally:
            if is_new:
                store.abandon()

    def _registered(self, manifest: RunManifest, new: NewVersion) -> tuple[RunManifest, ModelVersion]:
        """The run with its version, as the local registry has it now."""
        from runner.audit.archive import FAILPOINTS

        version = self.local_registry.register(new)
        reach(FAILPOINTS[-1])
        if manifest.model_version is None:
            ref = ModelVersionRef(name=version.name, version=version.version, status="pending")
            manifest = msgspec.structs.replace(manifest, model_version=ref)
            self.store_here.write(manifest)
        return manifest, version

    def as_of_now(self, manifests: Sequence[RunManifest]) -> list[RunManifest]:
        """The runs with what has been decided on their versions since; see `runner.run.registration`."""
        from runner.run.registration import as_of_now

        if not any(manifest.model_version for manifest in manifests):
            return [*manifests]
        return as_of_now(manifests, self.registry_within(LOOK_S if self.patience_s is None else self.patience_s))

    def version(self, reference: str) -> ModelVersion:
        """The version of NAME/VERSION, or the highest approved one of NAME. Raises Refused if none is approved."""
        name, slash, number = reference.partition("/")
        if slash and not number.isdecimal():
            raise UsageError(f"{reference!r} is not a model version; write {name} or {name}/1.")
        version = self.registry.get(name, int(number)) if slash else self.registry.approved(name)
        if version is None:
            self.registry.list(name)  # names what there is, where this is not a model
            raise Refused(f"No version of {name} is approved. See `runner models {name}`.")
        return version

    def version_folder(self, version: ModelVersion) -> Path:
        """The files of a version: its run's, or what the registry keeps of them where the run is not here."""
        store = self.store
        if not version.location or store.folder(version.run).exists():
            return model_folder(store, version.run, version.artifact)
        for path, fact in facts_of(version.artifact).items():
            if not store.has(fact):
                store.note_address(fact, version.location + path)
        folder = store.root / "registry-cache" / "models" / version.sha256
        store.link(version.artifact, folder)
        return folder

    def signature(self, version: ModelVersion) -> Signature:
        """What the version's callers send. Raises Tampered where its file is gone or another."""
        from runner.model.compatibility import signature_in

        if version.location:
            from runner.aws.package import signature

            return signature(self.session(), version)
        return signature_in(model_folder(self.store, version.run, version.artifact), version)

    def capture_settings(self, target: str, *, working: Path | None = None) -> CaptureSettings | None:
        """How requests to the target are captured by a process here, None where they are not."""
        from runner.serve.capture_settings import capture_settings

        spec = self.target(target)
        if spec.capture is None or not spec.capture.percent:
            return None
        return capture_settings(spec.capture, target, self.root, working=working)

    def capturing(self, target: str) -> AbstractContextManager[CaptureSettings]:
        """How rows that are scored here are kept for the target; see `runner.captures`."""
        from runner.captures import capturing

        return capturing(self, target)

    def captured(self, target: str, *, since: str = "", until: str = "") -> Iterator[Captured]:
        """The requests that were captured at the target; see `runner.model.captured.windows`."""
        from runner.captures import captured

        return captured(self, target, since=since, until=until)

    def watched_target(self, name: str) -> WatchedTarget:
        """One of [targets], for a pipeline that watches it. Raises as `target`."""
        capture = self.target(name).capture
        return WatchedTarget(
            capture or Capture(percent=0), lambda since, until: self.captured(name, since=since, until=until)
        )

    def target(self, name: str) -> Target:
        """One of [targets]. UsageError names the nearest one."""
        spec = self.spec.targets.get(name)
        if spec is None:
            raise UsageError(f"There is no target {name!r} in {self.file.name}{nearest(name, self.spec.targets)}")
        return spec

    def deployer(self, target: str, *, no_token: bool = False) -> Deployer:
        """Of one of [targets]; with `no_token` requests need none from now on. UsageError names the nearest target."""
        spec = self.target(target)
        folder = self.root / RUNS / "targets" / target
        if isinstance(spec, SageMakerTargetSpec):
            from runner.aws.endpoint import SageMakerTarget

            return SageMakerTarget(
                target,
                spec,
                self.session(),
                self.spec,
                registry=self.registry,
                model_folder=self.version_folder,
                root=self.root,
                folder=folder,
            )
        from runner.model.served import recorded
        from runner.serve.local.target import LocalTarget

        return LocalTarget(
            target,
            spec,
            folder,
            capture=self.capture_settings(target, working=folder),
            model_folder=self.version_folder,
            recorded=lambda: recorded(self.registry, target),
            token="" if no_token else os.environ.get("RUNNER_TOKEN") or None,
        )


@contextmanager
def fork_servers() -> Iterator[ForkServers]:
    """For several runs on this machine; ended with the context."""
    from runner.step.local import ForkServers

    servers = ForkServers()
    try:
        yield servers
    finally:
        servers.close()


def remote_for(address: str) -> RemoteSource:
    if urlsplit(address).scheme == "s3":
        from runner.aws.s3 import S3  # boto3

        return S3()
    from runner.run.web import Web

    return Web()


class _RemoteObjects:
    """Implements `runner.run.store.RemoteObjects`; imports boto3 only for an object's bytes that are not here."""

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        from runner.aws.s3 import S3

        S3().fetch(address, fact, target)

    def digest(self, address: str) -> FileFact:
        from runner.aws.s3 import S3

        return S3().digest(address)


def model_folder(store: Store, run: str, artifact: Artifact) -> Path:
    """The folder of a run's model; fetches its bytes where they are not here."""
    folder = store.folder(run) / artifact.path
    if not is_fetched(store.folder(run), artifact, store):
        store.link(artifact, folder)
    return folder
