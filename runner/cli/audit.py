"""Whether to believe a run: `verify`, `reproduce`; and `gc`, which removes what need not be believed any more."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.terminal import say
from runner.errors import UsageError, counted


@click.command("verify")
@click.argument("reference", metavar="RUN|NAME/VERSION", required=False)
@click.option("--all", "all_", is_flag=True, help="Every run, every version, every event.")
@json_option
@pipeline_option
def verify_command(reference: str | None, all_: bool, as_json: bool, pipeline: Path) -> int:
    """Check every sealed file, registry row and event against its hash. Leaves with 4 where something differs.

    Files that were added to a run are named too; what `gc` removed is said with who removed it.

    \b
    Example:
      runner verify latest
      runner verify NAME/3
      runner verify --all
    """
    from runner.audit.verify import verify
    from runner.project import Project

    if all_ == (reference is not None):
        raise UsageError("Name one RUN or NAME/VERSION, or write --all.")
    project = Project(pipeline)
    store, registry = project.store, project.registry
    with store.shared():
        found = verify(store, registry, reference)
    if as_json:
        print_json(
            {
                "sound": found.sound,
                "findings": found.findings,
                "notes": found.notes,
                "files": found.files,
                "size_bytes": found.size_bytes,
            }
        )
    else:
        for sentence in found.findings:
            say(f"  ✗ {sentence}")
        for sentence in found.notes:
            say(f"  – {sentence}")
        say(
            f"{'sound' if found.sound else 'not sound'}: {counted(found.files, 'file')}, {counted(found.size_bytes, 'byte')} read"
        )
    return 0 if found.sound else 4


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
    from runner.audit.recorded_environment import run_in_recorded_environment
    from runner.audit.reproduce import reproduce
    from runner.project import Project
    from runner.run import provenance
    from runner.run.store import Store
    from runner.step.local import LocalExecutor

    project = Project(pipeline)
    if env == "recorded":
        manifest = project.run(run)
        options = ["--tolerance", str(tolerance), *(["--json"] if as_json else [])]
        again = ["reproduce", manifest.run, "--pipeline", str(pipeline.absolute()), *options]
        return run_in_recorded_environment(manifest.environment, again)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch, project.store.shared():
        found = reproduce(
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
            say(f"  environment: {line}")
        for step in found.steps:
            say(f"  ✓ {step}: the same, byte for byte")
        if found.step is None:
            say(f"run {found.run} is reproduced")
        else:
            for line in found.differences:
                say(f"  ✗ {found.step}: {line}")
            say(f"run {found.run} is not reproduced; likely cause: {found.cause}")
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

    Each removed run is recorded in runs/removed/ with who removed it, when and how; `verify` and `show` say so.

    \b
    Example:
      runner gc --keep 50 --dry-run
    """
    from runner.audit.gc import collect
    from runner.project import Project
    from runner.run import provenance

    command = shlex.join(["runner", "gc", "--keep", str(keep), *(part for tag in tags for part in ("--keep-tag", tag))])
    project = Project(pipeline)
    freed = collect(
        project.store, project.registry, keep=keep, tags=tags, project=project.root, who=provenance.who(),
        command=command, dry_run=dry_run,
    )  # fmt: skip
    if as_json:
        print_json(
            {"runs": list(freed.runs), "objects": freed.objects, "size_bytes": freed.size_bytes, "kept": freed.kept}
        )
        return
    for run in freed.runs:
        say(f"  {run}")
    verb = "would free" if dry_run else "freed"
    removed, kept = counted(len(freed.runs), "run"), counted(len(freed.kept), "run")
    say(f"{verb} {removed}, {counted(freed.objects, 'object')}, {freed.size_bytes:,} bytes; {kept} kept")
