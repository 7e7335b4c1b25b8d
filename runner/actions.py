"""What a command does with a project: its runs and registry are opened, one function is called. Standard output is not
its business."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runner import backend
from runner.backend import LOCAL, REGISTRY, RUNS, SAGEMAKER
from runner.content import atomic_write
from runner.errors import PipelineError, Refused, UsageError
from runner.failpoint import reach
from runner.manifest import Imported, ModelVersionRef, RunManifest
from runner.model import approval
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, NewVersion
from runner.pipeline.file import load
from runner.pipeline.plan import plan as make_plan
from runner.run import folder as run_folder
from runner.run import provenance
from runner.run.again import register
from runner.run.store import Store
from runner.run.world import Options, Watcher

if TYPE_CHECKING:
    from runner.aws.image_build import Push
    from runner.aws.pipelines.executions import Seen
    from runner.aws.pipelines.push import Outcome
    from runner.aws.processing.estimate import Estimate
    from runner.aws.upload import Uploaded
    from runner.pipeline.plan import Plan
    from runner.records import InputFact
    from runner.run.doctor import Check
    from runner.run.gc import Freed
    from runner.run.reproduce import Reproduced
    from runner.run.verify import Verified

Say = Callable[[str], None]
LOOK_S = 5.0  # for what is said beside a run; without an answer the run is shown all the same


def rebuild_registry(pipeline: Path) -> Sequence[ModelVersion]:
    """The versions of the local registry, made anew from its events' copies; see `LocalRegistry.rebuild`."""
    load(pipeline)
    return LocalRegistry(pipeline.parent / RUNS / REGISTRY).rebuild()


def register_run(pipeline: Path, reference: str, *, watcher: Watcher) -> RunManifest:
    """Register the model of a run that passed; its registering step is run now where it was skipped then."""
    run = backend.find_run(pipeline, reference)
    manifest = backend.store(pipeline).manifest(run)
    options = Options(jobs=manifest.chosen.jobs, kernel=manifest.chosen.kernel)
    world = backend.world(pipeline, manifest.pipeline, on=manifest.on, kernel=options.kernel, watcher=watcher)
    return register(run, pipeline, options, world)


def approve(
    pipeline: Path, name: str, version: int, *, why: str, allow_schema_change: bool = False, say: Say = lambda _: None
) -> ModelVersion:
    """See `runner.model.approval.approve`; beside what serves and what is approved now."""
    from runner import callers

    spec, versions = load(pipeline), backend.registry(pipeline)
    found = versions.get(name, version)
    if spec.model is not None and spec.model.registry != LOCAL:
        from runner.aws.registered_archive import check_registered

        check_registered(versions, found)  # what an endpoint would load, beside what the run has made
    runs = backend.store(pipeline)
    return approval.approve(
        versions,
        name,
        version,
        manifest=runs.manifest(found.run),
        model_folder=backend.model_folder(runs, found.run, found.artifact),
        who=provenance.who(),
        why=why,
        rules=spec.approval,
        identity=backend.identity(spec),
        schema_change=lambda found: callers.beside_others(pipeline, found).permitted(
            allow=allow_schema_change, say=say
        ),
    )


def reject(pipeline: Path, name: str, version: int, *, why: str) -> ModelVersion:
    spec = load(pipeline)
    versions, who = backend.registry(pipeline), provenance.who()
    return approval.reject(
        versions, name, version, who=who, why=why, rules=spec.approval, identity=backend.identity(spec)
    )


def as_of_now(pipeline: Path, manifests: Sequence[RunManifest]) -> list[RunManifest]:
    """The runs with what has been decided on their versions since; see `runner.run.standing`."""
    from runner.run.standing import as_of_now as now

    if not any(manifest.model_version for manifest in manifests):
        return [*manifests]
    return now(manifests, backend.registry(pipeline, patience_s=LOOK_S))


def verify(pipeline: Path, reference: str | None) -> Verified:
    """What was checked of one run or version, or of everything where `reference` is None."""
    from runner.run.verify import verify as check

    runs, versions = backend.store(pipeline), backend.registry(pipeline)
    with runs.shared():
        return check(runs, versions, reference)


def reproduce_run(
    pipeline: Path, reference: str, *, scratch: Path, tolerance: float, on_step: Callable[[str], None]
) -> Reproduced:
    """Execute a run again in `scratch` on this machine and compare."""
    from runner.run.reproduce import reproduce
    from runner.step.local import LocalExecutor

    runs = backend.store(pipeline)
    with runs.shared():
        manifest = runs.manifest(backend.find_run(pipeline, reference))
        return reproduce(
            manifest, original=runs, scratch=Store(scratch), root=pipeline.parent, executor=LocalExecutor(),
            now=provenance.environment(), tolerance=tolerance, on_step=on_step,
        )  # fmt: skip


def reproduce_in_recorded_environment(pipeline: Path, reference: str, options: list[str]) -> int:
    """Build the run's recorded packages in a throw-away folder and reproduce there; the exit code."""
    from runner.run.recorded import run_in_recorded_environment

    manifest = backend.store(pipeline).manifest(backend.find_run(pipeline, reference))
    arguments = ["reproduce", manifest.run, "--pipeline", str(pipeline.absolute()), *options]
    return run_in_recorded_environment(manifest.environment, arguments)


