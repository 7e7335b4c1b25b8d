"""Decisions on versions: what is checked before one is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runner.content import artifact
from runner.errors import Refused, RunnerError, Tampered, UsageError
from runner.manifest import RunManifest
from runner.model.events import second_approval, state
from runner.model.files import check_format
from runner.model.registry_rules import Decider, check_approved
from runner.model.versions import Event, ModelVersion, Registry
from runner.records import Target

SchemaChange = Callable[[ModelVersion], dict[str, list[str]]]  # what callers lose; raises Refused if not allowed


def approve(
    registry: Registry,
    name: str,
    version: int,
    decider: Decider,
    *,
    why: str,
    manifest: RunManifest,
    model_folder: Path,
    schema_change: SchemaChange = lambda _: {},
) -> ModelVersion:
    """Approve a pending version whose run succeeded with a passing verdict and whose bytes are those of the run.

    What `schema_change` gives is kept with the decision.
    Raises Refused with what is not so or who may decide, Tampered where bytes differ, UsageError without a reason.
    """
    _check_reason(why)
    label = f"{name}/{version}"
    registered = registry.get(name, version)
    check_may_approve(registered, decider, manifest)
    try:
        now = artifact(model_folder, name=registered.artifact.path)
    except RunnerError as error:
        raise Tampered(f"The model folder of {label} cannot be read: {error}") from error
    if now.sha256 != registered.sha256:
        changed = set((now.files or {}).items()) ^ set((registered.artifact.files or {}).items())
        names = ", ".join(sorted({path for path, _ in changed})) or model_folder.name
        raise Tampered(f"The model of {label} was altered since its run ({names}). It cannot be approved.")
    check_format(model_folder)
    lost = schema_change(registered) if registered.status == "pending" else {}
    return registry.decide(name, version, "approved", who=decider.who, why=why, data=_data(decider, lost))


def check_may_approve(registered: ModelVersion, decider: Decider, manifest: RunManifest) -> None:
    """Raises Refused where this person may not approve the version, or its run, of `manifest`, did not pass.

    Reads no files, so that it can be asked before anybody decides.
    """
    label = registered.label
    decider.check_named(label)
    decider.check_not_starter(registered, (manifest.started_by, manifest.identity or registered.identity))
    if manifest.run != registered.run:
        raise Refused(f"{label} comes from run {registered.run}, not {manifest.run}.")
    if manifest.status != "succeeded":
        raise Refused(f"The run of {label}, {manifest.run}, is {manifest.status}. Only one that succeeded counts.")
    outcome = manifest.verdict.outcome if manifest.verdict else "none"
    if outcome != "pass":
        raise Refused(f"The gate's verdict on {label} is {outcome}. Only what passed can be approved.")


def approve_for(
    registry: Registry,
    name: str,
    version: int,
    decider: Decider,
    *,
    target: str,
    targets: dict[str, Target],
    why: str,
    schema_change: SchemaChange = lambda _: {},
) -> Event:
    """The second approval, of an approved version for one target. Raises Refused where the same person gave the first;
    `schema_change` is as in `approve`."""
    _check_reason(why)
    if not targets[target].second_approval:
        raise UsageError(
            f"{target} needs no second approval; `runner approve {name}/{version}` without --to is enough."
        )
    registered = registry.get(name, version)
    check_may_approve_for(registered, registry.events(name), decider, target)
    data = {"target": target, **_data(decider, schema_change(registered))}
    return registry.record(name, version, f"approved for {target}", who=decider.who, why=why, data=data)


def check_may_approve_for(registered: ModelVersion, events: Sequence[Event], decider: Decider, target: str) -> None:
    """Raises Refused where this person may not give the second approval for the target, or it was given; `events` has
    all of the version's name."""
    label, version = registered.label, registered.version
    decider.check_named(label)
    check_approved(registered)
    decider.check_not_starter(registered)
    _, first = state(events, version)
    giver = first.who.removeprefix("external (").removesuffix(")") if first is not None else "external"
    if giver == "external":
        raise Refused(f"It is not known who approved {label} in SageMaker. Reject it there, and approve it here.")
    if first is not None and decider.may_be(giver, str(first.data.get("identity", ""))):
        raise Refused(f"{first.who} approved {label}; for {target} somebody else has to as well.")
    second = second_approval(events, version, target)
    if second is not None:
        raise Refused(f"{label} is approved for {target} already, by {second.who} at {second.at} ({second.why}).")


def reject(registry: Registry, name: str, version: int, decider: Decider, *, why: str) -> ModelVersion:
    """Reject a pending version or revoke an approved one.

    Raises Refused where it is rejected already, or by somebody who may not decide.
    """
    _check_reason(why)
    decider.check_named(f"{name}/{version}")
    return registry.decide(name, version, "rejected", who=decider.who, why=why, data=_data(decider, {}))


def _check_reason(why: str) -> None:
    if not why.strip():
        raise UsageError("A decision needs a reason: --reason TEXT.")


def _data(decider: Decider, lost: dict[str, list[str]]) -> dict[str, Any]:
    optional = {"identity": decider.identity, "known_by": decider.known_by, "schema_change": lost}
    return {key: value for key, value in optional.items() if value}
