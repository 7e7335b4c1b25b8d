"""Before a run: `doctor` looks whether it can work, `upload` puts a table where jobs read it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import fields, on_option, print_json, result_options
from runner.cli.terminal import say
from runner.project import Project

if TYPE_CHECKING:
    from runner.run.doctor import Check

MARKS = {"ok": "✓", "failed": "✗", "unknown": "?"}
WIDTH = 11  # of the longest name, credentials


@click.command("doctor")
@on_option
@click.option("--probe", is_flag=True, help="With --on sagemaker: start one ml.t3.medium for 10 minutes at most.")
@result_options
def doctor_command(on: str, probe: bool, as_json: bool, project: Project) -> int:
    """Say what would keep a run from working, here or in SageMaker, before it is started.

    A line for each check: ✓ holds, ✗ does not, with what to do, ? cannot be checked from here, and why. Leaves with 0
    where nothing fails, with 2 where something here is wrong, with 7 where AWS is in the way.

    \b
    Example:
      runner doctor
      runner doctor --on sagemaker
      runner doctor --on sagemaker --probe
    """
    from runner.run.doctor import machine

    if probe and on != "sagemaker":
        raise click.UsageError("--probe starts a job, so it needs --on sagemaker.")
    checks: list[Check] = []
    found = _account_checks(project, probe) if on == "sagemaker" else machine(project.file, project.store_here)
    for check in itertools.chain(found, _notify_checks(project)):
        checks.append(check)
        if not as_json:
            remedy = f": {check.fix}" if check.fix else ""
            say(f"{MARKS[check.status]} {check.name:<{WIDTH}}  {check.said}{remedy}")
    failed = [check for check in checks if check.status == "failed"]
    if as_json:
        rows = [
            {**fields(check, "name", "status"), "message": check.said, "remedy": check.fix or None} for check in checks
        ]
        print_json({"ok": not failed, "checks": rows})
    return min((check.code for check in failed), default=0)


def _account_checks(project: Project, probe: bool) -> Iterator[Check]:
    from runner.aws.doctor import account
    from runner.errors import PipelineError
    from runner.run.doctor import sound

    yield sound(project.file)
    try:
        spec = project.spec
    except PipelineError:  # as the check above says
        return
    yield from account(spec, project.root, run_probe=probe, say=lambda line: say(f"  … {line}", err=True))


def _notify_checks(project: Project) -> Iterator[Check]:
    """Whether people can be told from here, where [notify] asks for it; nothing is sent."""
    from runner import notify
    from runner.errors import PipelineError, UsageError
    from runner.run.doctor import failed, ok

    try:
        spec = project.spec.notify
    except PipelineError:  # as an earlier check says
        return
    if spec.to is None:
        return
    variable = spec.to.removeprefix("env:")
    try:
        names = notify.services(spec)
    except UsageError as error:
        problem, _, fix = str(error).rstrip(".").partition(": ")
        yield failed(
            "notify", problem, fix or f'`export {variable}="…"` with addresses of apprise; see docs/everyday.md'
        )
    else:
        yield ok("notify", f"{variable} leads to {', '.join(names)}; nothing was sent")


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
@result_options
def upload_command(
    file: Path, to: str | None, as_: str | None, replace: bool, dry_run: bool, as_json: bool, project: Project
) -> None:
    """Put a table into [sagemaker] bucket, from where jobs read it; the same bytes move once.

    Without one it goes to the bucket sagemaker-REGION-ACCOUNT, which an account that has used Studio has.

    \b
    Example:
      runner upload data/table.csv
      runner upload data/table.csv --to june/ --dry-run
      runner upload data/table.csv --as sagemaker/guide/data/RawData.csv
    """
    from runner.aws.upload import commands, lines, upload

    if to is not None and as_ is not None:
        raise click.UsageError("--to is a key among the project's data, --as one of the bucket: give one of them.")
    spec = project.spec
    uploaded = upload(spec, file, to=to, as_=as_, replace=replace, dry_run=dry_run)
    next_lines = (lines if as_ is None else commands)(spec, project.root, file, uploaded)
    if as_json:
        facts = fields(uploaded, "address", "sha256", "size_bytes", "moved_bytes")
        print_json({**facts, "dry_run": dry_run, "lines": next_lines})
        return
    say(uploaded.address)
    if uploaded.default_bucket is not None:
        say(f"  in the account's default bucket, as [sagemaker] bucket is not set in {project.file.name}", err=True)
    verb = "would move" if dry_run else "moved"
    where = f", in {project.file.name}" if as_ is None else ""
    say(f"  {verb} {uploaded.moved_bytes:,} of {uploaded.size_bytes:,} bytes; to read it{where}:", err=True)
    for line in next_lines:
        say(f"  {line}")
