"""Which executor, registry and remote store a pipeline gets: the one place that knows this machine and the cloud."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import urlsplit

from runner.errors import Refused
from runner.model import approval
from runner.model.registry import LocalRegistry, Registry
from runner.model.versions import ModelVersion
from runner.pipeline.file import load
from runner.pipeline.plan import Plan
from runner.records import RunManifest
from runner.run import provenance
from runner.run.again import register
from runner.run.sources import Remote
from runner.run.store import Store
from runner.run.world import Options, Watcher, World

RUNS, REGISTRY = "runs", "registry.db"


def store(pipeline: Path) -> Store:
    """The runs beside the pipeline file. Raises PipelineError where there is no such file."""
    load(pipeline)
    return Store(pipeline.parent / RUNS)


def registry(pipeline: Path) -> Registry:
    spec = load(pipeline)
    return _registry(pipeline.parent, spec.model.registry if spec.model else "local")


def world(plan: Plan, *, watcher: Watcher, stop: threading.Event) -> World:
    """What a run of the plan on this machine talks to."""
    from runner.step.local import LocalExecutor

    model = plan.pipeline.model
    return World(
        store=Store(plan.root / RUNS),
        executor=LocalExecutor(plan.root),
        registry=_registry(plan.root, model.registry if model else "local"),
        remote_for=remote_for,
        watcher=watcher,
        stop=stop,
    )


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
    from runner.step.local import LocalExecutor

    runs = store(pipeline)
    run = find_run(pipeline, reference)
    model = runs.manifest(run).pipeline.model
    parts = World(
        store=runs,
        executor=LocalExecutor(pipeline.parent),
        registry=_registry(pipeline.parent, model.registry if model else "local"),
        remote_for=remote_for,
        watcher=watcher,
        stop=threading.Event(),
    )
    return register(run, pipeline, Options(), parts)


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


def _registry(root: Path, kind: str) -> Registry:
    match kind:
        case "local":
            return LocalRegistry(root / RUNS / REGISTRY)
        case _:
            raise Refused(f'[model] registry = "{kind}" is not available here; use "local".')
