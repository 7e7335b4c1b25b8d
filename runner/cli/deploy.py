"""Targets that serve versions: `deploy`, `rollback`, `undeploy`, `deployments`, `release`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    fields,
    note,
    parse_version,
    print_json,
    print_table,
    result_options,
    schema_option,
    time_text,
)
from runner.cli.summary import OUTCOMES
from runner.cli.terminal import confirm, say
from runner.errors import AnswerIsNo, UsageError
from runner.project import Project

if TYPE_CHECKING:
    from runner.model.served import Deployment

why_option = click.option("--reason", default="", metavar="TEXT", help="Why; kept for good.")
no_token_option = click.option(
    "--no-token", is_flag=True, help="Requests need no token any more, at a target of this machine."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done and what it costs; do nothing.")


@click.command("deploy")
@click.argument("version", metavar="NAME/VERSION")
@click.option("--to", "target", required=True, metavar="TARGET", help="One of [targets] in pipeline.toml.")
@why_option
@schema_option
@no_token_option
@dry_run_option
@result_options
def deploy_command(
    version: str,
    target: str,
    reason: str,
    allow_schema_change: bool,
    no_token: bool,
    dry_run: bool,
    as_json: bool,
    project: Project,
) -> None:
    """Serve an approved model version at a target.

    The new version is brought up beside the old one, has to answer its sample record as recorded, and only then takes
    the requests. Where it does not, the old one keeps serving. The command may be stopped at any time; a later one
    completes or undoes what was begun.
    A version that refuses requests which the old one answers is not deployed without --allow-schema-change.

    \b
    Example:
      runner deploy NAME/3 --to staging --dry-run
      runner deploy NAME/3 --to production --reason "ticket 41"
    """
    from runner import decisions
    from runner.model import deployment

    name, number = parse_version(version)
    deployer, registry = project.deployer(target, no_token=no_token), project.registry
    note(*decisions.older_rest(project, name, number, target))
    if dry_run:
        candidate = deployment.deployable(registry, deployer, name, number)
        deployment.comparison(registry, deployer, candidate).permitted(allow=allow_schema_change, say=note)
        _print_plan(f"{version} would be deployed to {target}", deployer.plan(candidate), as_json)
        return
    options: dict[str, Any] = {"why": reason, "allow_schema_change": allow_schema_change, "say": note}
    _print_deployment(decisions.deploy(project, deployer, name, number, **options), as_json)


@click.command("rollback")
@click.argument("target")
@why_option
@no_token_option
@dry_run_option
@result_options
def rollback_command(target: str, reason: str, no_token: bool, dry_run: bool, as_json: bool, project: Project) -> None:
    """Serve again what the target served before, as a deployment does; a second call goes one version further back.

    \b
    Example:
      runner rollback production --reason "answers too slowly"
    """
    from runner import decisions
    from runner.model import deployment
    from runner.model.served import before

    deployer, registry = project.deployer(target, no_token=no_token), project.registry
    if dry_run:
        earlier = before(registry, target)
        deployment.comparison(registry, deployer, earlier).permitted(allow=True, say=note)
        _print_plan(f"{target} would go back to {earlier.label}", deployer.plan(earlier), as_json)
        return
    deployed = decisions.rollback(project, deployer, why=reason, say=note)
    note(*decisions.older_rest(project, deployed.name, deployed.version, target))
    _print_deployment(deployed, as_json)


@click.command("undeploy")
@click.argument("target")
@why_option
@dry_run_option
@result_options
def undeploy_command(target: str, reason: str, dry_run: bool, as_json: bool, project: Project) -> None:
    """Serve nothing at the target any more: requests under way are answered, then it ends.

    \b
    Example:
      runner undeploy staging --reason "not needed any more"
    """
    from runner import decisions

    deployer = project.deployer(target)
    if dry_run:
        last = deployer.last()
        served = last.label if last is not None and last.kind != "removed" else "nothing"
        _print_plan(f"{target} serves {served}", [f"end it at {last.place}"] if last and last.place else [], as_json)
        return
    _print_deployment(decisions.undeploy(project, deployer, why=reason, say=note), as_json)


@click.command("deployments")
@click.argument("target", required=False)
@click.option("--restart", is_flag=True, help="Serve again what was served where a target is down.")
@no_token_option
@result_options
def deployments_command(target: str | None, restart: bool, no_token: bool, as_json: bool, project: Project) -> None:
    """Show what each target serves, since when and by whom, and whether it answers now.

    \b
    Example:
      runner deployments
      runner deployments staging --restart      after this machine was started anew
    """
    targets = project.spec.targets
    if not targets:
        raise UsageError('There are no targets. Write [targets.NAME] with kind = "local" or "sagemaker".')
    names = [target] if target is not None else [*targets]
    rows = [_target_row(project, name, restart=restart, no_token=no_token) for name in names]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ["target", "kind", "model", "since (UTC)", "by", "place", "process", "health", "monitor"],
            [
                [
                    *(row[key] for key in ("target", "kind", "model")),
                    row["since"] and time_text(row["since"]),
                    *(row[key] for key in ("by", "place")),
                    str(row["process"]) if row["process"] else None,
                    f"{row['health']} ({row['message']})" if row["message"] else row["health"],
                    _look_text(row["monitor"], row["model"]),
                ]
                for row in rows
            ],
        )
        for row in rows:
            _say_why(row["target"], row["monitor"])
    if down := [row["target"] for row in rows if row["health"] in ("down", "unhealthy")]:
        raise AnswerIsNo(f"{', '.join(down)}: not as it should be, see above.")


@click.command("release")
@click.argument("version", metavar="NAME/VERSION")
@click.option("--to", "target", metavar="TARGET", help="The last target.  [default: the one that no other requires]")
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept for good, with each step.")
@click.option("--yes", is_flag=True, help="Ask nothing, for CI.")
@schema_option
@click.option("--dry-run", is_flag=True, help="Say which steps are left; do nothing.")
@result_options
def release_command(
    version: str,
    target: str | None,
    reason: str,
    yes: bool,
    allow_schema_change: bool,
    dry_run: bool,
    as_json: bool,
    project: Project,
) -> None:
    """Walk a version through approval and the targets that require each other, asking before each step.

    Steps that are done are not repeated, so the same command continues where it stopped: after a no, a failure, or
    where another person has to approve.

    \b
    Example:
      runner release NAME/3 --reason "metrics reviewed, see ticket 41"
      runner release NAME/3 --reason "nightly" --to staging --yes
    """
    from runner import decisions
    from runner.model.release import ReleaseStep, release, steps

    name, number = parse_version(version)
    registry, targets = project.registry, project.spec.targets
    note(*decisions.older_rest(project, name, number))
    if dry_run:
        left = list(steps(registry, name, number, targets=targets, to=target))
        notes: dict[str, None] = {}  # the same of several steps once
        for step in left:
            decisions.check(
                project, name, number, target=step.target, allow_schema_change=allow_schema_change, say=notes.setdefault
            )
        note(*notes)
        _print_plan(f"{version} would be released", [step.sentence(version) for step in left], as_json)
        return

    def may(step: ReleaseStep) -> bool:
        return yes or confirm(f"{step.sentence(version)}?")

    def do(step: ReleaseStep) -> Deployment | None:
        deployed = decisions.carry_out(
            project, step, name, number, why=reason, allow_schema_change=allow_schema_change, say=note
        )
        say(f"✓ {step.sentence(version)}{f' at {deployed.place}' if deployed else ''}", err=as_json)
        return deployed

    done = release(registry, name, number, targets=targets, to=target, may=may, do=do)
    if as_json:
        print_json({"model": version, "steps": [fields(step, "what", "target") for step in done]})
    elif not done:
        say(f"{version} is released already")


def _target_row(project: Project, target: str, *, restart: bool, no_token: bool) -> dict[str, Any]:
    """A target's state as the table and the JSON have it."""
    from runner import decisions

    state = decisions.target_state(project, target, restart=restart, no_token=no_token)
    deployed, health = state.deployment, state.health
    return {
        "target": target,
        "kind": state.kind,
        "model": deployed and deployed.label,
        "since": deployed and deployed.at,
        "by": deployed and deployed.who,
        "why": deployed and deployed.why,
        "event": deployed and deployed.kind,
        "place": deployed and deployed.place,
        "process": health and health.process,
        "health": health and health.status,
        "message": health and health.detail,
        "monitor": _last_look(project, target),
    }


