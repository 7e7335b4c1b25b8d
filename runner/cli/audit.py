"""Whether to believe a run: `verify`, `reproduce`; and `gc`, which removes what need not be believed any more."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import click

from runner.cli.options import fields, print_json, result_options
from runner.cli.terminal import say
from runner.errors import AnswerIsNo, UsageError, counted
from runner.project import Project


@click.command("verify")
@click.argument("reference", metavar="RUN|NAME/VERSION", required=False)
@click.option("--all", "all_", is_flag=True, help="Every run, every version, every event.")
@result_options
def verify_command(reference: str | None, all_: bool, as_json: bool, project: Project) -> int:
    """Check every sealed file, registry row and event against its hash. Leaves with 4 where something differs.

    Files that were added to a run are named too; what `gc` removed is said with who removed it.

    \b
    Example:
      runner verify latest
      runner verify NAME/3
      runner verify --all
    """
    from runner.audit.verify import verify

    if all_ == (reference is not None):
        raise UsageError("Name one RUN or NAME/VERSION, or write --all.")
    with project.store.shared():
        report = verify(project.store, project.registry, reference)
    if as_json:
        print_json(fields(report, "sound", "findings", "notes", "files", "size_bytes"))
    else:
        for sentence in report.findings:
            say(f"  ✗ {sentence}")
        for sentence in report.notes:
            say(f"  – {sentence}")
        verdict = "sound" if report.sound else "not sound"
        say(f"{verdict}: {counted(report.files, 'file')}, {counted(report.size_bytes, 'byte')} read")
    return 0 if report.sound else AnswerIsNo.exit_code


@click.command("reproduce")
@click.argument("run", metavar="RUN|NAME/VERSION")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True, help="For metrics.")
@click.option(
    "--env",
    type=click.Choice(["current", "recorded"]),
    default="current",
    help="`recorded` builds the run's own environment in a throw-away folder first.",
)
@result_options
def reproduce_command(run: str, tolerance: float, env: str, as_json: bool, project: Project) -> int:
    """Execute a run again from its snapshot on its recorded inputs, and compare outputs byte for byte.

    Leaves with 0 only where all is the same, with 4 otherwise, naming the first step that differs.

    \b
    Example:
      runner reproduce latest
      runner reproduce NAME/3 --env recorded
    """
    from runner.audit.recorded_environment import run_in_recorded_environment
    from runner.audit.reproduce import reproduce
    from runner.run import provenance
    from runner.run.store import Store
    from runner.step.local import LocalExecutor

    if env == "recorded":
        manifest = project.run(run)
        options = ["--tolerance", str(tolerance), *(["--json"] if as_json else [])]
        again = ["reproduce", manifest.run, "--pipeline", str(project.file.absolute()), *options]
        return run_in_recorded_environment(manifest.environment, again)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch, project.store.shared():
        reproduction = reproduce(
            project.run(run),
            original=project.store,
            scratch=Store(Path(scratch)),
            root=project.root,
            executor=LocalExecutor(),
            now=provenance.environment(),
            tolerance=tolerance,
            on_step=lambda step: say(f"  ▸ {step}", err=True),
        )
    if as_json:
        facts = fields(reproduction, "run", "environment", "step", "differences", "cause")
        print_json({**facts, "reproduced": reproduction.step is None, "same": reproduction.steps})
    else:
        for line in reproduction.environment:
            say(f"  environment: {line}")
        for step in reproduction.steps:
            say(f"  ✓ {step}: the same, byte for byte")
        for line in reproduction.differences:
            say(f"  ✗ {reproduction.step}: {line}")
        cause = "reproduced" if reproduction.step is None else f"not reproduced; likely cause: {reproduction.cause}"
        say(f"run {reproduction.run} is {cause}")
    return 0 if reproduction.step is None else AnswerIsNo.exit_code


@click.command("gc")
@click.option(
    "--keep", type=click.IntRange(0), default=20, show_default=True, help="Keep this many of the newest runs."
)
@click.option("--keep-tag", "tags", multiple=True, metavar="TAG", help="Keep runs with this tag (`pinned` always).")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@result_options
def gc_command(keep: int, tags: tuple[str, ...], dry_run: bool, as_json: bool, project: Project) -> None:
    """Remove runs that nothing needs any more: not new, not pinned, and of no version that was ever approved.

    Each removed run is recorded in runs/removed/ with who removed it, when and how; `verify` and `show` say so.

    \b
    Example:
      runner gc --keep 50 --dry-run
    """
    from runner.audit.gc import GcRequest, collect
    from runner.run import provenance

    command = shlex.join(["runner", "gc", "--keep", str(keep), *(part for tag in tags for part in ("--keep-tag", tag))])
    request = GcRequest(keep, tags, provenance.who(), command, dry_run)
    freed = collect(project.store, project.registry, project.root, request)
    if as_json:
        print_json(fields(freed, "runs", "objects", "size_bytes", "kept"))
        return
    for run in freed.runs:
        say(f"  {run}")
    verb = "would free" if dry_run else "freed"
    removed, kept = counted(len(freed.runs), "run"), counted(len(freed.kept), "run")
    say(f"{verb} {removed}, {counted(freed.objects, 'object')}, {freed.size_bytes:,} bytes; {kept} kept")
