"""`runner run`: the main command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from runner.cli.options import json_option, parse_overrides, pipeline_option, print_json, run_json
from runner.cli.summary import exit_code, hint, summary
from runner.cli.terminal import say
from runner.errors import Detached, counted
from runner.records import FORKED, STANDARD, USUAL_KERNEL

if TYPE_CHECKING:
    from runner.aws.processing.estimate import Way
    from runner.manifest import RunManifest
    from runner.pipeline.plan import Plan
    from runner.records import InputFact, Pipeline
    from runner.run.ports import Options, World

no_report_option = click.option(
    "--no-report",
    is_flag=True,
    envvar="RUNNER_NO_REPORT",
    help="Write no pages; `runner report` does it later.",
)


KERNELS = [FORKED, STANDARD]
kernel_option = click.option(
    "--kernel",
    type=click.Choice(KERNELS),
    default=USUAL_KERNEL,
    show_default=True,
    envvar="RUNNER_KERNEL",
    help="A fork of a server that has the libraries loaded, or a kernel of its own.",
)


@click.command("run")
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@click.option(
    "-p",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a parameter, or STEP.NAME=VALUE for one step's parameter or input.",
)
@click.option("--profile", metavar="NAME", help="Apply [profiles.NAME] of the pipeline file.")
@click.option(
    "-j", "jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Independent steps at once."
)
@click.option(
    "--on", type=click.Choice(["local", "sagemaker"]), default="local", show_default=True, help="Where the steps run."
)
@kernel_option
@click.option("-m", "note", default="", metavar="NOTE", help="A note kept with the run.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag kept with the run.")
@click.option("--force", is_flag=True, help="Run every step, taking nothing from earlier runs.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and why; start nothing.")
@click.option("--no-register", is_flag=True, help="Register nothing, whatever the verdict.")
@no_report_option
@json_option
@pipeline_option
def run_command(
    steps: tuple[str, ...],
    parameters: tuple[str, ...],
    profile: str | None,
    jobs: int,
    on: str,
    kernel: str,
    note: str,
    tags: tuple[str, ...],
    force: bool,
    dry_run: bool,
    no_register: bool,
    no_report: bool,
    as_json: bool,
    pipeline: Path,
) -> int:
    """Run the pipeline's notebooks, judge, and register the model.

    With STEPs, runs those and what they need.

    \b
    Example:
      runner run
      runner run -p data.source=./customers.csv -m "June table"
      runner run train -p train.max_depth=6
    """
    from runner.pipeline.plan import plan as make_plan
    from runner.run.ports import Options

    overrides = parse_overrides(parameters)
    plan = make_plan(pipeline, profile=profile, overrides=overrides, targets=steps, secrets_here=on == "local")
    options = Options(
        jobs=jobs,
        kernel=kernel,
        note=note,
        tags=tags,
        register=not no_register,
        force=force,
        report=not no_report,
        profile=profile,
        targets=steps,
        overrides=overrides,
        on=on,
    )
    if dry_run:
        return _preview(plan, options, as_json)
    from runner.run.checkout import standing
    from runner.run.orchestrate import run

    made: list[tuple[RunManifest, World]] = []

    def start(world: World) -> RunManifest:
        made.append((run(plan, options, world), world))
        return made[0][0]

    pages, repeatable = not no_report, not force and on == "local" and plan.pipeline.store.runs is None
    git = standing(str(plan.root)) if repeatable else None
    code = carry_out(
        plan.file, plan.pipeline, start, on=on, kernel=kernel, as_json=as_json, pages=pages, again=repeatable
    )
    if repeatable:
        from runner.cli.fast_path import leave

        read = [option.envvar for option in run_command.params if isinstance(option.envvar, str)]
        leave(plan, *made[0], git=git, as_json=as_json, pages=pages, code=code, variables=read)
    return code


@click.command("resume")
@click.argument("run")
@click.option(
    "-j", "jobs", type=click.IntRange(1, 256), help="Independent steps at once.  [default: as it was started]"
)
@click.option("--kernel", type=click.Choice(KERNELS), envvar="RUNNER_KERNEL", help="[default: as it was started]")
@click.option("--take-over", is_flag=True, help="Also a run of another machine, which is gone.")
@no_report_option
@json_option
@pipeline_option
def resume_command(
    run: str, jobs: int | None, kernel: str | None, take_over: bool, no_report: bool, as_json: bool, pipeline: Path
) -> int:
    """Continue an interrupted or failed run from its first unsealed step, with its own code, parameters and options.

    \b
    Example:
      runner resume latest
    """
    from runner.project import Project
    from runner.run.ports import Options
    from runner.run.resume import resume, working_tree_differs

    project = Project(pipeline)
    store, manifest = project.store, project.run(run)
    run_id = manifest.run
    if manifest.status == "succeeded":
        say(f"run {run_id} has succeeded; there is nothing to continue", err=True)
    for notebook in working_tree_differs(manifest, store, pipeline.parent):
        say(f"  note: {notebook} has changed since; this continues with the run's own copy", err=True)
    options = Options(jobs=jobs or manifest.chosen.jobs, kernel=kernel or manifest.chosen.kernel, take_over=take_over)

    def go_on(world: World) -> RunManifest:
        made = resume(run_id, pipeline, options, world)
        return project.as_of_now([made])[0] if manifest.status == "succeeded" else made

    return carry_out(
        pipeline,
        manifest.pipeline,
        go_on,
        on=manifest.on,
        kernel=options.kernel,
        as_json=as_json,
        pages=manifest.chosen.report and not no_report,
    )


def carry_out(
    file: Path,
    spec: Pipeline,
    start: Callable[[World], RunManifest],
    *,
    on: str,
    kernel: str,
    as_json: bool,
    pages: bool,
    again: bool = False,
) -> int:
    """Do what makes or continues a run, show it as it goes on, print what came of it; the exit code.

    With `again` the report that a repetition of the run will have is made too.
    """
    from runner.cli.display import display
    from runner.cli.reporting import Reporter
    from runner.project import Project

    stop = threading.Event()
    shown = display()
    with signals(stop) as received, Reporter(shown, pages=pages, again=again) as watcher:
        world = Project(file).world(spec, on=on, kernel=kernel, watcher=watcher, stop=stop)
        watcher.at(world.store.root)
        try:
            manifest = start(world)
        except Detached as error:
            shown.close()
            short = error.run.rpartition("-")[2]
            say(str(error), err=True)
            say(f"  `runner resume {short}` follows it again, `runner stop {short}` ends it", err=True)
            return 143 if received and received[0] == signal.SIGTERM else Detached.exit_code
        finally:
            shown.close()
    folder = world.store.folder(manifest.run)
    if as_json:
        print_json(run_json(manifest, folder))
    say(summary(manifest, folder, pages=pages), err=as_json)  # a person reading a CI log wants the words too
    for line in hint(manifest):
        say(line, err=True)
    return exit_code(manifest, received)


def _preview(plan: Plan, options: Options, as_json: bool) -> int:
    from runner.project import Project
    from runner.run.preview import preview

    project = Project(plan.file).of(plan.pipeline)
    world = project.world(on=options.on)
    sources: dict[str, InputFact] = {}
    found = preview(plan, options, world, on_sources=sources)
    made = None
    if options.on == "sagemaker":
        from runner.aws.processing.estimate import estimate
        from runner.run.cache import Cache

        steps = [step.name for step in found if step.would in ("run", "maybe")]
        cache = Cache(project.store_here, plan.root)
        undeclared = {step: cache.undeclared(step) for step in steps}
        made = estimate(project.session(), plan, steps, sources, undeclared=undeclared)
    if as_json:
        shown = [{"name": step.name, "would": step.would, "why": step.why} for step in found]
        if made is None:
            print_json(shown)
            return 0
        figures = {"move_bytes": made.move_bytes, "ceiling_usd": made.ceiling_usd}
        print_json({"steps": shown, **figures, "ways": [asdict(way) for way in made.ways]})
        return 0
    for step in found:
        say(f"  {step.name:<12} {step.would:<8} {step.why}".rstrip())
    if made is not None:
        ceiling = "not known" if made.ceiling_usd is None else f"{made.ceiling_usd:.2f} USD"
        say(f"moves {made.move_bytes / 1e6:.1f} MB to S3")
        say(f"costs at most {ceiling}: each step, and each attempt at it, for as long as it may ({made.prices})")
        for way in made.ways if len(made.ways) > 1 else ():
            say(_way(way))
    return 0


def _way(way: Way) -> str:
    """A way to put the steps into jobs, in a line."""
    counts = way.jobs.items() if len(way.jobs) > 1 else [(kind, 1) for kind in way.jobs]  # of one kind it is all jobs
    kinds = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts)
    price = "price not known" if way.ceiling_usd is None else f"at most {way.ceiling_usd:.2f} USD"
    how = {"apart": "together = false", "together": "[sagemaker] together = true"}.get(way.name, "")
    said = f"  {way.name:<9} {counted(sum(way.jobs.values()), 'job')} ({kinds}), {price}"
    return said if way.chosen or not how else f"{said}   {how}"


@click.command("stop")
@click.argument("run")
@pipeline_option
def stop_command(run: str, pipeline: Path) -> None:
    """Stop a run: its jobs in SageMaker, or the process that works on it here. `runner resume` goes on later.

    \b
    Example:
      runner stop latest
    """
    from runner.project import Project

    for what in Project(pipeline).stop(run) or ["nothing: nobody works on it"]:
        say(f"stopped {what}")


@contextmanager
def signals(stop: threading.Event) -> Iterator[list[int]]:
    """SIGINT and SIGTERM set `stop`, so that kernels end and the manifest says so; a second one gives up waiting."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        stop.set()
        say("stopping; once more to stop at once", err=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
