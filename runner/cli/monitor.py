"""`runner monitor`: look at what a target captured, judge it, and learn anew where the answer is no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    fields,
    json_option,
    no_report_option,
    note,
    on_option,
    parse_overrides,
    print_json,
    profile_option,
    run_json,
)
from runner.cli.run import FollowedRun, follow, kernel_option, print_result
from runner.cli.terminal import say
from runner.errors import UsageError
from runner.pipeline.file import AT_TARGET
from runner.project import Project

if TYPE_CHECKING:
    from runner.manifest import RunManifest
    from runner.pipeline.plan import Plan
    from runner.records import Pipeline
    from runner.run.monitored import Reason
    from runner.run.ports import Options, World


@click.command("monitor")
@click.argument("target")
@click.option("--since", metavar="TIME", help="Where the window begins: 7d or 12h ago, or a time in UTC.")
@click.option("--until", metavar="TIME", help="Where it ends.  [default: now]")
@click.option(
    "-p",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a parameter, or STEP.NAME=VALUE, as `runner run`.",
)
@click.option(
    "--pipeline",
    "file",
    type=click.Path(path_type=Path),
    default="monitor.toml",
    metavar="FILE",
    help="The file of the pipeline that watches.  [default: monitor.toml]",
)
@profile_option
@on_option
@kernel_option
@click.option("--no-retrain", is_flag=True, help="Start no training, whatever [monitor] retrain says.")
@no_report_option
@json_option
def monitor_command(  # noqa: PLR0913 - click passes each option by its name
    target: str,
    since: str | None,
    until: str | None,
    parameters: tuple[str, ...],
    file: Path,
    profile: str | None,
    on: str,
    kernel: str,
    no_retrain: bool,
    no_report: bool,
    as_json: bool,
) -> int:
    """Watch a target: run the pipeline of monitor.toml on what was captured there. 4 is the answer no, 5 not sure.

    Where the gate says no and [monitor] retrain names a pipeline, that is run too. It registers by its own gate alone,
    and a person approves what it registers. The exit code stays the monitor's.

    \b
    Example:
      runner monitor production
      runner monitor production --since 30d -p monitor.labels=./left.csv
    """
    from runner.pipeline.plan import plan as make_plan
    from runner.run.monitored import reasons
    from runner.run.ports import Options

    project = Project(file, profile=profile)
    written = {name: value for name, value in (("since", since), ("until", until)) if value is not None}
    overrides = {**at_target(project.spec, target, file), **written, **parse_overrides(parameters)}
    plan = make_plan(file, profile=profile, overrides=overrides, secrets_here=on == "local")
    options = Options(
        kernel=kernel, report=not no_report, profile=profile, overrides=overrides, on=on, tags=(f"monitor-{target}",)
    )
    watched = _run(project.of(plan.pipeline), plan, options)
    if watched.manifest is None:
        return watched.code
    why = list(reasons(watched.manifest, project.store))
    for reason in why:
        say(reason, err=as_json)
    print_result(watched.manifest, watched.folder, pages=not no_report, as_json=as_json)
    watched.tell()
    retrained = None if no_retrain else _retrained(project, target, watched.manifest, why, options)
    if as_json:
        result: dict[str, Any] = {
            **run_json(watched.manifest, watched.folder),
            "target": target,
            "reasons": [fields(reason, "what", "why") for reason in why],
        }
        if retrained is not None and retrained.manifest is not None:
            result["retrained"] = run_json(retrained.manifest, retrained.folder)
        print_json(result)
    return watched.code


def at_target(spec: Pipeline, target: str, file: Path) -> dict[str, str]:
    """-p's values by which every input that is of a target is of this one. Raises UsageError where there is none."""
    inputs = {
        f"{step}.{name}": source.from_.partition(":")[0] + f":{target}"
        for step, of in spec.steps.items()
        for name, source in of.inputs.items()
        if source.from_.startswith(AT_TARGET)
    }
    if not inputs:
        raise UsageError(
            f"No step of {file.name} has an input `captured:TARGET`, so it watches nothing. See docs/monitoring.md."
        )
    return inputs


def _retrained(
    project: Project, target: str, manifest: RunManifest, why: Sequence[Reason], options: Options
) -> FollowedRun | None:
    """The run of the pipeline that learns anew, where the gate said no. Registers nothing without a gate of its own."""
    from runner.pipeline.plan import plan as make_plan

    spec = project.spec.monitor
    if spec is None or spec.retrain is None or manifest.verdict is None or manifest.verdict.outcome != "fail":
        return None
    training = Project(project.root / spec.retrain)
    if (waiting := pending_version(training)) is not None:
        note(f"nothing is trained, as {waiting} waits for a decision: runner show {waiting}")
        return None
    options = replace(
        options,
        profile=None,
        overrides={},
        tags=(f"after-monitor-{target}",),
        note=f"{target} said no in {manifest.run}: {'; '.join(map(str, why))}"[:500],
        register=bool(training.spec.gate),
    )
    say(f"training by {spec.retrain}, as the answer is no", err=True)
    plan = make_plan(training.file, secrets_here=options.on == "local")
    trained = _run(training.of(plan.pipeline), plan, options)
    if trained.manifest is not None:
        print_result(trained.manifest, trained.folder, pages=options.report, as_json=True)
        trained.tell()
    return trained


def pending_version(project: Project) -> str | None:
    """NAME/VERSION of the newest version of the project's model, where nobody has decided on it."""
    from runner.model.registry_rules import versions_of

    model = project.spec.model
    registered = () if model is None else versions_of(project.registry, model.name)
    newest = max(registered, key=lambda version: version.version, default=None)
    return newest.label if newest is not None and newest.status == "pending" else None


def _run(project: Project, plan: Plan, options: Options) -> FollowedRun:
    from runner.run.orchestrate import run

    def start(world: World) -> RunManifest:
        return run(plan, options, world)

    return follow(project, start, on=options.on, kernel=options.kernel, pages=options.report)
