"""Targets that serve versions: `deploy`, `rollback`, `undeploy`, `deployments`, `release`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import json_option, note, parse_version, pipeline_option, print_json, print_table, schema_option
from runner.cli.terminal import confirm, say
from runner.errors import AnswerIsNo, UsageError

if TYPE_CHECKING:
    from runner.model.deployment import Health
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
@json_option
@pipeline_option
def deploy_command(
    version: str,
    target: str,
    reason: str,
    allow_schema_change: bool,
    no_token: bool,
    dry_run: bool,
    as_json: bool,
    pipeline: Path,
) -> None:
    """Serve an approved model version at a target.

    The new version is brought up beside the old one, has to answer its sample record as recorded, and only then takes
    the requests. Where it does not, the old one goes on. The command may be ended at any time; nothing stays half done.
    A version that refuses requests which the old one answers is not deployed without --allow-schema-change.

    \b
    Example:
      runner deploy NAME/3 --to staging --dry-run
      runner deploy NAME/3 --to production --reason "ticket 41"
    """
    from runner import decisions
    from runner.model import deployment
    from runner.project import Project
    from runner.run.provenance import who

    name, number = parse_version(version)
    project = Project(pipeline)
    deployer, registry = project.deployer(target, no_token=no_token), project.registry
    for said in decisions.older_rest(project, name, number, target):
        note(said)
    targets = project.spec.targets
    if dry_run:
        found = deployment.deployable(registry, name, number, target=target, targets=targets)
        deployment.comparison(registry, deployer, found).permitted(allow=allow_schema_change, say=note)
        _print_plan(f"{version} would be deployed to {target}", deployer.plan(found), as_json)
        return
    made = deployment.deploy(
        registry, deployer, name, number, target=target, targets=targets, who=who(), why=reason,
        allow_schema_change=allow_schema_change, say=note,
    )  # fmt: skip
    _print_made(made, as_json)


@click.command("rollback")
@click.argument("target")
@why_option
@no_token_option
@dry_run_option
@json_option
@pipeline_option
def rollback_command(target: str, reason: str, no_token: bool, dry_run: bool, as_json: bool, pipeline: Path) -> None:
    """Serve again what the target served before, in the same way as a deployment; again goes one further back.

    \b
    Example:
      runner rollback production --reason "answers too slowly"
    """
    from runner import decisions
    from runner.model import deployment
    from runner.model.served import before
    from runner.project import Project
    from runner.run.provenance import who

    project = Project(pipeline)
    deployer, registry = project.deployer(target, no_token=no_token), project.registry
    if dry_run:
        found = before(registry, target)
        deployment.comparison(registry, deployer, found).permitted(allow=True, say=note)
        said = f"{target} would go back to {found.label}"
        _print_plan(said, deployer.plan(found), as_json)
        return
    made = deployment.rollback(registry, deployer, target=target, who=who(), why=reason, say=note)
    for said in decisions.older_rest(project, made.name, made.version, target):
        note(said)
    _print_made(made, as_json)


@click.command("undeploy")
@click.argument("target")
@why_option
@dry_run_option
@json_option
@pipeline_option
def undeploy_command(target: str, reason: str, dry_run: bool, as_json: bool, pipeline: Path) -> None:
    """Serve nothing at the target any more: requests under way are answered, then it ends.

    \b
    Example:
      runner undeploy staging --reason "not needed any more"
    """
    from runner.model import deployment
    from runner.project import Project
    from runner.run.provenance import who

    project = Project(pipeline)
    deployer, registry = project.deployer(target), project.registry
    if dry_run:
        last = deployer.last()
        served = last.label if last is not None and last.kind != "removed" else "nothing"
        _print_plan(f"{target} serves {served}", [f"end it at {last.place}"] if last and last.place else [], as_json)
        return
    _print_made(deployment.remove(registry, deployer, target=target, who=who(), why=reason), as_json)


@click.command("deployments")
@click.argument("target", required=False)
@click.option("--restart", is_flag=True, help="Serve again what was served where a target is down.")
@no_token_option
@json_option
@pipeline_option
def deployments_command(target: str | None, restart: bool, no_token: bool, as_json: bool, pipeline: Path) -> None:
    """Show what each target serves, since when and by whom, and whether it answers now.

    \b
    Example:
      runner deployments
      runner deployments staging --restart      after this machine was started anew
    """
    from runner.model import deployment
    from runner.model.served import way_out
    from runner.project import Project
    from runner.run.provenance import who

    project = Project(pipeline)
    targets, registry = project.spec.targets, project.registry
    if not targets:
        raise UsageError('There are no targets. Write [targets.NAME] with kind = "local" or "sagemaker".')
    rows: list[tuple[str, str, Deployment | None, Health | None]] = []
    for name in [target] if target is not None else targets:
        deployer = project.deployer(name, no_token=no_token)
        deployment.catch_up(registry, deployer, who())
        last = deployer.last()
        serves = last is not None and last.kind != "removed"
        health = deployer.health() if serves else None
        if restart and health is not None and health.status == "down":
            last = deployment.restart(registry, deployer, target=name, who=who())
            health = deployer.health()
        if health is not None and last is not None:
            status = registry.get(last.name, last.version).status
            if status != "approved":
                said = f"{last.label} is {status} since it was deployed: {way_out(registry, name)}"
                health = deployment.Health(status="unhealthy", said=said, process=health.process)
        rows.append((name, targets[name].kind, last if serves else None, health))
    if as_json:
        print_json([_json(*row) for row in rows])
    else:
        print_table(
            ["target", "kind", "model", "since (UTC)", "by", "place", "process", "health"],
            [
                [
                    name,
                    kind,
                    made.label if made else "–",
                    made.at[:19].replace("T", " ") if made else "–",
                    made.who if made else "–",
                    made.place if made else "–",
                    str(health.process) if health and health.process else "–",
                    f"{health.status}{f' ({health.said})' if health.said else ''}" if health else "–",
                ]
                for name, kind, made, health in rows
            ],
        )
    down = [name for name, _, _, health in rows if health is not None and health.status in ("down", "unhealthy")]
    if down:
        raise AnswerIsNo(f"{', '.join(down)}: not as it should be, see above.")


@click.command("release")
@click.argument("version", metavar="NAME/VERSION")
@click.option("--to", "target", metavar="TARGET", help="The last target.  [default: the one that no other requires]")
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept for good, with each step.")
@click.option("--yes", is_flag=True, help="Ask nothing, for CI.")
@schema_option
@click.option("--dry-run", is_flag=True, help="Say which steps are left; do nothing.")
@json_option
@pipeline_option
def release_command(
    version: str,
    target: str | None,
    reason: str,
    yes: bool,
    allow_schema_change: bool,
    dry_run: bool,
    as_json: bool,
    pipeline: Path,
) -> None:
    """Walk a version through approval and the targets that require each other, asking before each step.

    What was done before is not done again, so the same command goes on where it stopped: after a no, a failure, or
    where somebody else has to approve.

    \b
    Example:
      runner release NAME/3 --reason "metrics reviewed, see ticket 41"
      runner release NAME/3 --reason "nightly" --to staging --yes
    """
    from runner import decisions
    from runner.model import deployment
    from runner.model.release import Step, release, steps
    from runner.project import Project
    from runner.run.provenance import who

    name, number = parse_version(version)
    project = Project(pipeline)
    registry, targets = project.registry, project.spec.targets
    for said in decisions.older_rest(project, name, number):
        note(said)
    allowed: dict[str, Any] = {"allow_schema_change": allow_schema_change, "say": note}
    if dry_run:
        left = list(steps(registry, name, number, targets=targets, to=target))
        notes: dict[str, None] = {}  # the same of several steps once
        for step in left:
            decisions.check(
                project,
                name,
                number,
                target=step.target,
                allow_schema_change=allow_schema_change,
                say=notes.setdefault,
            )
        for said in notes:
            note(said)
        _print_plan(f"{version} would be released", [step.said(version) for step in left], as_json)
        return

    def may(step: Step) -> bool:
        return yes or confirm(f"{step.said(version)}?")

    def do(step: Step) -> Deployment | None:
        match step.what, step.target:
            case "approve", _:
                decisions.approve(project, name, number, why=reason, **allowed)
            case "approve for", str(at):
                decisions.approve_for(project, name, number, target=at, why=reason, **allowed)
            case "deploy", str(at):
                deployer = project.deployer(at)
                return deployment.deploy(
                    registry, deployer, name, number, target=at, targets=targets, who=who(), why=reason, **allowed
                )
        return None

    def done(step: Step) -> Deployment | None:
        made = do(step)
        where = f" at {made.place}" if made is not None else ""
        say(f"✓ {step.said(version)}{where}", err=as_json)
        return made

    taken = release(registry, name, number, targets=targets, to=target, may=may, do=done)
    if as_json:
        print_json({"model": version, "steps": [{"what": step.what, "target": step.target} for step in taken]})
    elif not taken:
        say(f"{version} is released already")


def _json(name: str, kind: str, made: Deployment | None, health: Health | None) -> dict[str, Any]:
    return {
        "target": name,
        "kind": kind,
        "model": made.label if made else None,
        "since": made.at if made else None,
        "by": made.who if made else None,
        "why": made.why if made else None,
        "how": made.kind if made else None,
        "place": made.place if made else None,
        "process": health.process if health else None,
        "health": health.status if health else None,
        "said": health.said if health else None,
    }


def _print_plan(said: str, steps: Any, as_json: bool) -> None:
    if as_json:
        print_json({"said": said, "steps": list(steps)})
        return
    say(f"{said}; nothing was done:")
    for step in steps:
        say(f"  {step}")


def _print_made(made: Deployment, as_json: bool) -> None:
    if as_json:
        import msgspec

        fields = msgspec.structs.asdict(made)
        print_json({key: value for key, value in fields.items() if key != "format"})
    elif made.kind == "removed":
        say(f"{made.label} is not served at {made.target} any more")
    else:
        replaced = f", instead of {made.replaced}" if made.replaced and made.replaced != made.label else ""
        say(f"{made.target} serves {made.label} at {made.place}{replaced}")
