"""Which executor, registry and remote store a pipeline gets: the one place that knows this machine and the cloud."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.errors import PipelineError, Refused, RunnerError, UsageError
from runner.model import approval
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, Registry
from runner.pipeline.file import load
from runner.records import Artifact, Pipeline, RunManifest
from runner.run import provenance, sources
from runner.run.again import register
from runner.run.sources import Remote
from runner.run.store import Store
from runner.run.world import Executor, Options, Runtime, Silent, Watcher, World

if TYPE_CHECKING:
    from runner.aws.estimate import Estimate
    from runner.aws.executions import Seen
    from runner.aws.pipelines import Outcome
    from runner.aws.session import Session
    from runner.aws.shared import SharedRuns
    from runner.aws.upload import Uploaded
    from runner.pipeline.plan import Plan
    from runner.records import FileFact, InputFact
    from runner.run.doctor import Check
    from runner.run.gc import Freed
    from runner.run.reproduce import Reproduced

RUNS, REGISTRY = "runs", "registry.db"
LOCAL, SAGEMAKER = "local", "sagemaker"  # where steps run


def store(pipeline: Path) -> Store:
    """The runs beside the pipeline file. Raises PipelineError where there is no such file."""
    spec = load(pipeline)
    runs = _store(pipeline.parent)
    if spec.store.runs is not None:
        _shared(spec, runs, pipeline.parent).pull()
    return runs


def registry(pipeline: Path) -> Registry:
    spec = load(pipeline)
    return _registry(pipeline.parent, spec)


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
    if spec.store.runs is not None:
        _shared(spec, runs, file.parent).pull()
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
        registry=_registry(file.parent, spec),
        remote_for=remote_for,
        watcher=watcher or Silent(),
        stop=stop or threading.Event(),
        runtime=elsewhere,
        place=sources.place if elsewhere is None else sources.name_only,
        shared=_shared(spec, runs, file.parent) if spec.store.runs is not None else None,
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
    runs = store(pipeline)
    run = registry(pipeline).get(name, int(number)).run if slash and number.isdecimal() else runs.find(reference)
    spec = load(pipeline)
    if spec.store.runs is not None:
        _shared(spec, runs, pipeline.parent).complete(run)
    return run


def register_run(pipeline: Path, reference: str, *, watcher: Watcher) -> RunManifest:
    """Register the model of a run that passed; its registering step is run now where it was skipped then."""
    run = find_run(pipeline, reference)
    spec = store(pipeline).manifest(run).pipeline
    on = store(pipeline).manifest(run).on
    return register(run, pipeline, Options(), world(pipeline, spec, on=on, watcher=watcher))


def approve(pipeline: Path, name: str, version: int, *, why: str) -> ModelVersion:
    spec, versions = load(pipeline), registry(pipeline)
    found = versions.get(name, version)
    runs = store(pipeline)
    return approval.approve(
        versions,
        name,
        version,
        manifest=runs.manifest(found.run),
        model_folder=model_folder(runs, found.run, found.artifact),
        who=provenance.who(),
        why=why,
        rules=spec.approval,
        identity=_identity(spec),
    )


def reject(pipeline: Path, name: str, version: int, *, why: str) -> ModelVersion:
    spec = load(pipeline)
    return approval.reject(
        registry(pipeline),
        name,
        version,
        who=provenance.who(),
        why=why,
        rules=spec.approval,
        identity=_identity(spec),
    )


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


def _shared(spec: Pipeline, runs: Store, root: Path) -> SharedRuns:
    from runner.aws.session import Session
    from runner.aws.shared import SharedRuns

    assert spec.store.runs is not None
    return SharedRuns(spec.store.runs, runs, root, Session(spec.sagemaker.region))


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


def estimate(plan: Plan, steps: list[str], sources: dict[str, InputFact]) -> Estimate:
    """What running these steps in SageMaker would move and cost; see `runner.aws.estimate`."""
    from runner.aws.estimate import estimate as made

    return made(_session(plan.pipeline), plan.pipeline, steps, sources, root=plan.root)


def fetch_run(pipeline: Path, reference: str, steps: tuple[str, ...] = ()) -> tuple[RunManifest, int]:
    """Bring a run's outputs here that stayed where they were made; the run, and the bytes that came."""
    from runner.run.folder import fetch

    runs = store(pipeline)
    manifest = runs.manifest(find_run(pipeline, reference))
    return manifest, fetch(manifest, runs, steps=steps)


def _registry(root: Path, spec: Pipeline) -> Registry:
    """By [model] registry, wherever the steps run."""
    match spec.model.registry if spec.model else LOCAL:
        case "sagemaker":
            from runner.aws.bucket import Bucket
            from runner.aws.registry import SageMakerRegistry
            from runner.pipeline.remote import settings

            chosen, runs = settings(spec), _store(root)
            bucket = Bucket(_session(spec), chosen.bucket, chosen.prefix)
            return SageMakerRegistry(
                bucket.session,
                bucket,
                model_folder=lambda new: model_folder(runs, new.run, new.artifact),
                run_address=lambda run: bucket.address(f"runs/{run}/"),
                image=chosen.serving_image,
                tags=chosen.tags,
                cache=root / RUNS / "registry-cache",
            )
        case _:
            return LocalRegistry(root / RUNS / REGISTRY)


