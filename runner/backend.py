"""Which executor, registry and remote store a pipeline gets: the one place that knows this machine and the cloud."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runner.errors import Refused, RunnerError
from runner.model import approval
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, Registry
from runner.pipeline.file import load
from runner.records import Pipeline, RunManifest
from runner.run import provenance, sources
from runner.run.again import register
from runner.run.sources import Remote
from runner.run.store import Store
from runner.run.world import Executor, Options, Runtime, Silent, Watcher, World

if TYPE_CHECKING:
    from runner.aws.session import Session
    from runner.records import FileFact
    from runner.run.gc import Freed
    from runner.run.reproduce import Reproduced

RUNS, REGISTRY = "runs", "registry.db"
LOCAL, SAGEMAKER = "local", "sagemaker"  # where steps run


def store(pipeline: Path) -> Store:
    """The runs beside the pipeline file. Raises PipelineError where there is no such file."""
    load(pipeline)
    return _store(pipeline.parent)


def registry(pipeline: Path) -> Registry:
    spec = load(pipeline)
    return _registry(pipeline.parent, spec.model.registry if spec.model else "local")


def world(
    file: Path,
    spec: Pipeline,
    *,
    on: str = LOCAL,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
) -> World:
    """What a run of the pipeline in `file` talks to, with its steps on this machine or in SageMaker."""
    runs = _store(file.parent)
    executor: Executor
    match on:
        case "sagemaker":
            from runner.aws.executor import SageMakerExecutor, runtime
            from runner.run.cache import Cache

            elsewhere: Runtime | None = runtime(spec, file.parent)
            cache = Cache(runs, file.parent)
            executor = SageMakerExecutor(
                _session(spec), spec, root=file.parent, store=runs, undeclared=cache.undeclared
            )
        case _:
            from runner.step.local import LocalExecutor

            elsewhere = None
            executor = LocalExecutor(file.parent)
    return World(
        store=runs,
        executor=executor,
        registry=_registry(file.parent, spec.model.registry if spec.model else "local"),
        remote_for=remote_for,
        watcher=watcher or Silent(),
        stop=stop or threading.Event(),
        runtime=elsewhere,
        place=sources.place if elsewhere is None else sources.name_only,
    )


def rebuild_registry(pipeline: Path) -> Sequence[ModelVersion]:
    """The versions of the local registry, made anew from its events' copies; see `LocalRegistry.rebuild`."""
    load(pipeline)
    return LocalRegistry(pipeline.parent / RUNS / REGISTRY).rebuild()


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
    if slash and number.isdecimal():
        return registry(pipeline).get(name, int(number)).run
    return store(pipeline).find(reference)


def register_run(pipeline: Path, reference: str, *, watcher: Watcher) -> RunManifest:
    """Register the model of a run that passed; its registering step is run now where it was skipped then."""
    run = find_run(pipeline, reference)
    spec = store(pipeline).manifest(run).pipeline
    on = store(pipeline).manifest(run).on
    return register(run, pipeline, Options(), world(pipeline, spec, on=on, watcher=watcher))


def approve(pipeline: Path, name: str, version: int, *, why: str) -> ModelVersion:
    versions = registry(pipeline)
    found = versions.get(name, version)
    runs = store(pipeline)
    return approval.approve(
        versions,
        name,
        version,
        manifest=runs.manifest(found.run),
        model_folder=runs.folder(found.run) / found.artifact.path,
        who=provenance.who(),
        why=why,
    )


def reject(pipeline: Path, name: str, version: int, *, why: str) -> ModelVersion:
    return approval.reject(registry(pipeline), name, version, who=provenance.who(), why=why)


def verify(pipeline: Path, reference: str | None) -> tuple[list[str], int, int]:
    """Findings, files and bytes read; of one run or version, or of everything where `reference` is None."""
    from runner.model.events import verify_chain
    from runner.run.verify import Verifier

    runs, versions = store(pipeline), registry(pipeline)
    verifier = Verifier(runs)
    name, slash, number = (reference or "").partition("/")
    if slash and number.isdecimal():
        chosen = [versions.get(name, int(number))]
        run_ids = [chosen[0].run]
    else:
        chosen = list(versions.list()) if reference is None else []
        run_ids = [run for run in runs.runs() if runs.begun(run)] if reference is None else [runs.find(reference)]
    found: list[str] = []
    for run in run_ids:
        try:
            found += verifier.run(runs.manifest(run))
        except RunnerError as error:
            found.append(str(error))
    for version in chosen:
        try:
            found += verifier.version(version, runs.manifest(version.run))
        except RunnerError as error:
            found.append(f"{version.name}/{version.version}: {error}")
    for model in sorted({version.name for version in chosen}):
        broken = verify_chain(versions.events(model))
        if broken is not None:
            found.append(f"{model}: {broken}")
    return found, verifier.files, verifier.size_bytes


