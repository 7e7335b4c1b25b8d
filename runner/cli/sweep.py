"""`runner sweep`: one step with many values, ranked live, the winner evaluated."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    fields,
    metric_text,
    metrics_json,
    no_report_option,
    on_option,
    parse_overrides,
    print_json,
    profile_option,
    result_options,
    table_lines,
)
from runner.cli.run import kernel_option, signals
from runner.cli.summary import summary
from runner.cli.terminal import drawn, live, say
from runner.errors import StepFailed, UsageError
from runner.manifest import RunManifest
from runner.project import Project

if TYPE_CHECKING:
    from runner.run.sweep import SweepResult

JOBS_ELSEWHERE = 20
SHOWN = 12  # rows of the leaderboard while it is live


@click.command("sweep")
@click.argument("step")
@click.option(
    "-p",
    "parameters",
    multiple=True,
    required=True,
    metavar="NAME=A,B,C",
    help="The values to try, a comma between; one value holds for all. `\\,` is a comma in a value.",
)
@click.option("--metric", metavar="STEP.NAME", help="What to rank by; the step's own, on validation rows.")
@click.option(
    "-j",
    "jobs",
    type=click.IntRange(1, 256),
    help="Combinations at once; 1 here, and up to 20 jobs in SageMaker, unless it is given.",
)
@on_option
@kernel_option
@profile_option
@no_report_option
@result_options
def sweep_command(  # noqa: PLR0913 - click passes each option by its name
    step: str,
    parameters: tuple[str, ...],
    metric: str | None,
    jobs: int | None,
    on: str,
    kernel: str,
    profile: str | None,
    no_report: bool,
    as_json: bool,
    project: Project,
) -> int:
    """Try every combination of values for STEP, rank them on validation rows, evaluate the winner. Registers nothing.

    \b
    Example:
      runner sweep train -p train.max_depth=3,5,7 -p train.eta=0.1,0.3 -j 2 --metric train.validation_auc
    """
    from runner.cli.reporting import Reporter
    from runner.pipeline.file import nearest
    from runner.project import fork_servers
    from runner.report.sweep import plot, write_sweep
    from runner.run.ports import Options, Silent
    from runner.run.sweep import Sweep, sweep

    fixed, grid = _grid(parameters)
    project.profile = profile
    if step not in project.spec.steps:
        raise UsageError(f"There is no step {step!r}{nearest(step, project.spec.steps)}")
    stop = threading.Event()
    store = project.store
    board = _Board()
    with (
        signals(stop) as received,
        fork_servers() as servers,
        ThreadPoolExecutor(1) as beside,  # the plot is drawn while the winner is evaluated
        Reporter(Silent(), pages=not no_report) as watcher,
        board,
    ):
        watcher.at(store.root)
        drawings: list[Future[tuple[str, str] | None]] = []

        def changed(swept: SweepResult) -> None:
            board.show(swept)
            if swept.winner is None and all(tried.run or tried.why for tried in swept.tried):
                drawings.append(beside.submit(plot, swept))

        swept = sweep(
            Sweep(
                project.file,
                step,
                grid,
                metric,
                options=Options(kernel=kernel, profile=profile, overrides=fixed, on=on),
                jobs=jobs or (1 if on == "local" else JOBS_ELSEWHERE),
            ),
            lambda: project.of(project.spec).world(on=on, kernel=kernel, servers=servers, stop=stop),
            on_change=changed,
            watcher=watcher,
        )
    page = write_sweep(swept, store.root, drawn=drawings[-1].result() if drawings else None)
    if as_json:
        print_json(_sweep_json(swept, page))
    else:
        for line in _leaderboard(swept, len(swept.tried)):
            say(line)
    say(f"sweep {page}", err=as_json)
    if received:
        say("  stopped; the same command goes on with what is missing", err=True)
        return 128 + received[0]
    if swept.winner is None:
        return 0
    arguments = ["--profile", profile] if profile else []
    for name, value in {**fixed, **swept.tried[0].values}.items():
        arguments += ["-p", f"{name}={value}"]
    say(f"the winner, {swept.winner.run}:", err=True)
    say(summary(swept.winner, store.folder(swept.winner.run), pages=not no_report), err=True)
    say(f"  next: runner run {shlex.join(arguments)}   ({_remaining_steps(swept.winner)})", err=True)
    return 0 if swept.winner.status == "succeeded" else StepFailed.exit_code


def _grid(parameters: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What holds for all combinations, and the values of what is swept."""
    fixed: dict[str, str] = {}
    grid: dict[str, list[str]] = {}
    for name, text in parse_overrides(parameters).items():
        values = [part.replace("\0", ",").strip() for part in text.replace("\\,", "\0").split(",")]
        if len(values) != len(set(values)):
            raise UsageError(f"-p {name}: {text!r} has a value twice.")
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            grid[name] = values
    if not grid:
        raise UsageError("There is nothing to sweep: give some -p several values, as in -p train.max_depth=3,5,7.")
    return fixed, grid