def collect_garbage(pipeline: Path, *, keep: int, tags: Iterable[str], command: str, dry_run: bool) -> Freed:
    """Remove what nothing needs; see `runner.run.gc.collect`. `command` is what it is recorded by."""
    from runner.run.gc import Known, collect
    from runner.run.removal import EVENT, Removal

    versions, who = backend.registry(pipeline), provenance.who()

    def known() -> Known:
        found = list(versions.list())
        histories = {version.name: versions.events(version.name) for version in found}
        wanted = frozenset(
            version.run
            for version in found
            if version.status == "pending"  # somebody may still approve it
            or any(e.kind == "approved" and e.version == version.version for e in histories[version.name])
        )
        return Known(found, wanted)

    def tell(removal: Removal) -> None:
        """In the histories of its versions, where they are kept here and not shared with people who have the run."""
        if isinstance(versions, LocalRegistry):
            for label in removal.versions:
                name, _, number = label.partition("/")
                versions.record(name, int(number), EVENT, who=who, why=command, data={"run": removal.run})

    return collect(
        backend.store(pipeline),
        known=known,
        keep=keep,
        tags=tags,
        project=pipeline.parent,
        who=who,
        command=command,
        on_removal=tell,
        dry_run=dry_run,
    )


def stop_run(pipeline: Path, reference: str) -> list[str]:
    """End what a run has going on, here or elsewhere; what was told to stop, in words."""
    from runner.run.again import stop

    runs = backend.store(pipeline)
    manifest = runs.manifest_as_written(backend.find_run(pipeline, reference))
    said: list[str] = []
    if manifest.on == SAGEMAKER:
        from runner.aws.processing.executor import job_of
        from runner.aws.processing.jobs import Jobs

        session = backend.session(manifest.pipeline)
        for state in manifest.steps:
            if state.status == "running":
                kind, name = job_of(manifest, state, runs, session)
                if Jobs(session, poll_s=0, kind=kind).stop(name):
                    said.append(f"job {name}")
    return said + stop(manifest, runs)


def estimate(plan: Plan, steps: list[str], sources: dict[str, InputFact]) -> Estimate:
    """What running these steps in SageMaker would move and cost; see `runner.aws.processing.estimate`."""
    from runner.aws.processing.estimate import estimate as made
    from runner.run.cache import Cache

    cache = Cache(backend.open_store(plan.root), plan.root)
    undeclared = {step: cache.undeclared(step) for step in steps}
    return made(backend.session(plan.pipeline), plan, steps, sources, undeclared=undeclared)


def fetch_run(pipeline: Path, reference: str, steps: tuple[str, ...] = ()) -> tuple[RunManifest, int]:
    """Bring a run's outputs here that stayed where they were made; the run, and the bytes that came."""
    from runner.run.folder import fetch

    runs = backend.store(pipeline)
    with runs.shared():
        manifest = runs.manifest(backend.find_run(pipeline, reference))
        return manifest, fetch(manifest, runs, steps=steps)


def debug(pipeline: Path, reference: str, step: str) -> Path:
    """The notebook to open for a step of a run; see `runner.run.debug.prepare`."""
    from runner.run.debug import prepare

    runs = backend.store(pipeline)
    with runs.shared():
        manifest = runs.manifest(backend.find_run(pipeline, reference))
        return prepare(manifest, step, store=runs, project=pipeline.parent)


def pack(pipeline: Path, reference: str, output: Path | None) -> tuple[Path, int]:
    """The file that a run was packed into, and its size in bytes."""
    from runner.run.archive import Pack
    from runner.run.archive import pack as write_pack

    runs = backend.store(pipeline)
    with runs.shared():
        manifest = runs.manifest(backend.find_run(pipeline, reference))
        name, slash, _ = reference.partition("/")
        evidence = Pack(run=manifest.run)
        if slash:
            versions = backend.registry(pipeline)
            evidence = Pack(run=manifest.run, versions=list(versions.list(name)), events=list(versions.events(name)))
        target = output or Path(f"{manifest.run}.run.tar.gz")
        return target, write_pack(manifest, runs, target, evidence)


def import_run(pipeline: Path, file: Path) -> tuple[RunManifest, ModelVersion | None]:
    """The run taken in from a pack. The version that came with it is registered here, pending, as the next of its name;
    None where none came, or where the project's versions are in SageMaker."""
    from runner.run.archive import unpack

    spec, runs = load(pipeline) if pipeline.exists() else None, backend.open_store(pipeline.parent)
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    by = Imported(who=provenance.who(), identity=backend.identity(spec) if spec is not None else "", at=at)
    is_new = not runs.root.exists()
    runs.prepare()
    try:
        with runs.shared():
            taken = unpack(file, runs, by)
            if spec is None:  # an empty folder becomes a project in which the run can be looked at
                atomic_write(pipeline, (runs.folder(taken.manifest.run) / run_folder.PIPELINE).read_bytes())
            spec = spec or taken.manifest.pipeline
            if taken.version is None or (spec.model is not None and spec.model.registry != LOCAL):
                return taken.manifest, None
            return _registered(taken.manifest, taken.version, runs)
    finally:
        if is_new:
            runs.abandon()


