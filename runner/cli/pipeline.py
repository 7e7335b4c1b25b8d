"""The pipeline in SageMaker: `pipeline show`, `push`, `start`, `status`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from runner.cli.options import (
    fields,
    parse_overrides,
    print_json,
    print_table,
    profile_option,
    result_options,
)
from runner.cli.terminal import say
from runner.project import Project
from runner.records import Pipeline


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
@result_options
def show_command(as_text: bool, profile: str | None, as_json: bool, project: Project) -> None:
    """Print the definition that a push would make. Nothing is uploaded, and AWS is not asked.

    \b
    Example:
      runner pipeline show > definition.json
      runner pipeline show --text
    """
    from runner.aws.pipelines.push import show
    from runner.pipeline.plan import plan as make_plan

    plan = make_plan(project.file, profile=profile)
    definition = show(plan, project.store_here, profile=profile, watched=_watched(project))
    if as_json or not as_text:
        print_json(definition)
        return
    print_table(["parameter", "default"], [[item["Name"], item["DefaultValue"]] for item in definition["Parameters"]])
    say()
    print_table(["step", "kind", "cached", "after"], [_row(step, when) for step, when in _flat(definition["Steps"])])


@pipeline_command.command("push")
@click.option("--dry-run", is_flag=True, help="Say whether it would change; upload nothing, change nothing.")
@profile_option
@result_options
def push_command(dry_run: bool, profile: str | None, as_json: bool, project: Project) -> None:
    """Create or update the Pipeline in SageMaker. Steps whose notebook did not change stay cached.

    \b
    Example:
      runner pipeline push
      runner pipeline push --profile smoke --dry-run
    """
    from runner.aws.pipelines.push import push
    from runner.pipeline.plan import plan as make_plan

    plan = make_plan(project.file, profile=profile)
    pushed = push(plan, project.store_here, profile=profile, watched=_watched(project), dry_run=dry_run)
    if as_json:
        print_json({"pipeline": pushed.name, "outcome": pushed.what, "arn": pushed.arn or None, "dry_run": dry_run})
        return
    say(f"pipeline {pushed.name} {'would be ' if dry_run else ''}{pushed.what}   {pushed.arn}".rstrip())
    if not dry_run:
        say(f"  next: runner pipeline start{_file(project)}", err=True)


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
@result_options
def start_command(
    parameters: tuple[str, ...], note: str, once: str, profile: str | None, as_json: bool, project: Project
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
    plan = make_plan(project.file, profile=profile, overrides=to_check(overrides))
    arn = start(plan, overrides, note=note, once=once)
    execution = arn.rpartition("/")[2]
    if as_json:
        print_json({"execution": execution, "arn": arn})
        return
    say(arn)
    more = f"{execution}{_file(project)}"
    say(f"  `runner pipeline status {more}` follows it, `runner import {more}` makes it a run", err=True)


@pipeline_command.command("status")
@click.argument("execution", required=False)
@result_options
def status_command(execution: str | None, as_json: bool, project: Project) -> None:
    """Show an execution's steps: the one of this ARN or id, or the latest, whoever started it.

    \b
    Example:
      runner pipeline status
      runner pipeline status abcd1234efgh --json
    """
    from runner.aws.pipelines.executions import look

    seen = look(project.session(), project.spec.name, execution)
    if as_json:
        steps = [
            {
                **fields(step, "name", "status", "seconds", "reason"),
                "cached_from": step.cached_from or None,
                "job": step.job or None,
            }
            for step in seen.steps
        ]
        times = {"started": seen.started.isoformat(), "ended": seen.ended.isoformat() if seen.ended else None}
        print_json({"execution": seen.id, **fields(seen, "arn", "status", "reason"), **times, "steps": steps})
        return
    say(f"execution {seen.id}   {seen.status}   started {seen.started:%Y-%m-%d %H:%M:%S} UTC")
    if seen.reason:
        say(f"  {seen.reason}")
    print_table(
        ["step", "status", "seconds", "cached from", "reason"],
        [
            [
                step.name,
                step.status,
                None if step.seconds is None else f"{step.seconds:.0f}",
                step.cached_from or None,
                " ".join(step.reason.split()) or None,
            ]
            for step in seen.steps
        ],
    )
    if seen.ended is not None:
        say(f"  next: runner import {seen.id}{_file(project)}", err=True)


def _watched(project: Project) -> Pipeline | None:
    """The pipeline that has the targets, where that is another file's."""
    return None if project.watched is project else project.watched.spec


def _file(project: Project) -> str:
    """The option that the next command needs too, where this one did."""
    return "" if project.file == Path("pipeline.toml") else f" --pipeline {shlex.quote(str(project.file))}"


def _flat(steps: list[dict[str, Any]], when: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """Every step with the condition it is under; those in the branches of a condition after it."""
    for step in steps:
        yield step, when
        for branch, word in (("IfSteps", "if"), ("ElseSteps", "unless")):
            yield from _flat(step["Arguments"].get(branch, []), f"{word} {step['Name']}")


def _row(step: dict[str, Any], when: str) -> list[str]:
    cached = "yes" if step.get("CacheConfig", {}).get("Enabled") else "no" if step["Type"] == "Processing" else "–"
    own = {key: value for key, value in step["Arguments"].items() if key not in ("IfSteps", "ElseSteps")}
    after = dict.fromkeys([*([when] if when else []), *step.get("DependsOn", []), *_needed(own)])
    machines = step["Arguments"].get("ProcessingResources", {}).get("ClusterConfig", {}).get("InstanceCount", 1)
    kind = f"{step['Type']} × {machines}" if machines > 1 else step["Type"]
    return [step["Name"], kind, cached, ", ".join(after) or "–"]


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
