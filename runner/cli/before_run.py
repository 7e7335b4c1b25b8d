"""The project before a run: `check`, `open`, `kernel`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from runner.cli.options import no_open_option, parse_overrides, print_json, project_option, result_options
from runner.cli.terminal import say
from runner.errors import PipelineError, UsageError
from runner.notebook.source import Notebook
from runner.pipeline.plan import PlannedStep
from runner.project import Project
from runner.records import InputFact, Value
from runner.run.store import Store

KERNEL = "runner"


@click.command("check")
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="As for `run`.")
@click.option("--profile", metavar="NAME", help="As for `run`.")
@result_options
def check_command(parameters: tuple[str, ...], profile: str | None, as_json: bool, project: Project) -> int:
    """Say what is wrong with pipeline.toml and its notebooks; start nothing.

    \b
    Example:
      runner check --profile smoke
    """
    return print_check(project, profile=profile, parameters=parameters, as_json=as_json)


def print_check(
    project: Project, *, profile: str | None = None, parameters: Sequence[str] = (), as_json: bool = False
) -> int:
    """Print what is wrong with the pipeline file and its notebooks; the exit code.

    Raises PipelineError, where the result is not to be JSON.
    """
    from runner.pipeline.plan import plan as make_plan
    from runner.pipeline.registering import prospect
    from runner.run.cache import Cache

    try:
        plan = make_plan(project.file, profile=profile, overrides=parse_overrides(parameters))
    except PipelineError as error:
        if not as_json:
            raise
        print_json({"errors": list(error.findings), "warnings": []})
        return error.exit_code
    cache = Cache(project.store, plan.root)
    warnings = list(plan.warnings)
    for step in plan.steps:
        for name, opened in cache.undeclared(step.name).items():
            where = f"{step.spec.notebook}: cell [{opened.cell}] reads {name}, which is not an input"
            warnings.append(f"{where}; declare it, or keep in mind that a remote run does not have it.")
    if as_json:
        print_json({"errors": [], "warnings": warnings})
        return 0
    for warning in warnings:
        say(f"  note: {warning}")
    if sentence := prospect(plan.pipeline, plan.registering):
        say(sentence)
    say(plan.summary)
    return 0


@click.command("open")
@click.argument("step")
@click.option(
    "--run", "run", metavar="RUN", help="Bring this run's inputs and parameters to where the notebook has them."
)
@no_open_option
@project_option
def open_command(step: str, run: str | None, no_open: bool, project: Project) -> int:
    """Open a step's notebook in Jupyter, with a run's inputs and parameters, so that Run All does what the run did.

    Copies of the inputs go to the notebook's default paths below its work/ folder; nothing sealed can be changed
    through them. Where the run had other parameters, they become the defaults in the parameters cell; the values before
    are printed.

    \b
    Example:
      runner open evaluate --run latest
    """
    from runner.pipeline.file import nearest
    from runner.pipeline.plan import plan as make_plan
    from runner.run.inputs import parameters, recorded_input

    plan = make_plan(project.file)
    planned = next((planned for planned in plan.steps if planned.name == step), None)
    if planned is None:
        raise UsageError(f"There is no step {step!r}{nearest(step, [other.name for other in plan.steps])}")
    if run is not None:
        store = project.store
        with store.shared():
            manifest = project.run(run)
            state = manifest.find_step(step)
            if state is None or state.job is None:
                raise UsageError(f"Run {manifest.run} did not run step {step}, so it has no inputs to copy.")
            for name in state.job.inputs:
                _copy_input(planned, name, recorded_input(manifest, step, name), store)
            _copy_parameters(planned.notebook, parameters(manifest, step, store))
    if no_open:
        say(planned.notebook.path)
        return 0
    return open_in_jupyter(planned.notebook.path)


def open_in_jupyter(notebook: Path) -> int:
    """Start Jupyter on the notebook and wait for its end; its exit code. In a terminal of JupyterLab print where it is
    there."""
    from runner.ui.jupyter import notebook_address

    if (address := notebook_address(notebook)) is not None:
        say(address)
        say(
            "  open it in this JupyterLab; where there is only a path, it belongs behind the name in the browser",
            err=True,
        )
        return 0
    # a container's only account is root, which Jupyter refuses without the option; it changes nothing for others
    line = [sys.executable, "-m", "jupyter", "lab", "--allow-root", str(notebook)]
    try:
        return subprocess.run(line, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _copy_parameters(notebook: Notebook, values: dict[str, Value]) -> None:
    """Make a run's values the defaults in the notebook's parameters cell where they differ, and print them."""
    from runner.notebook.defaults import write_defaults

    declared = notebook.parameters
    other = {name: value for name, value in values.items() if name in declared and declared[name].default != value}
    if other and notebook.language == "python":
        write_defaults(notebook.path, other)
        say(f"  parameters of the run, in the parameters cell of {notebook.path.name} now:", err=True)
    elif other:
        say(f"  the run had other parameters than {notebook.path.name}; set them in its parameters cell:", err=True)
    for name, value in other.items():
        say(f"    {name} = {value!r}   (was {declared[name].expression or repr(declared[name].default)})", err=True)


def _copy_input(step: PlannedStep, name: str, fact: InputFact, store: Store) -> None:
    """Copy one input to where the notebook's default path points, if that is below its work/ folder."""
    from runner.run.inputs import copy

    beside = step.notebook.path.parent
    default = step.notebook.parameters[name].default
    if not fact.is_file:
        say(f"  {name}: nothing to copy ({'an address' if fact.present else 'absent in that run'})", err=True)
        return
    if not isinstance(default, str) or not default.startswith("work/"):
        # a default outside work/ is a person's own file, such as the table in data/
        target = beside / "work" / step.name / name
        say(f"  {name}: copied to {target}; set `{name}` to it in the parameters cell to use it", err=True)
    else:
        target = beside / default
        say(f"  {name}: {target}", err=True)
    copy(fact, target, f"Input {name} of step {step.name}", store)


@click.command("kernel")
@click.option("--name", default=KERNEL, show_default=True, help="The kernel's name in Jupyter.")
@click.option("--prefix", type=click.Path(path_type=Path), help="Install below this folder instead of for the user.")
def kernel_command(name: str, prefix: Path | None) -> None:
    """Register this environment as a Jupyter kernel, the one the notebooks name.

    \b
    Example:
      runner kernel
    """
    from ipykernel.kernelspec import install  # 0.3 s

    from runner.ui.jupyter import STUDIO, configure

    target = str(prefix) if prefix else None
    folder = install(user=prefix is None, prefix=target, kernel_name=name, display_name=f"Python ({name})")
    say(f"kernel {name} in {folder}")
    if prefix is None and STUDIO.exists():
        say(f"the pages are in JupyterLab's launcher from its next start, by {configure()}")