def reproduce_run(
    pipeline: Path, reference: str, *, scratch: Path, tolerance: float, on_step: Callable[[str], None]
) -> Reproduced:
    """Execute a run again in `scratch` on this machine and compare."""
    from runner.run.reproduce import reproduce
    from runner.step.local import LocalExecutor

    runs = store(pipeline)
    return reproduce(
        runs.manifest(find_run(pipeline, reference)),
        original=runs,
        scratch=Store(scratch),
        root=pipeline.parent,
        executor=LocalExecutor(),
        now=provenance.environment(),
        tolerance=tolerance,
        on_step=on_step,
    )


def reproduce_in_recorded_environment(pipeline: Path, reference: str, options: list[str]) -> int:
    """Build the run's recorded packages in a throw-away folder and reproduce there; the exit code."""
    from runner.run.recorded import run_in_recorded_environment

    manifest = store(pipeline).manifest(find_run(pipeline, reference))
    arguments = ["reproduce", manifest.run, "--pipeline", str(pipeline.absolute()), *options]
    return run_in_recorded_environment(manifest.environment, arguments)


def collect_garbage(pipeline: Path, *, keep: int, tags: Iterable[str], dry_run: bool) -> Freed:
    """Remove what nothing needs; see `runner.run.gc.collect`."""
    from runner.run.gc import collect

    versions = registry(pipeline)
    known = list(versions.list())
    approved = {
        version.run
        for version in known
        if version.status == "pending"  # somebody may still approve it
        or any(e.kind == "approved" and e.version == version.version for e in versions.events(version.name))
    }
    return collect(
        store(pipeline),
        approved_runs=approved,
        versions=known,
        keep=keep,
        tags=tags,
        project=pipeline.parent,
        dry_run=dry_run,
    )


class _Elsewhere:
    """Implements `runner.run.store.Remote`; AWS is asked only where an object's bytes are wanted that are not here."""

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        from runner.aws.s3 import S3

        S3().fetch(address, fact, target)

    def digest(self, address: str) -> FileFact:
        from runner.aws.s3 import S3

        return S3().digest(address)


def _store(root: Path) -> Store:
    return Store(root / RUNS, _Elsewhere())


def _session(spec: Pipeline) -> Session:
    from runner.aws.session import Session
    from runner.pipeline.remote import settings

    return Session(settings(spec).region)


def stop_run(pipeline: Path, reference: str) -> list[str]:
    """End what a run has going on, here or elsewhere; what was told to stop, in words."""
    from runner.run.again import stop

    runs = store(pipeline)
    manifest = runs.manifest_as_written(find_run(pipeline, reference))
    said: list[str] = []
    if manifest.on == SAGEMAKER:
        from runner.aws.jobs import Jobs
        from runner.aws.request import job_name

        jobs = Jobs(_session(manifest.pipeline), poll_s=0)
        for state in manifest.steps:
            if state.status == "running":
                name = job_name(manifest.pipeline.name, manifest.run, state.name, state.attempt)
                if jobs.stop(name):
                    said.append(f"job {name}")
    return said + stop(manifest, runs)


def fetch_run(pipeline: Path, reference: str, steps: tuple[str, ...] = ()) -> tuple[RunManifest, int]:
    """Bring a run's outputs here that stayed where they were made; the run, and the bytes that came."""
    from runner.run.folder import fetch

    runs = store(pipeline)
    manifest = runs.manifest(find_run(pipeline, reference))
    return manifest, fetch(manifest, runs, steps=steps)


def _registry(root: Path, kind: str) -> Registry:
    match kind:
        case "local":
            return LocalRegistry(root / RUNS / REGISTRY)
        case _:
            raise Refused(f'[model] registry = "{kind}" is not available here; use "local".')


def debug(pipeline: Path, reference: str, step: str) -> Path:
    """The notebook to open for a step of a run; see `runner.run.debug.prepare`."""
    from runner.run.debug import prepare

    runs = store(pipeline)
    return prepare(runs.manifest(find_run(pipeline, reference)), step, store=runs, project=pipeline.parent)


def pack(pipeline: Path, reference: str, output: Path | None) -> tuple[Path, int]:
    """The file that a run was packed into, and its size in bytes."""
    from runner.run.archive import Pack
    from runner.run.archive import pack as write_pack

    runs = store(pipeline)
    manifest = runs.manifest(find_run(pipeline, reference))
    name, slash, _ = reference.partition("/")
    evidence = Pack(run=manifest.run)
    if slash:
        versions = registry(pipeline)
        evidence = Pack(run=manifest.run, versions=list(versions.list(name)), events=list(versions.events(name)))
    target = output or Path(f"{manifest.run}.run.tar.gz")
    return target, write_pack(manifest, runs, target, evidence)


def import_run(pipeline: Path, file: Path) -> tuple[str, list[ModelVersion]]:
    """The run taken in from a pack, and the versions that came with it."""
    from runner.run.archive import unpack

    runs = _store(pipeline.parent)
    found = unpack(file, runs)
    if not pipeline.exists():  # an empty folder becomes a project in which the run can be looked at
        shutil.copyfile(runs.folder(found.run) / "pipeline.toml", pipeline)
    if found.events:
        versions = {version.version: version for version in found.versions}
        LocalRegistry(runs.root / REGISTRY).adopt(versions, found.events)
    return found.run, [version for version in found.versions if version.run == found.run]
