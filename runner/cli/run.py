"""`runner run`: the main command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from runner.cli.options import (
    fields,
    no_report_option,
    note,
    on_option,
    parse_overrides,
    print_json,
    profile_option,
    project_option,
    result_options,
    run_json,
)
from runner.cli.summary import exit_code, hint, summary
from runner.cli.terminal import say
from runner.errors import Detached, counted
from runner.project import Project
from runner.records import FORKED, STANDARD, USUAL_KERNEL

if TYPE_CHECKING:
    from runner.aws.processing.estimate import Estimate, JobSplit
    from runner.manifest import RunManifest
    from runner.pipeline.plan import Plan
    from runner.run.ports import Options, World

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
@profile_option
@click.option(
    "-j", "jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Independent steps at once."
)
@on_option
@kernel_option
@click.option("-m", "note", default="", metavar="NOTE", help="A note kept with the run.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag kept with the run.")
@click.option("--force", is_flag=True, help="Run every step, taking nothing from earlier runs.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and why; start nothing.")
@click.option("--no-register", is_flag=True, help="Register nothing, whatever the verdict.")
@no_report_option
@result_options
def run_command(  # noqa: PLR0913 - click passes each option by its name
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
    project: Project,
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
    plan = make_plan(project.file, profile=profile, overrides=overrides, targets=steps, secrets_here=on == "local")
    options = Options(
        jobs=jobs,
        kernel=kernel,
        note=note,
        tags=tags,
        register=not no_register and (plan.pipeline.model is None or plan.pipeline.model.register),
        force=force,
        report=not no_report,
        profile=profile,
        targets=steps,
        overrides=overrides,
        on=on,
    )
    if dry_run:
        return _preview(project.of(plan.pipeline), plan, options, as_json)
    from runner.run.checkout import git_fingerprint
    from runner.run.orchestrate import run

    finished: list[tuple[RunManifest, World]] = []

    def start(world: World) -> RunManifest:
        finished.append((run(plan, options, world), world))
        return finished[0][0]

    pages, repeatable = not no_report, not force and on == "local" and plan.pipeline.store.runs is None
    git = git_fingerprint(str(plan.root)) if repeatable else None
    code = carry_out(
        project.of(plan.pipeline), start, on=on, kernel=kernel, as_json=as_json, pages=pages, again=repeatable
    )
    if repeatable:
        from runner.cli.fast_path import keep

        variables = [option.envvar for option in run_command.params if isinstance(option.envvar, str)]
        keep(plan, *finished[0], git=git, as_json=as_json, pages=pages, code=code, variables=variables)
    return code


@click.command("resume")
@click.argument("run")
@click.option(
    "-j", "jobs", type=click.IntRange(1, 256), help="Independent steps at once.  [default: as it was started]"
)
@click.option("--kernel", type=click.Choice(KERNELS), envvar="RUNNER_KERNEL", help="[default: as it was started]")
@click.option("--take-over", is_flag=True, help="Also a run of another machine, which is gone.")
@no_report_option
@result_options
def resume_command(
    run: str, jobs: int | None, kernel: str | None, take_over: bool, no_report: bool, as_json: bool, project: Project
) -> int:
    """Continue an interrupted or failed run from its first unsealed step, with its own code, parameters and options.

    \b
    Example:
      runner resume latest
    """
    from runner.run.ports import Options
    from runner.run.resume import resume, working_tree_differs

    store, manifest = project.store, project.run(run)
    run_id = manifest.run
    if manifest.status == "succeeded":
        say(f"run {run_id} has succeeded; there is nothing to continue", err=True)
    for notebook in working_tree_differs(manifest, store, project.root):
        say(f"  note: {notebook} has changed since; this continues with the run's own copy", err=True)
    options = Options(jobs=jobs or manifest.chosen.jobs, kernel=kernel or manifest.chosen.kernel, take_over=take_over)

    def go_on(world: World) -> RunManifest:
        resumed = resume(run_id, project.file, options, world)
        return project.as_of_now([resumed])[0] if manifest.status == "succeeded" else resumed

    pages = manifest.chosen.report and not no_report
    return carry_out(
        project.of(manifest.pipeline),
        go_on,
        on=manifest.on,
        kernel=options.kernel,
        as_json=as_json,
        pages=pages,
        told=manifest.status == "succeeded",
    )


def carry_out(
    project: Project,
    start: Callable[[World], RunManifest],
    *,
    on: str,
    kernel: str,
    as_json: bool,
    pages: bool,
    again: bool = False,
    told: bool = False,
) -> int:
    """Start or continue a run, show its progress, print its result, tell whom [notify] names; the exit code.

    With `again` the report that a repetition of the run will have is made too. `told` says that nothing new can come
    of the run.
    """
    followed = follow(project, start, on=on, kernel=kernel, pages=pages, again=again)
    if followed.manifest is not None:
        if as_json:
            print_json(run_json(followed.manifest, followed.folder))
        print_result(followed.manifest, followed.folder, pages=pages, as_json=as_json)
    if not told:
        followed.tell()
    return followed.code


@dataclass(frozen=True)
class FollowedRun:
    """A run that has ended, with its folder and the exit code; without a manifest where it keeps running elsewhere."""

    manifest: RunManifest | None
    folder: Path
    code: int
    tell: Callable[[], None] = lambda: None  # whom [notify] names; after its result was printed


def follow(
    project: Project,
    start: Callable[[World], RunManifest],
    *,
    on: str,
    kernel: str,
    pages: bool,
    again: bool = False,
) -> FollowedRun:
    """Start or continue a run, and show its progress. See `carry_out`, which also prints its result."""
    from runner.cli.display import display
    from runner.cli.reporting import Reporter

    stop = threading.Event()
    shown = display()
    with signals(stop) as received, Reporter(shown, pages=pages, again=again) as watcher:
        world = project.world(on=on, kernel=kernel, watcher=watcher, stop=stop)
        watcher.at(world.store.root)
        try:
            manifest = start(world)
        except Detached as error:
            shown.close()
            short = error.run.rpartition("-")[2]
            say(str(error), err=True)
            say(f"  `runner resume {short}` follows it again, `runner stop {short}` ends it", err=True)
            code = 143 if received and received[0] == signal.SIGTERM else Detached.exit_code
            return FollowedRun(None, world.store.folder(error.run), code)
        except Exception as error:
            shown.close()
            _tell(project, world, watcher.manifest, error=str(error) or type(error).__name__)
            raise
        finally:
            shown.close()
    return FollowedRun(
        manifest,
        world.store.folder(manifest.run),
        exit_code(manifest, received),
        lambda: _tell(project, world, manifest, pages=pages),
    )


def print_result(manifest: RunManifest, folder: Path, *, pages: bool, as_json: bool) -> None:
    """The run in words, on stderr beside JSON, and the next command."""
    say(summary(manifest, folder, pages=pages), err=as_json)  # for a person who reads a CI log
    for line in hint(manifest):
        say(line, err=True)


def _tell(
    project: Project, world: World, manifest: RunManifest | None, *, pages: bool = False, error: str = ""
) -> None:
    """Tell whom [notify] names what has become of the run; what does not work is a note."""
    if manifest is None or project.spec.notify.to is None:
        return
    from runner import notify

    report = world.store.folder(manifest.run) / "report.html" if pages else None
    notify.tell(project.spec.notify, notify.of_run(manifest, report, registry=world.registry, error=error), note)


def _preview(project: Project, plan: Plan, options: Options, as_json: bool) -> int:
    from runner.run.preview import preview

    expected = preview(plan, options, project.world(on=options.on))
    bill: Estimate | None = None
    if options.on == "sagemaker":
        from runner.aws.processing.estimate import estimate
        from runner.run.cache import Cache

        steps = [step.name for step in expected.steps if step.action in ("run", "maybe")]
        cache = Cache(project.store_here, plan.root)
        undeclared = {step: cache.undeclared(step) for step in steps}
        bill = estimate(project.session(), plan, steps, expected.sources, undeclared=undeclared)
    if as_json:
        rows = [{"name": step.name, "action": step.action, "why": step.why} for step in expected.steps]
        ways = [asdict(way) for way in bill.ways] if bill else []
        print_json({"steps": rows, **fields(bill, "move_bytes", "ceiling_usd"), "ways": ways} if bill else rows)
        return 0
    for step in expected.steps:
        say(f"  {step.name:<12} {step.action:<8} {step.why}".rstrip())
    if bill is not None:
        ceiling = "not known" if bill.ceiling_usd is None else f"{bill.ceiling_usd:.2f} USD"
        say(f"moves {bill.move_bytes / 1e6:.1f} MB to S3")
        say(f"costs at most {ceiling}: each step, and each attempt at it, for as long as it may ({bill.prices})")
        kinds = {kind for way in bill.ways for kind in way.jobs}
        for way in bill.ways if len(bill.ways) > 1 or any(" " in kind for kind in kinds) else ():
            say(_way_line(way))
    return 0


def _way_line(way: JobSplit) -> str:
    """A way to put the steps into jobs, and the setting that chooses it where it is not chosen."""
    counts = way.jobs.items() if len(way.jobs) > 1 else [(kind, 1) for kind in way.jobs]  # one kind: all jobs
    kinds = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts)
    price = "price not known" if way.ceiling_usd is None else f"at most {way.ceiling_usd:.2f} USD"
    setting = {"apart": "together = false", "together": "[sagemaker] together = true"}.get(way.name, "")
    line = f"  {way.name:<9} {counted(sum(way.jobs.values()), 'job')} ({kinds}), {price}"
    return line if way.chosen or not setting else f"{line}   {setting}"


@click.command("stop")
@click.argument("run")
@project_option
def stop_command(run: str, project: Project) -> None:
    """Stop a run: its jobs in SageMaker, or the process that works on it here. `runner resume` continues it.

    \b
    Example:
      runner stop latest
    """
    for stopped in project.stop(run) or ["nothing: nobody works on it"]:
        say(f"stopped {stopped}")


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