def _leaderboard(swept: SweepResult, count: int) -> list[str]:
    """Lines of the best `count`: place, values, metric, run."""
    rows = [["", *swept.tried[0].values, swept.metric or "metric", "run"]]
    for place, tried in enumerate(swept.tried[:count], 1):
        metric = swept.value(tried)
        result = metric_text(metric) if metric is not None else tried.why or ("running" if tried.run is None else "–")
        rows.append([f"{place}." if metric else "", *tried.values.values(), result, tried.run or ""])
    left = len(swept.tried) - count
    return table_lines(rows) + ([f"… and {left} more"] if left > 0 else [])


def _sweep_json(swept: SweepResult, page: Path) -> dict[str, Any]:
    tried = [
        {**fields(entry, "values", "run"), "metrics": metrics_json(entry.metrics), "why": entry.why or None}
        for entry in swept.tried
    ]
    winner = swept.winner and {
        "run": swept.winner.run,
        "verdict": swept.winner.verdict.outcome if swept.winner.verdict else None,
        "metrics": metrics_json(swept.winner.metrics),
    }
    facts = fields(swept, "step", "metric", "better")
    return {**facts, "tried": tried, "winner": winner, "report": str(page.absolute())}


class _Board:
    """The leaderboard, redrawn on a terminal; elsewhere a line for each combination that has ended."""

    def __init__(self) -> None:
        self._shown_done = 0
        self._live: Any = None
        self._swept: SweepResult | None = None

    def __enter__(self) -> _Board:
        if sys.stderr.isatty():
            self._live = live(self._drawn, per_s=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, swept: SweepResult) -> None:
        self._swept = swept
        done = sum(tried.run is not None or bool(tried.why) for tried in swept.tried)
        if self._live is None and done > self._shown_done:
            self._shown_done = done
            best = swept.tried[0]
            metric = swept.value(best)
            values = ", ".join(f"{name}={value}" for name, value in best.values.items())
            state = f"best {metric_text(metric)} with {values}" if metric is not None else "no value yet"
            say(f"  {done}/{len(swept.tried)}   {state}", err=True)

    def _drawn(self) -> Any:
        if self._swept is None:
            return drawn("")
        done = sum(tried.run is not None for tried in self._swept.tried)
        title = f"sweep of {self._swept.step}: {done} of {len(self._swept.tried)} done"
        return drawn("\n".join([title, *_leaderboard(self._swept, SHOWN)]), no_wrap=True, overflow="ellipsis")


def _remaining_steps(winner: RunManifest) -> str:
    """What a run with the winner's values still executes: the steps that wait for the verdict."""
    from runner.run.registration import own_request

    left = [step for step in winner.steps if step.status == "skipped" and step.name not in winner.pipeline.skip]
    if not left and own_request(winner) is None:
        return "all of it is cached"
    names = ["registration"] if all(step.registers for step in left) else [step.name for step in left]
    return f"cached up to the gate; only {', '.join(names)} remain{'s' * (len(names) == 1)}"
