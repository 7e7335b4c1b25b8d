"""A run in somebody's hands: `debug` one of its steps, `pack` it into a file, `import` such a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.run import no_report_option
from runner.errors import UsageError

EXECUTION = re.compile(r"arn:aws[\w-]*:sagemaker:.*/execution/[a-z0-9]{12}\Z|[a-z0-9]{12}\Z")


@click.command("debug")
@click.argument("run")
@click.argument("step")
@click.option("--no-open", is_flag=True, help="Print the notebook's path instead of opening Jupyter.")
@pipeline_option
def debug_command(run: str, step: str, no_open: bool, pipeline: Path) -> int:
    """Open a copy of a step's notebook with the run's own parameters and inputs, the failing cell marked.

    Run All reproduces the failure in a fresh kernel; the source notebook and everything sealed stay as they are.

    \b
    Example:
      runner debug latest STEP
    """
    from runner import actions

    made = actions.debug(pipeline, run, step)
    if no_open:
        click.echo(made)
        return 0
    try:
        return subprocess.run([sys.executable, "-m", "jupyter", "lab", str(made)], check=False).returncode
    except KeyboardInterrupt:
        return 0


@click.command("pack")
@click.argument("run", metavar="RUN|NAME/VERSION")
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Default: RUN.run.tar.gz here.",
)
@pipeline_option
def pack_command(run: str, output: Path | None, pipeline: Path) -> None:
    """Put a run, with all its inputs and outputs, into one file; for NAME/VERSION with the version's evidence.

    \b
    Example:
      runner pack latest -o run.tar.gz
      runner pack NAME/3
    """
    from runner import actions

    if output is not None and not output.parent.is_dir():
        raise UsageError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
    made, size = actions.pack(pipeline, run, output)
    click.echo(f"{made}   {size:,} bytes", err=True)
    click.echo(made)


@click.command("import")
@click.argument("file", metavar="FILE|EXECUTION")
@no_report_option
@json_option
@pipeline_option
def import_command(file: str, no_report: bool, as_json: bool, pipeline: Path) -> None:
    """Take in a packed run, or an execution of the pipeline in SageMaker by its ARN or id.

    Every file is checked against its hash before anything is kept. Twice is as good as once.

    \b
    Example:
      runner import run.tar.gz && runner report latest
      runner import EXECUTION-ARN
    """
    from runner import actions, backend

    if Path(file).is_file() or not EXECUTION.match(file):
        if not Path(file).is_file():
            raise UsageError(f"There is no file {file}, and it is no execution's ARN or id.")
        run, versions = actions.import_run(pipeline, Path(file))
        named = [(f"{version.name}/{version.version}", version.status) for version in versions]
    else:
        manifest = actions.import_execution(pipeline, file)
        if not no_report:
            from runner.cli.reporting import write_all

            write_all(backend.store(pipeline).folder(manifest.run), manifest)
        run, made = manifest.run, manifest.model_version
        named = [(f"{made.name}/{made.version}", made.status)] if made is not None else []
    if as_json:
        print_json({"run": run, "versions": [name for name, _ in named]})
        return
    click.echo(f"run {run}")
    for name, status in named:
        click.echo(f"model {name} {status}")


@click.command("fetch")
@click.argument("run")
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@pipeline_option
def fetch_command(run: str, steps: tuple[str, ...], pipeline: Path) -> None:
    """Bring the outputs of a run that ran elsewhere into its folder, each checked against its hash.

    \b
    Example:
      runner fetch latest
      runner fetch latest train
    """
    from runner import actions

    manifest, came = actions.fetch_run(pipeline, run, steps)
    click.echo(f"run {manifest.run}: {came / 1e6:.1f} MB fetched")
