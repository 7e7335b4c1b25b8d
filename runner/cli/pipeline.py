"""The pipeline in SageMaker: `pipeline show`, `push`, `start`, `status`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import json_option, parse_overrides, pipeline_option, print_json, print_table
from runner.cli.terminal import say

if TYPE_CHECKING:
    from runner.aws.pipelines.executions import Seen

profile_option = click.option("--profile", metavar="NAME", help="Apply [profiles.NAME] of the pipeline file.")


@click.group("pipeline")
def pipeline_command() -> None:
    """The pipeline as a SageMaker Pipeline, which Studio and EventBridge can start.

    \b
    Example:
      runner pipeline push
      runner pipeline start -p seed=7
      runner pipeline status
      runner import EXECUTION-ARN
    """


@pipeline_command.command("show")
@click.option("--text", "as_text", is_flag=True, help="List parameters and steps instead of the JSON.")
@profile_option
@json_option
@pipeline_option
def show_command(as_text: bool, profile: str | None, as_json: bool, pipeline: Path) -> None:
    """Print the definition that a push would make. Nothing is uploaded and nobody is asked.

    \b
    Example:
      runner pipeline show > definition.json
      runner pipeline show --text
    """
    from runner.aws.pipelines.push import show
    from runner.pipeline.plan import plan as make_plan
    from runner.project import Project

    made = show(make_plan(pipeline, profile=profile), Project(pipeline).store_here, profile=profile)
    if as_json or not as_text:
        print_json(made)
        return
    print_table(["parameter", "default"], [[item["Name"], item["DefaultValue"]] for item in made["Parameters"]])
    say()
    print_table(["step", "kind", "cached", "after"], [_row(step, when) for step, when in _flat(made["Steps"])])


@pipeline_command.command("push")
@click.option("--dry-run", is_flag=True, help="Say whether it would change; upload nothing, change nothing.")
@profile_option
@json_option
@pipeline_option
def push_command(dry_run: bool, profile: str | None, as_json: bool, pipeline: Path) -> None:
    """Create or update the Pipeline in SageMaker. Steps whose notebook did not change stay cached.

    \b
    Example:
      runner pipeline push
      runner pipeline push --profile smoke --dry-run
    """
    from runner.aws.pipelines.push import push
    from runner.pipeline.plan import plan as make_plan
    from runner.project import Project

    plan = make_plan(pipeline, profile=profile)
    found = push(plan, Project(pipeline).store_here, profile=profile, dry_run=dry_run)
    if as_json:
        print_json({"pipeline": found.name, "outcome": found.what, "arn": found.arn or None, "dry_run": dry_run})
        return
    say(f"pipeline {found.name} {'would be ' if dry_run else ''}{found.what}   {found.arn}".rstrip())
    if not dry_run:
        say("  next: runner pipeline start", err=True)


@pipeline_command.command("start")
@click.option(
    "-p",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a parameter, or STEP.NAME=VALUE for one step's parameter or source.",
)
@click.option("-m", "note", default="", metavar="NOTE", help="A description kept with the execution.")
@click.option(
    "--once",
    default="",
    metavar="KEY",
    help="Start nothing where this was started for KEY, such as a commit, before; print that execution.",
)
@profile_option
@json_option
@pipeline_option
def start_command(
    parameters: tuple[str, ...], note: str, once: str, profile: str | None, as_json: bool, pipeline: Path
) -> None:
    """Start an execution of the Pipeline as it was pushed. Its jobs cost money.

    \b
    Example:
      runner pipeline start
      runner pipeline start -p train.max_depth=6 -p InstanceType=ml.m5.2xlarge
      runner pipeline start --once "$(git rev-parse HEAD)"
    """
    from runner.aws.pipelines.executions import start, to_check
    from runner.pipeline.plan import plan as make_plan

    overrides = parse_overrides(parameters)
    plan = make_plan(pipeline, profile=profile, overrides=to_check(overrides))
    arn = start(plan, overrides, note=note, once=once)
    execution = arn.rpartition("/")[2]
    if as_json:
        print_json({"execution": execution, "arn": arn})
        return
    say(arn)
    say(f"  `runner pipeline status {execution}` follows it, `runner import {execution}` makes it a run", err=True)


@pipeline_command.command("status")
@click.argument("execution", required=False)
@json_option
@pipeline_option
def status_command(execution: str | None, as_json: bool, pipeline: Path) -> None:
    """Show an execution's steps: the one of this ARN or id, or the latest, whoever started it.

    \b
    Example:
      runner pipeline status
      runner pipeline status abcd1234efgh --json
    """
    from runner.aws.pipelines.executions import look
    from runner.project import Project

    project = Project(pipeline)
    found = look(project.session(), project.spec.name, execution)
    if as_json:
        print_json(_seen_json(found))
        return
    say(f"execution {found.id}   {found.status}   started {found.started:%Y-%m-%d %H:%M:%S} UTC")
    if found.reason:
        say(f"  {found.reason}")
    print_table(
        ["step", "status", "seconds", "cached from", "reason"],
        [
            [
                step.name,
                step.status,
                "–" if step.seconds is None else f"{step.seconds:.0f}",
                step.cached_from or "–",
                " ".join(step.reason.split()) or "–",
            ]
            for step in found.steps
        ],
    )
    if found.ended is not None:
        say(f"  next: runner import {found.id}", err=True)


def _seen_json(found: Seen) -> dict[str, Any]:
    return {
        "execution": found.id,
        "arn": found.arn,
        "status": found.status,
        "reason": found.reason,
        "started": found.started.isoformat(),
        "ended": found.ended.isoformat() if found.ended else None,
        "steps": [
            {
                "name": step.name,
                "status": step.status,
                "seconds": step.seconds,
                "cached_from": step.cached_from or None,
                "reason": step.reason,
                "job": step.job or None,
            }
            for step in found.steps
        ],
    }


def _flat(steps: list[dict[str, Any]], when: str = "") -> list[tuple[dict[str, Any], str]]:
    """Every step, those in the branches of a condition after it with the condition they are under."""
    found = []
    for step in steps:
        found.append((step, when))
        for branch, said in (("IfSteps", "if"), ("ElseSteps", "unless")):
            found += _flat(step["Arguments"].get(branch, []), f"{said} {step['Name']}")
    return found


def _row(step: dict[str, Any], when: str) -> list[str]:
    cached = "yes" if step.get("CacheConfig", {}).get("Enabled") else "no" if step["Type"] == "Processing" else "–"
    own = {key: value for key, value in step["Arguments"].items() if key not in ("IfSteps", "ElseSteps")}
    after = dict.fromkeys([*([when] if when else []), *step.get("DependsOn", []), *_needed(own)])
    return [step["Name"], step["Type"], cached, ", ".join(after) or "–"]


def _needed(value: Any) -> Iterator[str]:
    """The steps that a part of the definition refers to."""
    if isinstance(value, dict):
        if isinstance(value.get("Get"), str) and value["Get"].startswith("Steps."):
            yield value["Get"].split(".")[1]
        for item in value.values():
            yield from _needed(item)
    elif isinstance(value, list):
        for item in value:
            yield from _needed(item)
