"""What those who call a model notice of a version, before it is approved or deployed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner import backend
from runner.errors import RunnerError
from runner.model.compatibility import Callers, Comparison, compare
from runner.model.served import recorded, serves
from runner.model.versions import ModelVersion
from runner.pipeline.file import load
from runner.records import Pipeline
from runner.serve.openapi import outdated

Say = Callable[[str], None]
REST_SCHEMA = Path("build", "rest", "record.schema.json")  # where `runner rest` writes it, beside pipeline.toml


def check(pipeline: Path, name: str, version: int, *, target: str | None, allow_schema_change: bool, say: Say) -> None:
    """Raises Refused where approving the version, or deploying it to the target, would for what callers lose."""
    found = backend.registry(pipeline).get(name, version)
    beside_others(pipeline, found, target).permitted(allow=allow_schema_change, say=say)


def beside_others(pipeline: Path, found: ModelVersion, target: str | None = None) -> Comparison:
    """The version beside those of its name that serve now, at one target or anywhere, and the approved one."""
    spec, versions = load(pipeline), backend.registry(pipeline)
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
    return compare(found, callers, lambda one: backend.signature(pipeline, one))


def older_rest(pipeline: Path, name: str, version: int, target: str | None = None) -> list[str]:
    """A sentence about each schema of a REST front that is not the version's: the one in build/rest, and those that stand
    before the endpoint of the target, or of any."""
    try:
        spec = load(pipeline)
        signature = backend.signature(pipeline, backend.registry(pipeline).get(name, version))
    except RunnerError:  # whoever goes on says so
        return []
    again = f"`runner rest {name}/{version}`, package and deploy the stack again (docs/rest.md)."
    return [
        f"{where} has another schema than {name}/{version}: {said}. {again}"
        for where, schema in _rest_schemas(pipeline, spec, target)
        if isinstance(schema, dict) and (said := outdated(schema, signature))
    ]


def _rest_schemas(pipeline: Path, spec: Pipeline, target: str | None) -> Iterator[tuple[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        yield str(REST_SCHEMA), json.loads((pipeline.parent / REST_SCHEMA).read_bytes())
    asks_aws = target is not None or (spec.model is not None and spec.model.registry == backend.SAGEMAKER)
    for at, one in spec.targets.items():
        if one.kind == backend.SAGEMAKER and target in (None, at) and asks_aws:
            from runner.aws.endpoint_request import endpoint_name
            from runner.aws.rest_stack import record_schemas

            with contextlib.suppress(RunnerError):  # nobody is logged in
                for api, schema in record_schemas(backend.session(spec), endpoint_name(spec.name, at, one)):
                    yield f"The REST API {api} before {at}", schema
