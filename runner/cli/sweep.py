"""`runner sweep`: one step with many values, all of them or drawn, ranked live, the winner evaluated."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

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
from runner.run.space import MOST, Method, Search, checked_values, drawn_from, range_in

if TYPE_CHECKING:
    from runner.run.ports import World
    from runner.run.sweep import SweepResult

JOBS_ELSEWHERE = 20
SHOWN = 12  # rows of the leaderboard while it is live
PAGE_EVERY_S = 5.0  # between two writes of a search's page while it goes on


@click.command("sweep")
@click.argument("step")
@click.option(
    "-p",
    "parameters",
    multiple=True,
    required=True,
    metavar="NAME=VALUES",
    help="The values to try, `3,5,7`; one value holds for all, `\\,` is a comma in a value. With --trials also a range "
    "that values are drawn from: `3:9`, `0.01:0.3:log`.",
)
@click.option("--trials", type=click.IntRange(1, MOST), help="Draw so many combinations instead of trying all.")
@click.option(
    "--search",
    "method",
    type=click.Choice(get_args(Method)),
    help="How they are drawn: tpe looks where the best ones were (Optuna), random does not.  [default: tpe]",
)
@click.option("--seed", type=click.IntRange(0), help="Of what is drawn: equal seeds draw equally.  [default: 0]")
@click.option("--no-prune", is_flag=True, help="End no trial early, whatever its notebook reports.")
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
    trials: int | None,
    method: Method | None,
    seed: int | None,
    no_prune: bool,
    metric: str | None,
    jobs: int | None,
    on: str,
    kernel: str,
    profile: str | None,
    no_report: bool,
    as_json: bool,
    project: Project,
) -> int:
    """Try combinations of values for STEP, rank them on validation rows, evaluate the winner. Registers nothing.

    All combinations, or with --trials so many that are drawn from ranges and lists, each by what the ones before it
    came to. The same command goes on with a search that was stopped.

    \b
    Example:
      runner sweep train -p train.max_depth=3,5,7 -p train.eta=0.1,0.3 -j 2 --metric train.validation_auc
      runner sweep train --trials 50 -p train.max_depth=3:9 -p train.eta=0.01:0.3:log --metric train.validation_auc
    """
    from runner.cli.reporting import Reporter
    from runner.pipeline.file import nearest
    from runner.project import fork_servers
    from runner.report.sweep import plot, write_sweep
    from runner.run.ports import Options, Silent
    from runner.run.search import search
    from runner.run.sweep import Sweep, sweep

    project.profile = profile
    if step not in project.spec.steps:
        raise UsageError(f"There is no step {step!r}{nearest(step, project.spec.steps)}")
    fixed, grid, drawn_by = _tried_values(parameters, step, project, trials, (method, seed, no_prune))
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
        written = [time.monotonic()]

        def changed(swept: SweepResult) -> None:
            board.show(swept)
            if swept.winner is None and swept.total and swept.ended == swept.total:
                drawings.append(beside.submit(plot, swept))
            elif drawn_by is not None and time.monotonic() - written[0] > PAGE_EVERY_S:
                write_sweep(swept, store.root, drawn=None)
                written[0] = time.monotonic()

        def new_world() -> World:
            return project.of(project.spec).world(on=on, kernel=kernel, servers=servers, stop=stop)

        task = Sweep(
            project.file,
            step,
            grid,
            metric,
            options=Options(kernel=kernel, profile=profile, overrides=fixed, on=on),
            jobs=jobs or (1 if on == "local" else JOBS_ELSEWHERE),
        )
        if drawn_by is not None:
            swept = search(task, drawn_by, new_world, on_change=changed, watcher=watcher)
        else:
            swept = sweep(task, new_world, on_change=changed, watcher=watcher)
    if not swept.tried:  # it was stopped before the first trial
        say("  stopped; the same command begins", err=True)
        return 128 + received[0]
    page = write_sweep(swept, store.root, drawn=drawings[-1].result() if drawings else plot(swept))
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
    say(f"the winner, {swept.winner.run}:", err=True)
    say(summary(swept.winner, store.folder(swept.winner.run), pages=not no_report), err=True)
    say(f"  next: {_next_command(swept, swept.winner, fixed, profile)}", err=True)
    return 0 if swept.winner.status == "succeeded" else StepFailed.exit_code


def _next_command(swept: SweepResult, winner: RunManifest, fixed: Mapping[str, str], profile: str | None) -> str:
    """The run with the winner's values, and what it still executes."""
    arguments = ["--profile", profile] if profile else []
    for name, value in {**fixed, **swept.tried[0].values}.items():
        arguments += ["-p", f"{name}={value}"]
    return f"runner run {shlex.join(arguments)}   ({_remaining_steps(winner)})"


