"""Existing notebooks become the steps of a pipeline: `adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import print_json, result_options
from runner.cli.terminal import say
from runner.errors import PipelineError
from runner.project import Project

if TYPE_CHECKING:
    from runner.adopt.proposal import Proposal, Step
    from runner.audit.cells import CellChange

SHOWN_CHARACTERS = 80  # of a parameter's value


@click.command("adopt")
@click.argument("notebooks", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="NOTEBOOK...")
@click.option("--yes", is_flag=True, help="Write the copies and pipeline.toml, then check them.")
@click.option("--to", "folder", default="notebooks", show_default=True, metavar="FOLDER", help="Where the copies go.")
@result_options
def adopt_command(notebooks: tuple[Path, ...], yes: bool, folder: str, as_json: bool, project: Project) -> int:
    """Make existing notebooks the steps of a pipeline: show how, and with --yes write copies and pipeline.toml.

    Reads their code: constants become parameters, files that it names become inputs and outputs, metrics that it prints
    are recorded, and the order follows from who reads what another writes. What it cannot see it says. No notebook is
    executed, no original is changed, nothing that exists is overwritten.

    \b
    Example:
      runner adopt clean.ipynb fit.ipynb
      runner adopt clean.ipynb fit.ipynb --yes
    """
    from runner.adopt.proposal import propose, write

    proposal = propose(notebooks, project.file, folder=folder)
    written = write(proposal) if yes else []
    if as_json:
        return _print_json(proposal, written, project)
    for step in proposal.steps:
        _say_step(step)
    say(proposal.file)
    for line in proposal.toml.splitlines():
        say(f"    {line}".rstrip())
    if not yes:
        say(f"nothing is written; with --yes: {', '.join(proposal.contents)}")
        return 0
    say(f"written: {', '.join(written)}")
    from runner.cli.before_run import print_check

    return print_check(project)


def _say_step(step: Step) -> None:
    from runner.cli.diff import say_cells

    say(f"step {step.name}: {step.original} → {step.notebook}")
    for word, table in (("input", step.inputs), ("output", step.outputs)):
        for name, place in table.items():
            say(f"  {word} {name}: {place}")
    for name, value in step.parameters.items():
        text = repr(value)
        say(f"  parameter {name}: {text if len(text) <= SHOWN_CHARACTERS else f'{text[:SHOWN_CHARACTERS]} …'}")
    for name, better in step.metrics.items():
        say(f"  metric {name}{f', {better} is better' if better else ''}")
    say_cells(_changes(step))
    for sentence in step.notes:
        say(f"  note: {sentence}")


def _changes(step: Step) -> list[CellChange]:
    """The cells of the copy that are not the original's."""
    from runner.adopt.proposal import matched_cells
    from runner.audit.cells import cell_changes

    return cell_changes(*matched_cells(step))


def _print_json(proposal: Proposal, written: list[str], project: Project) -> int:
    from runner.pipeline.plan import plan

    checked: dict[str, Any] | None = None
    code = 0
    if written:
        try:
            checked = {"errors": [], "warnings": list(plan(project.file).warnings)}
        except PipelineError as error:
            checked, code = {"errors": list(error.findings), "warnings": []}, error.exit_code
    steps = [
        {
            "name": step.name,
            "original": str(step.original),
            "notebook": step.notebook,
            "inputs": step.inputs,
            "outputs": step.outputs,
            "parameters": step.parameters,
            "metrics": step.metrics,
            "notes": list(step.notes),
        }
        for step in proposal.steps
    ]
    print_json({"steps": steps, "pipeline": proposal.toml, "written": written, "check": checked})
    return code
