"""Before a run: `doctor` looks whether it can work, `upload` puts a table where jobs read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.terminal import say

if TYPE_CHECKING:
    from runner.run.doctor import Check

MARKS = {"ok": "✓", "failed": "✗", "unknown": "?"}
WIDTH = 11  # of the longest name, credentials


@click.command("doctor")
@click.option(
    "--on",
    type=click.Choice(["local", "sagemaker"]),
    default="local",
    show_default=True,
    help="Where runs are to work.",
)
@click.option("--probe", is_flag=True, help="With --on sagemaker: start one ml.t3.medium for 10 minutes at most.")
@json_option
@pipeline_option
def doctor_command(on: str, probe: bool, as_json: bool, pipeline: Path) -> int:
    """Say what would keep a run from working, here or in SageMaker, before it is started.

    A line for each check: ✓ holds, ✗ does not, with what to do, ? cannot be told from here, and why. Leaves with 0
    where nothing fails, with 2 where something here is wrong, with 7 where AWS is in the way.

    \b
    Example:
      runner doctor
      runner doctor --on sagemaker
      runner doctor --on sagemaker --probe
    """
    if probe and on != "sagemaker":
        raise click.UsageError("--probe starts a job, so it needs --on sagemaker.")
    checks = _of_account(pipeline, probe) if on == "sagemaker" else _of_machine(pipeline)
    made = list(checks) if as_json else list(_printed(checks))
    if as_json:
        print_json(
            {
                "ok": not any(check.status == "failed" for check in made),
                "checks": [
                    {"name": check.name, "status": check.status, "said": check.said, "fix": check.fix or None}
                    for check in made
                ],
            }
        )
    return min((check.code for check in made if check.status == "failed"), default=0)


def _of_machine(pipeline: Path) -> Iterator[Check]:
    from runner.project import Project
    from runner.run.doctor import machine

    yield from machine(pipeline, Project(pipeline).store_here)


def _of_account(pipeline: Path, probe: bool) -> Iterator[Check]:
    from runner.aws.doctor import account
    from runner.errors import PipelineError
    from runner.pipeline.file import load
    from runner.run.doctor import sound

    yield sound(pipeline)
    try:
        spec = load(pipeline)
    except PipelineError:  # as the line above says
        return
    yield from account(spec, pipeline.parent, run_probe=probe, say=lambda line: say(f"  … {line}", err=True))


def _printed(checks: Iterable[Check]) -> Iterable[Check]:
    for check in checks:
        fix = f": {check.fix}" if check.fix else ""
        say(f"{MARKS[check.status]} {check.name:<{WIDTH}}  {check.said}{fix}")
        yield check


@click.command("upload")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to", metavar="KEY", help="Below the project's data/, instead of a name by content; a last / is a folder."
)
@click.option(
    "--as",
    "as_",
    metavar="KEY",
    help="At exactly this key of the bucket, as a guide of AWS has it; a last / is a folder.",
)
@click.option("--replace", is_flag=True, help="With --to or --as: overwrite other content that is there.")
@click.option("--dry-run", is_flag=True, help="Say where it would go and what would move; move nothing.")
@json_option
@pipeline_option
def upload_command(
    file: Path, to: str | None, as_: str | None, replace: bool, dry_run: bool, as_json: bool, pipeline: Path
) -> None:
    """Put a table into [sagemaker] bucket, from where jobs read it; the same bytes move once.

    Without one it goes to the bucket sagemaker-REGION-ACCOUNT, which an account that has used Studio has.

    \b
    Example:
      runner upload data/table.csv
      runner upload data/table.csv --to june/ --dry-run
      runner upload data/table.csv --as sagemaker/guide/data/RawData.csv
    """
    from runner.aws import upload as moving
    from runner.pipeline.file import load

    if to is not None and as_ is not None:
        raise click.UsageError("--to is a key among the project's data, --as one of the bucket: give one of them.")
    spec = load(pipeline)
    found = moving.upload(spec, file, to=to, as_=as_, replace=replace, dry_run=dry_run)
    lines = (moving.lines if as_ is None else moving.commands)(spec, pipeline.parent, file, found)
    if as_json:
        print_json(
            {
                "address": found.address,
                "sha256": found.sha256,
                "size_bytes": found.size_bytes,
                "moved_bytes": found.moved_bytes,
                "dry_run": dry_run,
                "lines": lines,
            }
        )
        return
    say(found.address)
    if found.default_bucket is not None:
        say(f"  in the account's default bucket, as [sagemaker] bucket is not set in {pipeline.name}", err=True)
    verb = "would move" if dry_run else "moved"
    where = f", in {pipeline.name}" if as_ is None else ""
    say(f"  {verb} {found.moved_bytes:,} of {found.size_bytes:,} bytes; to read it{where}:", err=True)
    for line in lines:
        say(f"  {line}")