def _tried_values(
    parameters: Sequence[str],
    step: str,
    project: Project,
    trials: int | None,
    how: tuple[Method | None, int | None, bool],
) -> tuple[dict[str, str], dict[str, list[str]], Search | None]:
    """What holds for all combinations, the values of what is swept, and how they are drawn where they are."""
    from runner.notebook.source import read_notebook

    given = parse_overrides(parameters)
    if project.spec.steps[step].map:
        raise UsageError(f"Step {step} is executed for each of its keys: there is no one value of it to rank by.")
    declared = read_notebook(project.root / project.spec.steps[step].notebook).parameters
    if trials is not None:
        fixed, space = drawn_from(given, step, declared)
        method, seed, no_prune = how
        return fixed, {}, Search(space, trials, method or "tpe", seed or 0, prune=not no_prune)
    if how != (None, None, False):
        raise UsageError("--search, --seed and --no-prune are for a search: say how many trials, as in --trials 50.")
    fixed, grid = {}, dict[str, list[str]]()
    for name, text in given.items():
        values = checked_values(name, text)
        if range_in(name, text, declared.get(name.rpartition(".")[2])) is not None:
            raise UsageError(f"-p {name}={text} is a range: say how many values to draw, as in --trials 50.")
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            grid[name] = values
    if not grid:
        raise UsageError("There is nothing to sweep: give some -p several values, as in -p train.max_depth=3,5,7.")
    return fixed, grid, None


def _leaderboard(swept: SweepResult, count: int) -> list[str]:
    """Lines of the best `count`: place, values, metric, run."""
    rows = [["", *swept.names, swept.metric or "metric", "run"]]
    for place, tried in enumerate(swept.tried[:count], 1):
        metric = swept.value(tried)
        result = metric_text(metric) if metric is not None else tried.why or ("running" if tried.run is None else "–")
        rows.append([f"{place}." if metric else "", *tried.values.values(), result, tried.run or ""])
    left = len(swept.tried) - count
    return table_lines(rows) + ([f"… and {left} more"] if left > 0 else [])


def _sweep_json(swept: SweepResult, page: Path) -> dict[str, Any]:
    tried = [
        {
            **fields(entry, "number", "values", "state", "run"),
            "metrics": metrics_json(entry.metrics),
            "why": entry.why or None,
        }
        for entry in swept.tried
    ]
    winner = swept.winner and {
        "run": swept.winner.run,
        "verdict": swept.winner.verdict.outcome if swept.winner.verdict else None,
        "metrics": metrics_json(swept.winner.metrics),
    }
    facts = fields(swept, "step", "metric", "better")
    if swept.search is not None:
        facts["search"] = fields(swept.search, "method", "trials", "seed")
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
        done = swept.ended
        if self._live is None and done > self._shown_done:
            self._shown_done = done
            say(f"  {done}/{swept.total}   {_best_words(swept)}", err=True)

    def _drawn(self) -> Any:
        if self._swept is None:
            return drawn("")
        from runner.report.sweep import counts

        done = counts(self._swept) or f"{self._swept.ended} of {self._swept.total} done"
        lines = [f"sweep of {self._swept.step}: {done}", *_leaderboard(self._swept, SHOWN)]
        return drawn("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _best_words(swept: SweepResult) -> str:
    """ "best 0.968 with train.eta=0.1"; of a search with how many were pruned."""
    pruned = f"   {swept.count('pruned')} pruned" if swept.count("pruned") else ""
    if swept.best is None:
        return f"no value yet{pruned}"
    values = ", ".join(f"{name}={value}" for name, value in swept.best.values.items())
    return f"best {metric_text(swept.best.metrics[swept.metric or ''])} with {values}{pruned}"


def _remaining_steps(winner: RunManifest) -> str:
    """What a run with the winner's values still executes: the steps that wait for the verdict."""
    from runner.run.registration import own_request

    left = [step for step in winner.steps if step.status == "skipped" and step.name not in winner.pipeline.skip]
    if not left and own_request(winner) is None:
        return "all of it is cached"
    names = ["registration"] if all(step.registers for step in left) else [step.name for step in left]
    return f"cached up to the gate; only {', '.join(names)} remain{'s' * (len(names) == 1)}"
