"""Deciding on versions: approving, rejecting and deploying them, beside what those who call a model would notice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.model import approval, deployment
from runner.model.compatibility import Callers, SchemaComparison, compare
from runner.model.deployment import Deployer
from runner.model.registry_rules import Decider
from runner.model.release import ReleaseStep
from runner.model.served import Deployment, recorded, serves
from runner.model.versions import ModelVersion
from runner.project import Project, model_folder
from runner.records import SageMakerTargetSpec
from runner.run import provenance
from runner.serve.openapi import outdated

Say = Callable[[str], None]
REST_SCHEMA = Path("build", "rest", "record.schema.json")  # where `runner rest` writes it, beside pipeline.toml


def approve(
    project: Project, name: str, version: int, *, why: str, allow_schema_change: bool = False, say: Say = lambda _: None
) -> ModelVersion:
    """See `runner.model.approval.approve`; beside what serves and what is approved now."""
    store, registered = project.store, project.registry.get(name, version)
    if project.registry_is_remote:
        from runner.aws.registered_archive import check_registered

        check_registered(project.registry, registered)  # what an endpoint would load, beside what the run has made
    return approval.approve(
        project.registry,
        name,
        version,
        _decider(project),
        why=why,
        manifest=store.manifest(registered.run),
        model_folder=model_folder(store, registered.run, registered.artifact),
        schema_change=lambda new: beside_others(project, new).permitted(allow=allow_schema_change, say=say),
    )


def approve_for(
    project: Project,
    name: str,
    version: int,
    *,
    target: str,
    why: str,
    allow_schema_change: bool = False,
    say: Say = lambda _: None,
) -> ModelVersion:
    """The second approval, for one target; see `runner.model.approval.approve_for`."""
    project.deployer(target)  # says where there is no such target
    approval.approve_for(
        project.registry,
        name,
        version,
        _decider(project),
        target=target,
        targets=project.spec.targets,
        why=why,
        schema_change=lambda new: beside_others(project, new, target).permitted(allow=allow_schema_change, say=say),
    )
    return project.registry.get(name, version)


def reject(project: Project, name: str, version: int, *, why: str) -> ModelVersion:
    return approval.reject(project.registry, name, version, _decider(project), why=why)


def _decider(project: Project) -> Decider:
    return Decider(provenance.who(), project.identity, project.spec.approval)


def carry_out(
    project: Project, step: ReleaseStep, name: str, version: int, *, why: str, allow_schema_change: bool, say: Say
) -> Deployment | None:
    """One step of a release; the deployment where it is one."""
    options: dict[str, Any] = {"why": why, "allow_schema_change": allow_schema_change, "say": say}
    match step.what, step.target:
        case "approve", _:
            approve(project, name, version, **options)
        case "approve for", str(target):
            approve_for(project, name, version, target=target, **options)
        case "deploy", str(target):
            return deploy(project, project.deployer(target), name, version, **options)
    return None


def deploy(project: Project, deployer: Deployer, name: str, version: int, **options: Any) -> Deployment:
    """See `runner.model.deployment.deploy`, which takes the `options`."""
    return deployment.deploy(project.registry, deployer, name, version, who=provenance.who(), **options)


def check(
    project: Project, name: str, version: int, *, target: str | None, allow_schema_change: bool, say: Say
) -> None:
    """Raises Refused where approving the version, or deploying it to the target, would for what callers lose."""
    candidate = project.registry.get(name, version)
    beside_others(project, candidate, target).permitted(allow=allow_schema_change, say=say)


def beside_others(project: Project, version: ModelVersion, target: str | None = None) -> SchemaComparison:
    """The version beside those of its name that serve now, at one target or anywhere, and the approved one."""
    targets, registry = project.spec.targets, project.registry
    if target is not None:
        last = recorded(registry, target)
        served = {target: (last.name, last.version)} if last is not None and last.kind != "removed" else {}
        champion = None
    else:
        served = {at: (version.name, number) for at, number in serves(registry.events(version.name)).items()}
        champion = registry.approved(version.name)
    callers = [
        Callers(registry.get(*served_version), f"serves at {at}", targets[at].unknown if at in targets else "error")
        for at, served_version in served.items()
    ]
    if champion is not None:
        callers.append(Callers(champion, "is the approved version"))
    return compare(version, callers, project.signature)


def older_rest(project: Project, name: str, version: int, target: str | None = None) -> list[str]:
    """A sentence about each schema of a REST front that differs from the version's: the one in build/rest, and those in
    front of the endpoint of the target, or of any."""
    try:
        signature = project.signature(project.registry.get(name, version))
    except RunnerError:  # the command that follows says so
        return []
    remedy = f"`runner rest {name}/{version}`, package and deploy the stack again (docs/rest.md)."
    return [
        f"{where} has another schema than {name}/{version}: {differences}. {remedy}"
        for where, schema in _rest_schemas(project, target)
        if isinstance(schema, dict) and (differences := outdated(schema, signature))
    ]


def _rest_schemas(project: Project, target: str | None) -> Iterator[tuple[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        yield str(REST_SCHEMA), json.loads((project.root / REST_SCHEMA).read_bytes())
    spec = project.spec
    asks_aws = target is not None or project.registry_is_remote
    for name, endpoint in spec.targets.items():
        if isinstance(endpoint, SageMakerTargetSpec) and target in (None, name) and asks_aws:
            from runner.aws.endpoint_request import endpoint_name
            from runner.aws.rest_stack import record_schemas

            with contextlib.suppress(RunnerError):  # nobody is logged in
                for api, schema in record_schemas(project.session(), endpoint_name(spec.name, name, endpoint)):
                    yield f"The REST API {api} before {name}", schema
