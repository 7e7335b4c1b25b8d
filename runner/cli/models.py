"""The model registry: `models`, `register`, `approve`, `reject`, `history`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    fields,
    metric_text,
    metrics_json,
    note,
    parse_time,
    parse_version,
    print_json,
    print_table,
    result_options,
    schema_option,
    time_text,
)
from runner.cli.terminal import say
from runner.project import Project

if TYPE_CHECKING:
    from runner.model.versions import Event, ModelVersion, Registry

reason_option = click.option("--reason", required=True, metavar="TEXT", help="Why; kept for good.")


@click.command("models")
@click.argument("name", required=False)
@click.option("--profile", metavar="NAME", help="Of the registry that [profiles.NAME] of the pipeline file has.")
@click.option("--rebuild", is_flag=True, help="Make a damaged or lost registry anew from the copies of its events.")
@result_options
def models_command(name: str | None, profile: str | None, rebuild: bool, as_json: bool, project: Project) -> None:
    """List registered model versions, of NAME or of all names.

    \b
    Example:
      runner models
    """
    from runner.model.events import claim

    project.profile = profile
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
                time_text(version.created),
                *(f"{version.metrics[metric].value:.4g}" if metric in version.metrics else None for metric in shown),
                version.decided_by or None,
                version.reason or claim(version) or None,
            ]
            for version in versions
        ],
    )


@click.command("register")
@click.argument("run")
@result_options
def register_command(run: str, as_json: bool, project: Project) -> None:
    """Register the model of a run that passed and did not register; again gives the same version.

    \b
    Example:
      runner register latest
    """
    from runner import notify
    from runner.cli.display import PlainDisplay
    from runner.report.page import write_all
    from runner.run.ports import Options
    from runner.run.resume import register

    manifest = project.run(run)
    is_new = manifest.model_version is None
    options = Options(jobs=manifest.chosen.jobs, kernel=manifest.chosen.kernel)
    world = project.of(manifest.pipeline).world(on=manifest.on, kernel=options.kernel, watcher=PlainDisplay())
    manifest = register(manifest.run, project.file, options, world)
    assert manifest.model_version is not None
    report = write_all(project.store.folder(manifest.run), manifest)
    version = project.registry.get(manifest.model_version.name, manifest.model_version.version)
    if as_json:
        print_json(version_json(version))
    else:
        say(f"model {version.label} {version.status}")
    if is_new:
        notify.tell(project.spec.notify, notify.of_run(manifest, report, registry=project.registry), note)


@click.command("approve")
@click.argument("version", metavar="NAME/VERSION")
@reason_option
@click.option("--to", "target", metavar="TARGET", help="Give the second approval that this target asks for.")
@schema_option
@result_options
def approve_command(
    version: str, reason: str, target: str | None, allow_schema_change: bool, as_json: bool, project: Project
) -> None:
    """Approve a pending model version.

    Its run must have passed and its bytes must match. It must answer what is sent to the versions that serve and to the
    approved one, unless --allow-schema-change is given.

    \b
    Example:
      runner approve NAME/3 --reason "metrics reviewed, see ticket 41"
      runner approve NAME/3 --to production --reason "as good in staging"
    """
    from runner import decisions

    note(*decisions.older_rest(project, *parse_version(version), target))
    options: dict[str, Any] = {"why": reason, "allow_schema_change": allow_schema_change, "say": note}
    if target is None:
        approved = decisions.approve(project, *parse_version(version), **options)
    else:
        approved = decisions.approve_for(project, *parse_version(version), target=target, **options)
    _print_decision(approved, as_json, f" for {target}" if target else "")


@click.command("reject")
@click.argument("version", metavar="NAME/VERSION")
@reason_option
@result_options
def reject_command(version: str, reason: str, as_json: bool, project: Project) -> None:
    """Reject a pending version, or revoke an approved one; says which targets serve it still, and how to end that.

    \b
    Example:
      runner reject NAME/3 --reason "trained on the wrong month"
    """
    from runner import decisions
    from runner.model.served import still_served

    name, number = parse_version(version)
    rejected = decisions.reject(project, name, number, why=reason, say=note)
    served = still_served(project.registry, name, number)
    if as_json:
        print_json({**version_json(rejected), "served_at": served})
        return
    _print_decision(rejected, as_json)
    for target, command in served.items():
        say(f"  {target} serves it still: {command}")


@click.command("history")
@click.argument("name")
@click.option("--at", metavar="TIME", help="What held then: ISO 8601, UTC where no zone is written.")
@click.option("--target", metavar="TARGET", help="What this target served; with --at, then, otherwise ever.")
@click.option("--head", is_flag=True, help="Print the last event's hash, to keep somewhere else.")
@result_options
def history_command(name: str, at: str | None, target: str | None, head: bool, as_json: bool, project: Project) -> None:
    """Show everything that happened to a model's versions, oldest first, and whether the chain is whole.

    "known by" says how it was known who it was: `account` of a command; of web pages `address`, `password`, `jupyter`
    or `header NAME`.

    \b
    Example:
      runner history NAME
      runner history NAME --at 2027-03-03T12:00Z
      runner history NAME --at 2027-03-03T12:00Z --target production
    """
    from runner.errors import Tampered
    from runner.model.events import claim, state_at, verify_chain

    registry = project.registry
    events = registry.events(name)
    broken = verify_chain(events)
    if head:
        last = events[-1]
        if as_json:
            print_json({"name": name, "seq": last.seq, "hash": last.hash})
        else:
            say(f"{name} {last.seq} {last.hash}")
    elif at is not None and target is not None:
        _print_served(registry, events, target, parse_time(at), as_json)
    elif at is not None:
        moment = parse_time(at)
        states = [(registry.get(name, version), *state) for version, state in state_at(events, moment).items()]
        _print_states(name, moment, states, as_json)
    else:
        shown = [event for event in events if target in (None, event.data.get("target"))]
        if as_json:
            import msgspec

            print_json(msgspec.to_builtins(shown))
        else:
            claims = {} if broken else {version.version: claim(version) for version in registry.list(name)}
            print_table(
                ["when (UTC)", "model", "what", "who", "known by", "why"],
                [
                    [
                        time_text(event.at),
                        f"{event.name}/{event.version}",
                        _event_text(event),
                        event.who,
                        event.data.get("known_by"),
                        event.why or (event.kind == "registered" and claims.get(event.version)) or None,
                    ]
                    for event in shown
                ],
            )
    if broken is not None:
        raise Tampered(f"The history of {name} was altered: {broken}")


def _print_states(
    name: str, moment: str, states: Sequence[tuple[ModelVersion, str, Event | None]], as_json: bool
) -> None:
    """Which version was the approved one at that moment, by whose decision, and what it leads back to."""
    approved = max((version.version for version, status, _ in states if status == "approved"), default=None)
    if as_json:
        rows = [
            {**_version_then(version, status, decision), "decided": decision and decision.at}
            for version, status, decision in states
        ]
        print_json({"name": name, "at": moment, "approved": approved, "versions": rows})
        return
    sentence = "no version was approved" if approved is None else f"{name}/{approved} was the approved version"
    say(f"at {time_text(moment)} UTC {sentence}")
    print_table(
        ["model", "status then", "run", "commit", "decided (UTC)", "by", "reason"],
        [
            [
                version.label,
                status,
                version.run,
                version.commit[:8] if version.commit else None,
                time_text(decision.at) if decision else None,
                decision.who if decision else None,
                decision.why if decision else None,
            ]
            for version, status, decision in states
        ],
    )


def _print_served(registry: Registry, events: Sequence[Event], target: str, moment: str, as_json: bool) -> None:
    """What the target served at that moment, by whose decision and deployment, and what it leads back to."""
    from runner.model.events import state_at
    from runner.model.served import served_at, since

    name = events[0].name
    deployed = served_at(events, target, moment)
    if deployed is None:
        if as_json:
            print_json({"name": name, "at": moment, "target": target, "served": None})
        else:
            say(f"at {time_text(moment)} UTC no version of {name} was served at {target}")
        return
    version = registry.get(name, deployed.version)
    status, decision = state_at(events, moment)[deployed.version]
    if as_json:
        print_json(
            {
                "name": name,
                "at": moment,
                "target": target,
                "served": _version_then(version, status, decision),
                "since": since(deployed),
                "deployed_by": deployed.who,
                **fields(deployed, "why", "kind"),
                "place": deployed.data.get("place", ""),
            }
        )
        return
    approval = f"{decision.who} at {time_text(decision.at)}: {decision.why}" if decision else "–"
    facts = {
        "served since": f"{time_text(since(deployed))} UTC",
        deployed.kind: f"by {deployed.who}{f': {deployed.why}' if deployed.why else ''}",
        status: f"by {approval}",
        "place": deployed.data.get("place") or "–",
        "run": version.run,
        "commit": version.commit or "–",
        "data": ", ".join(f"{source} {digest[:12]}" for source, digest in version.sources.items()) or "–",
        "bytes": f"sha256 {version.sha256}",
    }
    say(f"at {time_text(moment)} UTC {target} served {version.label}")
    for label, fact in facts.items():
        say(f"  {label:<12}  {fact}")


def _event_text(event: Event) -> str:
    target = event.data.get("target")
    text = event.kind if target is None or target in event.kind else f"{event.kind} ({target})"
    return f"{text}, schema change" if event.data.get("schema_change") else text


def version_json(version: ModelVersion) -> dict[str, Any]:
    """With what was decided on an imported version where it comes from, as its `claim`."""
    from runner.model.events import claim

    return {
        **fields(version, "name", "version", "status", "run", "sha256"),
        "metrics": metrics_json(version.metrics),
        **fields(version, "created", "decided_by", "reason", "commit", "sources"),
        **({"claim": decided_elsewhere} if (decided_elsewhere := claim(version)) else {}),
    }


def _version_then(version: ModelVersion, status: str, decision: Event | None) -> dict[str, Any]:
    """The version as it was after that decision."""
    now = version_json(version)
    return {**now, "status": status, "decided_by": decision and decision.who, "reason": decision and decision.why}


def _print_decision(version: ModelVersion, as_json: bool, more: str = "") -> None:
    if as_json:
        print_json(version_json(version))
        return
    say(f"model {version.label} {version.status}{more}")
    for name, metric in version.metrics.items():
        say(f"  {name} = {metric_text(metric)}")