def _last_look(project: Project, target: str) -> dict[str, Any] | None:
    """The last look at what the target captured."""
    from runner.run.monitored import last_look

    look = last_look(project.store, target)
    if look is None:
        return None
    facts = fields(look, "run", "verdict", "at", "model", "since", "until")
    return {**facts, "reasons": [fields(reason, "what", "why") for reason in look.reasons]}


def _look_text(look: dict[str, Any] | None, served: str | None) -> str | None:
    if look is None:
        return None
    of = f", of {look['model']}" if look["model"] not in (None, served) else ""
    return f"{OUTCOMES.get(look['verdict'], 'no verdict')} {time_text(look['at'])}{of}"


def _say_why(target: str, look: dict[str, Any] | None) -> None:
    """Why the last look was not a yes, and at which window."""
    if look is None or look["verdict"] == "pass":
        return
    window = " to ".join(time_text(bound) for bound in (look["since"], look["until"]) if bound)
    say(f"{target}: run {look['run']} looked at what came in{f', {window}' * bool(window)}")
    for reason in look["reasons"]:
        say(f"  {reason['what']}: {reason['why']}")


def _print_plan(message: str, steps: Iterable[str], as_json: bool) -> None:
    if as_json:
        print_json({"message": message, "steps": list(steps)})
        return
    say(f"{message}; nothing was done:")
    for step in steps:
        say(f"  {step}")


def _print_deployment(deployed: Deployment, as_json: bool) -> None:
    if as_json:
        print_json(fields(deployed, *(name for name in deployed.__struct_fields__ if name != "format")))
    elif deployed.kind == "removed":
        say(f"{deployed.label} is not served at {deployed.target} any more")
    else:
        replaced = f", instead of {deployed.replaced}" if deployed.replaced not in ("", deployed.label) else ""
        say(f"{deployed.target} serves {deployed.label} at {deployed.place}{replaced}")