def model_folder(runs: Store, run: str, found: Artifact) -> Path:
    """The folder of a run's model, its bytes brought here where they are not."""
    folder = runs.folder(run) / found.path
    if not folder.exists():
        runs.link(found, folder)
    return folder


def _identity(spec: Pipeline) -> str:
    """Whom AWS takes the caller for, where it keeps the registry."""
    if spec.model is None or spec.model.registry == LOCAL:
        return ""
    from runner.aws.registry import caller

    return caller(_session(spec))


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


def checks(pipeline: Path, *, on: str, probe: bool, say: Callable[[str], None]) -> Iterator[Check]:
    """What has to hold before a run can work there; `say` is told of what takes long or costs something."""
    from runner.run import doctor

    match on:
        case "sagemaker":
            from runner.aws.doctor import account

            yield doctor.sound(pipeline)
            try:
                spec = load(pipeline)
            except PipelineError:  # as the line above says
                return
            yield from account(spec, pipeline.parent, run_probe=probe, say=say)
        case _:
            yield from doctor.machine(pipeline, _store(pipeline.parent))


def upload(pipeline: Path, file: Path, *, to: str | None, replace: bool, dry_run: bool) -> tuple[Uploaded, list[str]]:
    """Put a file into the project's bucket; where it is, and the lines of pipeline.toml that would read it there."""
    from runner.aws import upload as moving

    spec = load(pipeline)
    found = moving.upload(spec, file, to=to, replace=replace, dry_run=dry_run)
    return found, moving.lines(spec, pipeline.parent, file, found.address)


def approved_model(pipeline: Path, reference: str) -> tuple[ModelVersion, Path]:
    """The version of NAME/VERSION, or the highest approved one of NAME, and its files. Raises Refused if there is none."""
    name, slash, number = reference.partition("/")
    if slash and not number.isdecimal():
        raise UsageError(f"{reference!r} is no model version; write {name} or {name}/1.")
    versions = registry(pipeline)
    found = versions.get(name, int(number)) if slash else versions.approved(name)
    if found is None:
        versions.list(name)  # names what there is, where this is no model
        raise Refused(f"No version of {name} is approved. See `runner models {name}`.")
    return found, store(pipeline).folder(found.run) / found.artifact.path


def pipeline_definition(file: Path, *, profile: str | None = None) -> dict[str, Any]:
    """The pipeline as a SageMaker Pipeline's definition, with nothing uploaded and nobody asked."""
    from runner.aws.pipelines import definition
    from runner.aws.pushed import Rehearsal, lay
    from runner.aws.session import Session
    from runner.pipeline.plan import plan
    from runner.pipeline.remote import settings

    made = plan(file, profile=profile)
    chosen = settings(made.pipeline)
    session = Session(chosen.region, anonymous=True)
    bucket = Rehearsal(session, chosen.bucket, chosen.prefix)
    return definition(lay(made, bucket, store=_store(file.parent), profile=profile), region=session.region)


def push_pipeline(file: Path, *, profile: str | None = None, dry_run: bool = False) -> Outcome:
    """Make the SageMaker Pipeline what pipeline.toml and its notebooks are now."""
    from runner.aws import pipelines
    from runner.aws.bucket import Bucket
    from runner.aws.pushed import Rehearsal, lay
    from runner.pipeline.plan import plan
    from runner.pipeline.remote import settings

    made = plan(file, profile=profile)
    chosen = settings(made.pipeline)
    session = _session(made.pipeline)
    kind = Rehearsal if dry_run else Bucket
    bucket = kind(session, chosen.bucket, chosen.prefix)
    laid = lay(made, bucket, store=_store(file.parent), profile=profile)
    definition = pipelines.definition(laid, region=session.region)
    return pipelines.push(definition, session, bucket, chosen, name=made.pipeline.name, dry_run=dry_run)


def start_pipeline(file: Path, overrides: dict[str, str], *, profile: str | None = None, note: str = "") -> str:
    """Start an execution with -p's values, checked as those of a run are; its ARN. Local sources are uploaded."""
    from runner.aws.bucket import Bucket
    from runner.aws.executions import start
    from runner.aws.pushed import INSTANCES, put_source
    from runner.pipeline.file import is_path
    from runner.pipeline.plan import plan
    from runner.pipeline.remote import settings

    given = {key: value for key, value in overrides.items() if key.rpartition(".")[2] not in INSTANCES}
    made = plan(file, profile=profile, overrides=given)
    chosen = settings(made.pipeline)
    session = _session(made.pipeline)
    bucket = Bucket(session, chosen.bucket, chosen.prefix)
    values = dict(overrides)
    for key in given:
        step, _, name = key.partition(".")
        spec = made.pipeline.steps[step].inputs.get(name) if step in made.pipeline.steps else None
        if spec is not None and is_path(spec.from_):
            values[key] = put_source(Path(spec.from_), bucket)
    return start(session, made.pipeline.name, values, note=note)


def look_at_execution(file: Path, reference: str | None) -> Seen:
    """An execution of the pipeline in SageMaker: by ARN or id, or the latest."""
    from runner.aws.executions import look

    spec = load(file)
    return look(_session(spec), spec.name, reference)
