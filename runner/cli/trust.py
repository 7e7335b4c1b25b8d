"""Whether to believe a run: `verify`, `reproduce`; and `gc`, which removes what need not be believed any more."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.errors import UsageError


@click.command("verify")
@click.argument("reference", metavar="RUN|NAME/VERSION", required=False)
@click.option("--all", "all_", is_flag=True, help="Every run, every version, every event.")
@json_option
@pipeline_option
def verify_command(reference: str | None, all_: bool, as_json: bool, pipeline: Path) -> int:
    """Check every sealed file, registry row and event against its hash. Leaves with 4 where something differs.

    \b
    Example:
      runner verify latest
      runner verify NAME/3
      runner verify --all
    """
    from runner import actions

    if all_ == (reference is not None):
        raise UsageError("Name one RUN or NAME/VERSION, or write --all.")
    found, count, size = actions.verify(pipeline, reference)
    if as_json:
        print_json({"sound": not found, "findings": found, "files": count, "size_bytes": size})
    else:
        for sentence in found:
            click.echo(f"  ✗ {sentence}")
        click.echo(f"{'not sound' if found else 'sound'}: {count} files, {size:,} bytes read")
    return 4 if found else 0


@click.command("reproduce")
@click.argument("run", metavar="RUN|NAME/VERSION")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True, help="For metrics.")
@click.option(
    "--env",
    "env",
    type=click.Choice(["current", "recorded"]),
    default="current",
    help="`recorded` builds the run's own environment in a throw-away folder first.",
)
@json_option
@pipeline_option
def reproduce_command(run: str, tolerance: float, env: str, as_json: bool, pipeline: Path) -> int:
    """Execute a run again from its snapshot on its recorded inputs, and compare outputs byte for byte.

    Leaves with 0 only where all is the same, with 4 otherwise, naming the first step that differs.

    \b
    Example:
      runner reproduce latest
      runner reproduce NAME/3 --env recorded
    """
    from runner import actions

    if env == "recorded":
        return actions.reproduce_in_recorded_environment(
            pipeline, run, ["--tolerance", str(tolerance), *(["--json"] if as_json else [])]
        )
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch:
        found = actions.reproduce_run(
            pipeline,
            run,
            scratch=Path(scratch),
            tolerance=tolerance,
            on_step=lambda step: click.echo(f"  ▸ {step}", err=True),
        )
    if as_json:
        print_json(
            {
                "run": found.run,
                "reproduced": found.step is None,
                "environment": list(found.environment),
                "same": list(found.steps),
                "step": found.step,
                "differences": list(found.differences),
                "cause": found.cause,
            }
        )
    else:
        for line in found.environment:
            click.echo(f"  environment: {line}")
        for step in found.steps:
            click.echo(f"  ✓ {step}: the same, byte for byte")
        if found.step is None:
            click.echo(f"run {found.run} is reproduced")
        else:
            for line in found.differences:
                click.echo(f"  ✗ {found.step}: {line}")
            click.echo(f"run {found.run} is not reproduced; likely cause: {found.cause}")
    return 0 if found.step is None else 4


@click.command("gc")
@click.option(
    "--keep", type=click.IntRange(0), default=20, show_default=True, help="Keep this many of the newest runs."
)
@click.option("--keep-tag", "tags", multiple=True, metavar="TAG", help="Keep runs with this tag (`pinned` always).")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@json_option
@pipeline_option
def gc_command(keep: int, tags: tuple[str, ...], dry_run: bool, as_json: bool, pipeline: Path) -> None:
    """Remove runs that nothing needs any more: not new, not pinned, and of no version that was ever approved.

    \b
    Example:
      runner gc --keep 50 --dry-run
    """
    from runner import actions

    freed = actions.collect_garbage(pipeline, keep=keep, tags=tags, dry_run=dry_run)
    if as_json:
        print_json(
            {"runs": list(freed.runs), "objects": freed.objects, "size_bytes": freed.size_bytes, "kept": freed.kept}
        )
        return
    for run in freed.runs:
        click.echo(f"  {run}")
    verb = "would free" if dry_run else "freed"
    click.echo(
        f"{verb} {len(freed.runs)} runs, {freed.objects} objects, {freed.size_bytes:,} bytes; {len(freed.kept)} runs stay"
    )
