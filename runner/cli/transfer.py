"""A run in somebody's hands: `debug` one of its steps, `pack` it into a file, `import` such a file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from runner.cli.options import json_option, pipeline_option, print_json
from runner.cli.project import open_in_jupyter
from runner.cli.run import no_report_option
from runner.cli.terminal import say
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
    from runner.audit.debug import prepare
    from runner.project import Project

    project = Project(pipeline)
    with project.store.shared():
        notebook = prepare(project.run(run), step, store=project.store, project=project.root)
    if no_open:
        say(notebook)
        return 0
    return open_in_jupyter(notebook)


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
    from runner.audit.archive import Pack
    from runner.audit.archive import pack as write_pack
    from runner.project import Project

    if output is not None and not output.parent.is_dir():
        raise UsageError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
    project = Project(pipeline)
    with project.store.shared():
        manifest = project.run(run)
        name, slash, _ = run.partition("/")
        evidence = Pack(run=manifest.run)
        if slash:
            versions = project.registry
            evidence = Pack(run=manifest.run, versions=list(versions.list(name)), events=list(versions.events(name)))
        target = output or Path(f"{manifest.run}.run.tar.gz")
        size = write_pack(manifest, project.store, target, evidence)
    say(f"{target}   {size:,} bytes", err=True)
    say(target)


@click.command("import")
@click.argument("file", metavar="FILE|EXECUTION")
@no_report_option
@json_option
@pipeline_option
def import_command(file: str, no_report: bool, as_json: bool, pipeline: Path) -> None:
    """Take in a packed run, or an execution of the pipeline in SageMaker by its ARN or id.

    Everything in the file is checked before anything is kept. A version that comes with it is pending here, whatever
    was decided on it elsewhere: approve it here. Twice is as good as once.

    \b
    Example:
      runner import run.tar.gz && runner report latest
      runner import EXECUTION-ARN
    """
    if Path(file).is_file():
        _import_pack(Path(file), as_json, pipeline)
    elif EXECUTION.match(file):
        _import_execution(file, no_report, as_json, pipeline)
    else:
        raise UsageError(f"There is no file {file}, and it is not an execution's ARN or id.")


def _import_pack(file: Path, as_json: bool, pipeline: Path) -> None:
    from runner.model.events import claim
    from runner.project import Project

    new = not pipeline.exists()
    manifest, version = Project(pipeline).import_pack(file)
    if as_json:
        named = [version.label] if version is not None else []
        print_json({"run": manifest.run, "versions": named, "claims": [claim(version)] if version is not None else []})
        return
    say(f"run {manifest.run}")
    if version is not None:
        said = claim(version)
        say(f"model {version.label} {version.status}{f'; {said}' if said else ''}")
        if version.status == "pending":
            label, short = version.label, manifest.run.rpartition("-")[2]
            say(f'  next: runner approve {label} --reason "…"   (look first: runner report {short})', err=True)
    if new:
        say(f"  {pipeline} came with the run; read it before you run anything.", err=True)


def _import_execution(reference: str, no_report: bool, as_json: bool, pipeline: Path) -> None:
    from runner.aws.pipelines.import_execution import import_execution
    from runner.project import Project

    project = Project(pipeline)
    spec, store = project.spec, project.store_here
    store.prepare()
    with store.shared():
        manifest = import_execution(project.session(), spec.name, reference, store, root=project.root)
    if not no_report:
        from runner.cli.reporting import write_all

        write_all(store.folder(manifest.run), manifest)
    made = manifest.model_version
    if as_json:
        print_json({"run": manifest.run, "versions": [made.label] if made is not None else []})
        return
    say(f"run {manifest.run}")
    if made is not None:
        say(f"model {made.label} {made.status}")


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
    from runner.project import Project
    from runner.run.folder import fetch

    project = Project(pipeline)
    with project.store.shared():
        manifest = project.run(run)
        came = fetch(manifest, project.store, steps=steps)
    say(f"run {manifest.run}: {came / 1e6:.1f} MB fetched")
