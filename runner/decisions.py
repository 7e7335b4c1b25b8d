"""Deciding on versions: approving and rejecting them, beside what those who call a model would notice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.model import approval, deployment
from runner.model.compatibility import Callers, Comparison, compare
from runner.model.served import recorded, serves
from runner.model.versions import ModelVersion
from runner.project import LOCAL, SAGEMAKER, Project, model_folder
from runner.run import provenance
from runner.serve.openapi import outdated

Say = Callable[[str], None]
REST_SCHEMA = Path("build", "rest", "record.schema.json")  # where `runner rest` writes it, beside pipeline.toml


def approve(
    project: Project, name: str, version: int, *, why: str, allow_schema_change: bool = False, say: Say = lambda _: None
) -> ModelVersion:
    """See `runner.model.approval.approve`; beside what serves and what is approved now."""
    spec, store, asked = project.spec, project.store, project.registry.get(name, version)
    if spec.model is not None and spec.model.registry != LOCAL:
        from runner.aws.registered_archive import check_registered

        check_registered(project.registry, asked)  # what an endpoint would load, beside what the run has made
    return approval.approve(
        project.registry,
        name,
        version,
        manifest=store.manifest(asked.run),
        model_folder=model_folder(store, asked.run, asked.artifact),
        who=provenance.who(),
        why=why,
        rules=spec.approval,
        identity=project.identity,
        schema_change=lambda found: beside_others(project, found).permitted(allow=allow_schema_change, say=say),
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
    """The second approval, for one target; see `runner.model.deployment.approve_for`."""
    spec = project.spec
    project.deployer(target)  # says where there is no such target
    deployment.approve_for(
        project.registry, name, version, target=target, targets=spec.targets, who=provenance.who(), why=why,
        rules=spec.approval, identity=project.identity,
        schema_change=lambda found: beside_others(project, found, target).permitted(allow=allow_schema_change, say=say),
    )  # fmt: skip
    return project.registry.get(name, version)


def reject(project: Project, name: str, version: int, *, why: str) -> ModelVersion:
    return approval.reject(
        project.registry, name, version, who=provenance.who(), why=why, rules=project.spec.approval,
        identity=project.identity,
    )  # fmt: skip


def check(
    project: Project, name: str, version: int, *, target: str | None, allow_schema_change: bool, say: Say
) -> None:
    """Raises Refused where approving the version, or deploying it to the target, would for what callers lose."""
    found = project.registry.get(name, version)
    beside_others(project, found, target).permitted(allow=allow_schema_change, say=say)


def beside_others(project: Project, found: ModelVersion, target: str | None = None) -> Comparison:
    """The version beside those of its name that serve now, at one target or anywhere, and the approved one."""
    spec, versions = project.spec, project.registry
    if target is not None:
        last = recorded(versions, target)
        served = {target: (last.name, last.version)} if last is not None and last.kind != "removed" else {}
        champion = None
    else:
        served = {at: (found.name, number) for at, number in serves(versions.events(found.name)).items()}
        champion = versions.approved(found.name)
    callers = [
        Callers(versions.get(*one), f"serves at {at}", spec.targets[at].unknown if at in spec.targets else "error")
        for at, one in served.items()
    ]
    if champion is not None:
        callers.append(Callers(champion, "is the approved version"))
    return compare(found, callers, project.signature)


def older_rest(project: Project, name: str, version: int, target: str | None = None) -> list[str]:
    """A sentence about each schema of a REST front that is not the version's: the one in build/rest, and those that stand
    before the endpoint of the target, or of any."""
    try:
        signature = project.signature(project.registry.get(name, version))
    except RunnerError:  # whoever goes on says so
        return []
    again = f"`runner rest {name}/{version}`, package and deploy the stack again (docs/rest.md)."
    return [
        f"{where} has another schema than {name}/{version}: {said}. {again}"
        for where, schema in _rest_schemas(project, target)
        if isinstance(schema, dict) and (said := outdated(schema, signature))
    ]


def _rest_schemas(project: Project, target: str | None) -> Iterator[tuple[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        yield str(REST_SCHEMA), json.loads((project.root / REST_SCHEMA).read_bytes())
    spec = project.spec
    asks_aws = target is not None or (spec.model is not None and spec.model.registry == SAGEMAKER)
    for at, one in spec.targets.items():
        if one.kind == SAGEMAKER and target in (None, at) and asks_aws:
            from runner.aws.endpoint_request import endpoint_name
            from runner.aws.rest_stack import record_schemas

            with contextlib.suppress(RunnerError):  # nobody is logged in
                for api, schema in record_schemas(project.session(), endpoint_name(spec.name, at, one)):
                    yield f"The REST API {api} before {at}", schema