def _registered(manifest: RunManifest, new: NewVersion, runs: Store) -> tuple[RunManifest, ModelVersion]:
    """The run with its version, as the local registry has it now."""
    from runner.run.archive import FAILPOINTS

    version = LocalRegistry(runs.root / REGISTRY).register(new)
    reach(FAILPOINTS[-1])
    if manifest.model_version is None:
        ref = ModelVersionRef(name=version.name, version=version.version, status="pending")
        manifest = msgspec.structs.replace(manifest, model_version=ref)
        runs.write(manifest)
    return manifest, version


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
            yield from doctor.machine(pipeline, backend.open_store(pipeline.parent))


def upload(
    pipeline: Path, file: Path, *, to: str | None, as_: str | None, replace: bool, dry_run: bool
) -> tuple[Uploaded, list[str]]:
    """Put a file into the project's bucket; where it is, and the lines of pipeline.toml that would read it there, or the
    commands where its key was chosen by `as_`."""
    from runner.aws import upload as moving

    spec = load(pipeline)
    found = moving.upload(spec, file, to=to, as_=as_, replace=replace, dry_run=dry_run)
    reading = moving.lines if as_ is None else moving.commands
    return found, reading(spec, pipeline.parent, file, found)


def push_image(pipeline: Path, *, wait: bool, dry_run: bool, say: Callable[[str], None]) -> list[Push]:
    """Have the images of one's own that pipeline.toml asks for; `say` is told how far a build is."""
    from runner.aws.image_build import push_all

    spec = load(pipeline)
    return push_all(backend.session(spec), spec, pipeline.parent, wait=wait, dry_run=dry_run, say=say)


def approved_model(pipeline: Path, reference: str) -> tuple[ModelVersion, Path]:
    """The version of NAME/VERSION, or the highest approved one of NAME, and its files. Raises Refused if there is none."""
    name, slash, number = reference.partition("/")
    if slash and not number.isdecimal():
        raise UsageError(f"{reference!r} is not a model version; write {name} or {name}/1.")
    versions = backend.registry(pipeline)
    found = versions.get(name, int(number)) if slash else versions.approved(name)
    if found is None:
        versions.list(name)  # names what there is, where this is not a model
        raise Refused(f"No version of {name} is approved. See `runner models {name}`.")
    return found, backend.version_folder(backend.store(pipeline), found)


def pipeline_definition(file: Path, *, profile: str | None = None) -> dict[str, Any]:
    """The pipeline as a SageMaker Pipeline's definition, with nothing uploaded and nobody asked."""
    from runner.aws.pipelines.push import show

    return show(make_plan(file, profile=profile), backend.open_store(file.parent), profile=profile)


def push_pipeline(file: Path, *, profile: str | None = None, dry_run: bool = False) -> Outcome:
    """Make the SageMaker Pipeline what pipeline.toml and its notebooks are now."""
    from runner.aws.pipelines.push import push

    return push(make_plan(file, profile=profile), backend.open_store(file.parent), profile=profile, dry_run=dry_run)


def start_pipeline(
    file: Path, overrides: dict[str, str], *, profile: str | None = None, note: str = "", once: str = ""
) -> str:
    """Start an execution with -p's values, checked as those of a run are; its ARN. Local sources are uploaded."""
    from runner.aws.pipelines.executions import start, to_check

    return start(make_plan(file, profile=profile, overrides=to_check(overrides)), overrides, note=note, once=once)


def look_at_execution(file: Path, reference: str | None) -> Seen:
    """An execution of the pipeline in SageMaker: by ARN or id, or the latest."""
    from runner.aws.pipelines.executions import look

    spec = load(file)
    return look(backend.session(spec), spec.name, reference)


def import_execution(file: Path, reference: str) -> RunManifest:
    """An execution in SageMaker, by ARN or id, taken in as a run."""
    from runner.aws.pipelines import import_execution as execution

    spec, runs = load(file), backend.open_store(file.parent)
    runs.prepare()
    with runs.shared():
        return execution.import_execution(backend.session(spec), spec.name, reference, runs, root=file.parent)


def approve_for(
    pipeline: Path,
    name: str,
    version: int,
    *,
    target: str,
    why: str,
    allow_schema_change: bool = False,
    say: Say = lambda _: None,
) -> ModelVersion:
    """The second approval, for one target; see `runner.model.deployment.approve_for`."""
    from runner import callers
    from runner.model import deployment

    spec, versions, who = load(pipeline), backend.registry(pipeline), provenance.who()
    backend.deployer(pipeline, target)
    deployment.approve_for(
        versions, name, version, target=target, targets=spec.targets, who=who, why=why, rules=spec.approval,
        identity=backend.identity(spec),
        schema_change=lambda found: callers.beside_others(pipeline, found, target).permitted(allow=allow_schema_change, say=say),
    )  # fmt: skip
    return versions.get(name, version)
