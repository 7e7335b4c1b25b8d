"""A run's files: `debug` one of its steps, `pack` it into a file, `import` such a file, `fetch` its outputs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from runner.cli.before_run import open_in_jupyter
from runner.cli.options import no_open_option, no_report_option, print_json, project_option, result_options
from runner.cli.summary import approval_hint
from runner.cli.terminal import say
from runner.errors import UsageError
from runner.project import Project

EXECUTION = re.compile(r"arn:aws[\w-]*:sagemaker:.*/execution/[a-z0-9]{12}\Z|[a-z0-9]{12}\Z")


@click.command("debug")
@click.argument("run")
@click.argument("step")
@no_open_option
@project_option
def debug_command(run: str, step: str, no_open: bool, project: Project) -> int:
    """Open a copy of a step's notebook with the run's own parameters and inputs, the failing cell marked.

    Run All reproduces the failure in a fresh kernel; the source notebook and everything sealed stay as they are.

    \b
    Example:
      runner debug latest STEP
    """
    from runner.audit.debug import prepare

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
@project_option
def pack_command(run: str, output: Path | None, project: Project) -> None:
    """Put a run, with all its inputs and outputs, into one file; for NAME/VERSION with the version's evidence.

    \b
    Example:
      runner pack latest -o run.tar.gz
      runner pack NAME/3
    """
    from runner.audit.archive import Pack
    from runner.audit.archive import pack as write_pack

    if output is not None and not output.parent.is_dir():
        raise UsageError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
    with project.store.shared():
        manifest = project.run(run)
        name, slash, _ = run.partition("/")
        evidence, registry = Pack(run=manifest.run), project.registry
        if slash:
            evidence = Pack(run=manifest.run, versions=[*registry.list(name)], events=[*registry.events(name)])
        target = output or Path(f"{manifest.run}.run.tar.gz")
        size = write_pack(manifest, project.store, target, evidence)
    say(f"{target}   {size:,} bytes", err=True)
    say(target)


@click.command("import")
@click.argument("file", metavar="FILE|EXECUTION")
@no_report_option
@result_options
def import_command(file: str, no_report: bool, as_json: bool, project: Project) -> None:
    """Take in a packed run, or an execution of the pipeline in SageMaker by its ARN or id.

    Everything in the file is checked before anything is kept. A version that comes with it is pending here, whatever
    was decided on it elsewhere: approve it here. Importing again changes nothing.

    \b
    Example:
      runner import run.tar.gz && runner report latest
      runner import EXECUTION-ARN
    """
    if Path(file).is_file():
        _import_pack(Path(file), as_json, project)
    elif EXECUTION.match(file):
        _import_execution(file, no_report, as_json, project)
    else:
        raise UsageError(f"There is no file {file}, and it is not an execution's ARN or id.")


def _import_pack(file: Path, as_json: bool, project: Project) -> None:
    from runner.model.events import claim

    is_new = not project.file.exists()
    manifest, version = project.import_pack(file)
    decided_elsewhere = claim(version) if version is not None else ""
    if as_json:
        versions, claims = ([version.label], [decided_elsewhere]) if version is not None else ([], [])
        print_json({"run": manifest.run, "versions": versions, "claims": claims})
        return
    say(f"run {manifest.run}")
    if version is not None:
        say(f"model {version.label} {version.status}{f'; {decided_elsewhere}' if decided_elsewhere else ''}")
        if version.status == "pending":
            say(approval_hint(version.label, manifest.run.rpartition("-")[2]), err=True)
    if is_new:
        say(f"  {project.file} came with the run; read it before you run anything.", err=True)


def _import_execution(reference: str, no_report: bool, as_json: bool, project: Project) -> None:
    from runner.aws.pipelines.import_execution import import_execution

    store = project.store_here
    store.prepare()
    with store.shared():
        manifest = import_execution(project.session(), project.spec.name, reference, store, root=project.root)
    if not no_report:
        from runner.report.page import write_all

        write_all(store.folder(manifest.run), manifest)
    version = manifest.model_version
    if as_json:
        print_json({"run": manifest.run, "versions": [version.label] if version is not None else []})
        return
    say(f"run {manifest.run}")
    if version is not None:
        say(f"model {version.label} {version.status}")


@click.command("fetch")
@click.argument("run")
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@project_option
def fetch_command(run: str, steps: tuple[str, ...], project: Project) -> None:
    """Bring the outputs of a run that ran elsewhere into its folder, each checked against its hash.

    \b
    Example:
      runner fetch latest
      runner fetch latest train
    """
    from runner.run.folder import fetch

    with project.store.shared():
        manifest = project.run(run)
        size_bytes = fetch(manifest, project.store, steps=steps)
    say(f"run {manifest.run}: {size_bytes / 1e6:.1f} MB fetched")
