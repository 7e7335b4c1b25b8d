"""The model registry: `models`, `register`, `approve`, `reject`, `history`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    json_option,
    metric_json,
    metric_text,
    note,
    parse_time,
    parse_version,
    pipeline_option,
    print_json,
    print_table,
    schema_option,
)
from runner.cli.terminal import say

if TYPE_CHECKING:
    from runner.model.versions import Event, ModelVersion, Registry

reason_option = click.option("--reason", required=True, metavar="TEXT", help="Why; kept for good.")


@click.command("models")
@click.argument("name", required=False)
@click.option("--profile", metavar="NAME", help="Of the registry that [profiles.NAME] of the pipeline file has.")
@click.option("--rebuild", is_flag=True, help="Make a damaged or lost registry anew from the copies of its events.")
@json_option
@pipeline_option
def models_command(name: str | None, profile: str | None, rebuild: bool, as_json: bool, pipeline: Path) -> None:
    """List registered model versions, of NAME or of all names.

    \b
    Example:
      runner models
    """
    from runner.model.events import claim
    from runner.project import Project

    project = Project(pipeline, profile=profile)
    if rebuild:
        project.rebuild_registry()
    versions = project.registry.list(name)
    judged = [rule.metric for rule in project.spec.gate]
    shown = [metric for metric in dict.fromkeys(judged) if any(metric in version.metrics for version in versions)]
    if as_json:
        print_json([version_json(version) for version in versions])
        return
    if not versions:
        say("No model is registered yet. `runner check` says whether a run that passes registers one.", err=True)
        return
    print_table(
        ["model", "status", "run", "created (UTC)", *shown, "decided by", "reason"],
        [
            [
                version.label,
                version.status,
                version.run,
                version.created[:19].replace("T", " "),
                *(f"{version.metrics[metric].value:.4g}" if metric in version.metrics else "–" for metric in shown),
                version.decided_by or "–",
                version.reason or claim(version) or "–",
            ]
            for version in versions
        ],
    )


@click.command("register")
@click.argument("run")
@json_option
@pipeline_option
def register_command(run: str, as_json: bool, pipeline: Path) -> None:
    """Register the model of a run that passed and did not register; again gives the same version.

    \b
    Example:
      runner register latest
    """
    from runner.cli.display import PlainDisplay
    from runner.cli.reporting import write_all
    from runner.project import Project
    from runner.run.ports import Options
    from runner.run.resume import register

    project = Project(pipeline)
    manifest = project.run(run)
    options = Options(jobs=manifest.chosen.jobs, kernel=manifest.chosen.kernel)
    world = project.world(manifest.pipeline, on=manifest.on, kernel=options.kernel, watcher=PlainDisplay())
    manifest = register(manifest.run, pipeline, options, world)
    assert manifest.model_version is not None
    write_all(project.store.folder(manifest.run), manifest)
    version = project.registry.get(manifest.model_version.name, manifest.model_version.version)
    if as_json:
        print_json(version_json(version))
    else:
        say(f"model {version.label} {version.status}")


@click.command("approve")
@click.argument("version", metavar="NAME/VERSION")
@reason_option
@click.option("--to", "target", metavar="TARGET", help="Give the second approval that this target asks for.")
@schema_option
@json_option
@pipeline_option
def approve_command(
    version: str, reason: str, target: str | None, allow_schema_change: bool, as_json: bool, pipeline: Path
) -> None:
    """Approve a pending model version: its run must have passed, its bytes must match, and it must answer what is sent to
    those that serve and to the approved one, or --allow-schema-change say that it need not.

    \b
    Example:
      runner approve NAME/3 --reason "metrics reviewed, see ticket 41"
      runner approve NAME/3 --to production --reason "as good in staging"
    """
    from runner import decisions
    from runner.project import Project

    project = Project(pipeline)
    for said in decisions.older_rest(project, *parse_version(version), target):
        note(said)
    allowed: dict[str, Any] = {"allow_schema_change": allow_schema_change, "say": note}
    if target is None:
        found = decisions.approve(project, *parse_version(version), why=reason, **allowed)
    else:
        found = decisions.approve_for(project, *parse_version(version), target=target, why=reason, **allowed)
    _print_decision(found, as_json, f" for {target}" if target else "")


@click.command("reject")
@click.argument("version", metavar="NAME/VERSION")
@reason_option
@json_option
@pipeline_option
def reject_command(version: str, reason: str, as_json: bool, pipeline: Path) -> None:
    """Reject a pending version, or revoke an approved one; says which targets serve it still, and how to end that.

    \b
    Example:
      runner reject NAME/3 --reason "trained on the wrong month"
    """
    from runner import decisions
    from runner.model.served import still_served
    from runner.project import Project

    project = Project(pipeline)
    name, number = parse_version(version)
    found = decisions.reject(project, name, number, why=reason)
    served = still_served(project.registry, name, number)
    if as_json:
        print_json({**version_json(found), "served_at": served})
        return
    _print_decision(found, as_json)
    for target, command in served.items():
        say(f"  {target} serves it still: {command}")


@click.command("history")
@click.argument("name")
@click.option("--at", "at", metavar="TIME", help="What held then: ISO 8601, UTC where no zone is written.")
@click.option("--target", metavar="TARGET", help="What this target served; with --at, then, otherwise ever.")
@click.option("--head", is_flag=True, help="Print the last event's hash, to keep somewhere else.")
@json_option
@pipeline_option
def history_command(name: str, at: str | None, target: str | None, head: bool, as_json: bool, pipeline: Path) -> None:
    """Show everything that happened to a model's versions, oldest first, and whether the chain is whole.

    \b
    Example:
      runner history NAME
      runner history NAME --at 2027-03-03T12:00Z
      runner history NAME --at 2027-03-03T12:00Z --target production
    """
    from runner.errors import Tampered
    from runner.model.events import claim, state_at, verify_chain
    from runner.project import Project

    versions = Project(pipeline).registry
    events = versions.events(name)
    broken = verify_chain(events)
    if head:
        last = events[-1]
        if as_json:
            print_json({"name": name, "seq": last.seq, "hash": last.hash})
        else:
            say(f"{name} {last.seq} {last.hash}")
    elif at is not None and target is not None:
        _print_served(versions, events, target, parse_time(at), as_json)
    elif at is not None:
        moment = parse_time(at)
        held = state_at(events, moment)
        found = [(versions.get(name, version), *then) for version, then in held.items()]
        _print_state(name, moment, found, as_json)
    elif as_json:
        print_json([_event_json(event) for event in events if target in (None, event.data.get("target"))])
    else:
        claims = {} if broken else {version.version: claim(version) for version in versions.list(name)}
        print_table(
            ["when (UTC)", "model", "what", "who", "why"],
            [
                [
                    e.at[:19].replace("T", " "),
                    f"{e.name}/{e.version}",
                    _what(e),
                    e.who,
                    e.why or _said(e, claims) or "–",
                ]
                for e in events
                if target in (None, e.data.get("target"))
            ],
        )
    if broken is not None:
        raise Tampered(f"The history of {name} was altered: {broken}")


def _print_state(
    name: str, moment: str, found: Sequence[tuple[ModelVersion, str, Event | None]], as_json: bool
) -> None:
    """Which version was the approved one at that moment, by whose decision, and what it leads back to."""
    approved = max((version.version for version, status, _ in found if status == "approved"), default=None)
    if as_json:
        rows = [
            {**version_json(version), "status": status, "decided_by": e.who if e else None, "reason": e.why if e else None,
             "decided": e.at if e else None}
            for version, status, e in found
        ]  # fmt: skip
        print_json({"name": name, "at": moment, "approved": approved, "versions": rows})
        return
    said = "no version was approved" if approved is None else f"{name}/{approved} was the approved version"
    say(f"at {moment[:19].replace('T', ' ')} UTC {said}")
    print_table(
        ["model", "status then", "run", "commit", "decided (UTC)", "by", "reason"],
        [
            [
                f"{name}/{version.version}",
                status,
                version.run,
                (version.commit or "–")[:8],
                e.at[:19].replace("T", " ") if e else "–",
                e.who if e else "–",
                e.why if e else "–",
            ]
            for version, status, e in found
        ],
    )


def _print_served(versions: Registry, events: Sequence[Event], target: str, moment: str, as_json: bool) -> None:
    """What the target served at that moment, by whose decision and deployment, and what it leads back to."""
    from runner.model.events import state_at
    from runner.model.served import served_at, since

    name = events[0].name
    found = served_at(events, target, moment)
    if found is None:
        if as_json:
            print_json({"name": name, "at": moment, "target": target, "served": None})
        else:
            say(f"at {moment[:19].replace('T', ' ')} UTC no version of {name} was served at {target}")
        return
    version = versions.get(name, found.version)
    status, decision = state_at(events, moment)[found.version]
    if as_json:
        decided = {"status": status, "decided_by": decision.who if decision else None, "reason": decision.why if decision else None}  # fmt: skip
        print_json(
            {
                "name": name,
                "at": moment,
                "target": target,
                "served": {**version_json(version), **decided},
                "since": since(found),
                "deployed_by": found.who,
                "why": found.why,
                "kind": found.kind,
                "place": found.data.get("place", ""),
            }
        )
        return
    approval = f"{decision.who} at {decision.at[:19].replace('T', ' ')}: {decision.why}" if decision else "–"
    rows = {
        "served since": f"{since(found)[:19].replace('T', ' ')} UTC",
        found.kind: f"by {found.who}{f': {found.why}' if found.why else ''}",
        status: f"by {approval}",
        "place": str(found.data.get("place") or "–"),
        "run": version.run,
        "commit": version.commit or "–",
        "data": ", ".join(f"{source} {digest[:12]}" for source, digest in version.sources.items()) or "–",
        "bytes": f"sha256 {version.sha256}",
    }
    say(f"at {moment[:19].replace('T', ' ')} UTC {target} served {name}/{found.version}")
    for what, said in rows.items():
        say(f"  {what:<12}  {said}")


def _what(event: Event) -> str:
    at = event.data.get("target")
    said = event.kind if at is None or at in event.kind else f"{event.kind} ({at})"
    return f"{said}, schema change" if event.data.get("schema_change") else said


def _said(event: Event, claims: dict[int, str]) -> str:
    """What came with an imported version of the place it comes from, at the event that took it in."""
    return claims.get(event.version, "") if event.kind == "registered" else ""


def version_json(version: ModelVersion) -> dict[str, Any]:
    from runner.model.events import claim

    said = claim(version)
    return {
        "name": version.name,
        "version": version.version,
        "status": version.status,
        "run": version.run,
        "sha256": version.sha256,
        "metrics": {name: metric_json(metric) for name, metric in version.metrics.items()},
        "created": version.created,
        "decided_by": version.decided_by,
        "reason": version.reason,
        "commit": version.commit,
        "sources": version.sources,
        **({"claim": said} if said else {}),  # of an imported one
    }


def _event_json(event: Any) -> dict[str, Any]:
    import msgspec

    made: dict[str, Any] = msgspec.to_builtins(event)
    return made


def _print_decision(version: ModelVersion, as_json: bool, more: str = "") -> None:
    if as_json:
        print_json(version_json(version))
        return
    say(f"model {version.label} {version.status}{more}")
    for name, metric in version.metrics.items():
        say(f"  {name} = {metric_text(metric)}")
