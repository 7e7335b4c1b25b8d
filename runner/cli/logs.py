"""What a run's cells printed: `logs`."""

from __future__ import annotations

import click

from runner.cli.options import project_option
from runner.cli.terminal import say
from runner.errors import UsageError
from runner.project import Project


@click.command("logs")
@click.argument("run")
@click.argument("step", required=False)
@project_option
def logs_command(run: str, step: str | None, project: Project) -> None:
    """Print what a run's cells printed, of all steps or of STEP: a failed one's traceback, a job's log.

    Of a step that is running, as far as its notebook was saved, which is every few seconds.

    \b
    Example:
      runner logs latest
      runner logs 7f3a train
    """
    from runner.report.log import log_lines

    manifest = project.run(run)
    states = manifest.steps if step is None else [manifest.step(step)]
    printed = False
    for state in states:
        folder = project.store.folder(manifest.run) / "steps" / state.name
        lines = list(log_lines(folder)) if state.status not in (None, "skipped") else []
        if lines or step is not None:
            seconds = f", {state.result.seconds:.1f} s" if state.result is not None else ""
            from_run = f" from run {state.from_run}" if state.from_run else ""
            say(f"{state.name}: {state.status or 'not started'}{from_run}{seconds}")
        for line in lines:
            say(f"  {line}")
        printed = printed or bool(lines)
    if not printed:
        where = f"step {step} of run {manifest.run}" if step is not None else f"run {manifest.run}"
        raise UsageError(f"The cells of {where} have printed nothing.")
