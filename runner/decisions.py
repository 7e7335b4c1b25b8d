"""Deciding on versions: approving, rejecting and deploying them, beside what those who call a model would notice.

What was done is told to whom [notify] names; `say` gets a sentence where that did not work.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import notify
from runner.errors import RunnerError
from runner.model import approval, deployment
from runner.model.compatibility import Callers, SchemaComparison, compare
from runner.model.deployment import Deployer, Health
from runner.model.registry_rules import Decider, Person
from runner.model.release import ReleaseStep
from runner.model.served import Deployment, command_to_end, recorded, serves
from runner.model.versions import ModelVersion
from runner.project import Project, model_folder
from runner.records import SageMakerTargetSpec
from runner.run import provenance
from runner.serve.openapi import outdated

Say = Callable[[str], None]
REST_SCHEMA = Path("build", "rest", "record.schema.json")  # where `runner rest` writes it, beside pipeline.toml


def approve(
    project: Project,
    name: str,
    version: int,
    *,
    why: str,
    by: Person | None = None,
    allow_schema_change: bool = False,
    say: Say = lambda _: None,
) -> ModelVersion:
    """See `runner.model.approval.approve`; beside what serves and what is approved now. `by` is this process's account
    where it is left out, here and below."""
    store, registered = project.store, project.registry.get(name, version)
    if project.registry_is_remote:
        from runner.aws.registered_archive import check_registered

        check_registered(project.registry, registered)  # what an endpoint would load, beside what the run has made
    approved = approval.approve(
        project.registry,
        name,
        version,
        decider(project, by),
        why=why,
        manifest=store.manifest(registered.run),
        model_folder=model_folder(store, registered.run, registered.artifact),
        schema_change=lambda new: beside_others(project, new).permitted(allow=allow_schema_change, say=say),
    )
    _tell_decision(project, approved, "approved", by, why=why, say=say)
    return approved


def approve_for(
    project: Project,
    name: str,
    version: int,
    *,
    target: str,
    why: str,
    by: Person | None = None,
    allow_schema_change: bool = False,
    say: Say = lambda _: None,
) -> ModelVersion:
    """The second approval, for one target; see `runner.model.approval.approve_for`."""
    project.deployer(target)  # says where there is no such target
    approval.approve_for(
        project.registry,
        name,
        version,
        decider(project, by),
        target=target,
        targets=project.spec.targets,
        why=why,
        schema_change=lambda new: beside_others(project, new, target).permitted(allow=allow_schema_change, say=say),
    )
    approved = project.registry.get(name, version)
    _tell_decision(project, approved, f"approved for {target}", by, why=why, say=say)
    return approved


def reject(
    project: Project, name: str, version: int, *, why: str, by: Person | None = None, say: Say = lambda _: None
) -> ModelVersion:
    rejected = approval.reject(project.registry, name, version, decider(project, by), why=why)
    _tell_decision(project, rejected, "rejected", by, why=why, say=say)
    return rejected


def _tell_decision(
    project: Project, version: ModelVersion, decision: str, by: Person | None, *, why: str, say: Say
) -> None:
    who = (by or Person(provenance.who())).who
    notify.tell(project.spec.notify, notify.of_decision(project.spec, version, decision, who=who, why=why), say)


def decider(project: Project, by: Person | None = None) -> Decider:
    """Who decides by the project's rules. The ARN is that of this process, so it says nothing of others."""
    person = by or Person(provenance.who())
    identity = project.identity if person.is_account else ""
    return Decider(person.who, identity, project.spec.approval, person.known_by)


def why_not(project: Project, version: ModelVersion, by: Person, *, target: str | None = None) -> str:
    """Why this person may not approve the version, or not for the target, in a sentence; "" where they may.

    Reads no model: what the bytes and the callers say comes when it is approved.
    """
    try:
        if target is None:
            approval.check_may_approve(version, decider(project, by), project.store.manifest(version.run))
        else:
            events = project.registry.events(version.name)
            approval.check_may_approve_for(version, events, decider(project, by), target)
    except RunnerError as error:
        return str(error)
    return ""


def why_not_reject(project: Project, version: ModelVersion, by: Person) -> str:
    """As `why_not`, for rejecting and revoking."""
    try:
        decider(project, by).check_named(version.label)
    except RunnerError as error:
        return str(error)
    return ""


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
    deployed = deployment.deploy(project.registry, deployer, name, version, **_by_somebody(options))
    return _told(project, deployed, options)


def rollback(project: Project, deployer: Deployer, **options: Any) -> Deployment:
    """See `runner.model.deployment.rollback`, which takes the `options`."""
    return _told(project, deployment.rollback(project.registry, deployer, **_by_somebody(options)), options)


def undeploy(project: Project, deployer: Deployer, *, say: Say = lambda _: None, **options: Any) -> Deployment:
    """See `runner.model.deployment.remove`, which takes the `options`."""
    removed = deployment.remove(project.registry, deployer, **_by_somebody(options))
    return _told(project, removed, {"say": say})


def _told(project: Project, deployed: Deployment, options: dict[str, Any]) -> Deployment:
    say: Say = options.get("say") or (lambda _: None)
    notify.tell(project.spec.notify, notify.of_deployment(project.spec, deployed), say)
    return deployed


def _by_somebody(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "by": options.get("by") or Person(provenance.who())}


@dataclass(frozen=True)
class TargetState:
    """What a target serves, None for nothing, and whether it answers and may."""

    name: str
    kind: str
    deployment: Deployment | None
    health: Health | None


def target_state(project: Project, target: str, *, restart: bool = False, no_token: bool = False) -> TargetState:
    """The target as it is now, its history caught up; with `restart` one that is down is started first."""
    registry, deployer, who = project.registry, project.deployer(target, no_token=no_token), provenance.who()
    deployment.catch_up(registry, deployer, who)
    deployed, health = deployer.last(), None
    if deployed is not None and deployed.kind == "removed":
        deployed = None
    if deployed is not None:
        health = deployer.health()
        if restart and health.status == "down":
            deployed = deployment.restart(registry, deployer, who=who)
            health = deployer.health()
        status = registry.get(deployed.name, deployed.version).status
        if status != "approved":
            message = f"{deployed.label} is {status} since it was deployed: {command_to_end(registry, target)}"
            health = Health(status="unhealthy", detail=message, process=health.process)
    return TargetState(target, project.spec.targets[target].kind, deployed, health)


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
