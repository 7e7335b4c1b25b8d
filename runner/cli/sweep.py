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

from runner.cli.options import json_option, metric_json, metric_text, parse_overrides, pipeline_option, print_json
from runner.cli.run import kernel_option, no_report_option, signals
from runner.cli.terminal import drawn, say
from runner.errors import UsageError
from runner.manifest import RunManifest

if TYPE_CHECKING:
    from runner.run.sweep import Swept

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
@click.option(
    "--on", type=click.Choice(["local", "sagemaker"]), default="local", show_default=True, help="Where the steps run."
)
@kernel_option
@click.option("--profile", metavar="NAME", help="Apply [profiles.NAME] of the pipeline file.")
@no_report_option
@json_option
@pipeline_option
def sweep_command(
    step: str,
    parameters: tuple[str, ...],
    metric: str | None,
    jobs: int | None,
    on: str,
    kernel: str,
    profile: str | None,
    no_report: bool,
    as_json: bool,
    pipeline: Path,
) -> int:
    """Try every combination of values for STEP, rank them on validation rows, evaluate the winner. Registers nothing.

    \b
    Example:
      runner sweep train -p train.max_depth=3,5,7 -p train.eta=0.1,0.3 -j 2 --metric train.validation_auc
    """
    from runner.cli.reporting import Reporter
    from runner.cli.summary import summary
    from runner.pipeline.file import load
    from runner.project import Project, fork_servers
    from runner.report.sweep import plot, write_sweep
    from runner.run.ports import Options, Silent
    from runner.run.sweep import sweep

    fixed, grid = _grid(parameters)
    spec = load(pipeline, profile)
    if step not in spec.steps:
        from runner.pipeline.file import nearest

        raise UsageError(f"There is no step {step!r}{nearest(step, spec.steps)}")
    stop = threading.Event()
    project = Project(pipeline)
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

        def changed(swept: Swept) -> None:
            board.show(swept)
            if swept.winner is None and all(tried.run or tried.why for tried in swept.tried):
                drawings.append(beside.submit(plot, swept))

        swept = sweep(
            pipeline,
            step,
            grid,
            metric=metric,
            options=Options(kernel=kernel, profile=profile, overrides=fixed, on=on),
            jobs=jobs or (1 if on == "local" else JOBS_ELSEWHERE),
            world=lambda: project.world(spec, on=on, kernel=kernel, servers=servers, stop=stop),
            on_change=changed,
            watcher=watcher,
        )
    page = write_sweep(swept, store.root, drawn=drawings[-1].result() if drawings else None)
    if as_json:
        print_json(_json(swept, page))
    else:
        for line in _rows(swept, len(swept.tried)):
            say(line)
    say(f"sweep {page}", err=as_json)
    if received:
        say("  stopped; the same command goes on with what is missing", err=True)
        return 128 + received[0]
    if swept.winner is not None:
        say(f"the winner, {swept.winner.run}:", err=True)
        say(summary(swept.winner, store.folder(swept.winner.run), pages=not no_report), err=True)
        chosen = {**fixed, **swept.tried[0].values}
        arguments = [
            *(["--profile", profile] if profile else []),
            *(word for name in chosen for word in ("-p", f"{name}={chosen[name]}")),
        ]
        say(f"  next: runner run {shlex.join(arguments)}   ({_what_remains(swept.winner)})", err=True)
        return 0 if swept.winner.status == "succeeded" else 3
    return 0


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


def _rows(swept: Swept, count: int) -> list[str]:
    """The leaderboard: place, values, metric, run."""
    names = list(swept.tried[0].values)
    lines = [["", *names, swept.metric or "metric", "run"]]
    for place, tried in enumerate(swept.tried[:count], 1):
        found = swept.value(tried)
        said = metric_text(found) if found is not None else tried.why or ("running" if tried.run is None else "–")
        lines.append([f"{place}." if found else "", *tried.values.values(), said, tried.run or ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    made = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    left = len(swept.tried) - count
    return made + ([f"… and {left} more"] if left > 0 else [])


def _json(swept: Swept, page: Path) -> dict[str, Any]:
    return {
        "step": swept.step,
        "metric": swept.metric,
        "better": swept.better,
        "tried": [
            {
                "values": dict(tried.values),
                "run": tried.run,
                "metrics": {name: metric_json(metric) for name, metric in tried.metrics.items()},
                "why": tried.why or None,
            }
            for tried in swept.tried
        ],
        "winner": None
        if swept.winner is None
        else {
            "run": swept.winner.run,
            "verdict": swept.winner.verdict.outcome if swept.winner.verdict else None,
            "metrics": {name: metric_json(metric) for name, metric in swept.winner.metrics.items()},
        },
        "report": str(page.absolute()),
    }


class _Board:
    """The leaderboard, redrawn on a terminal; elsewhere a line for each combination that has ended."""

    def __init__(self) -> None:
        self._said = 0
        self._live: Any = None
        self._swept: Swept | None = None

    def __enter__(self) -> _Board:
        if sys.stderr.isatty():
            from rich.console import Console  # 0.1 s, and a log needs none of it
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, swept: Swept) -> None:
        self._swept = swept
        done = sum(tried.run is not None or bool(tried.why) for tried in swept.tried)
        if self._live is None and done > self._said:
            self._said = done
            best = swept.tried[0]
            found = swept.value(best)
            values = ", ".join(f"{name}={value}" for name, value in best.values.items())
            told = f"best {metric_text(found)} with {values}" if found is not None else "no value yet"
            say(f"  {done}/{len(swept.tried)}   {told}", err=True)

    def _drawn(self) -> Any:
        if self._swept is None:
            return drawn("")
        done = sum(tried.run is not None for tried in self._swept.tried)
        lines = [f"sweep of {self._swept.step}: {done} of {len(self._swept.tried)} done", *_rows(self._swept, SHOWN)]
        return drawn("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _what_remains(winner: RunManifest) -> str:
    """What is left to a run with the winner's values: the steps that wait for the verdict."""
    left = [one for one in winner.steps if one.status == "skipped" and one.name not in winner.pipeline.skip]
    if not left:
        return "all of it is cached"
    names = ["registration"] if all(one.registers for one in left) else [one.name for one in left]
    return f"cached up to the gate; only {', '.join(names)} remain{'s' * (len(names) == 1)}"
