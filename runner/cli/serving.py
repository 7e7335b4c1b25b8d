"""Scoring by approved versions: `predict` for files, `serve` over HTTP."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import print_json, project_option, result_options
from runner.cli.terminal import say
from runner.errors import UsageError, counted
from runner.project import Project

if TYPE_CHECKING:
    from runner.model.signature import Unknown
    from runner.scoring.inference import Scorer
    from runner.serve.capture import RequestCapture

capture_option = click.option(
    "--capture",
    metavar="TARGET",
    help="Keep records and scores for monitoring, as this target of pipeline.toml says, beside those it keeps itself.",
)
unknown_option = click.option(
    "--unknown",
    type=click.Choice(["error", "missing"]),
    default="error",
    show_default=True,
    help="What a category is that the model has never seen.",
)


@click.command("predict")
@click.argument("model", metavar="NAME[/VERSION]")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="A .csv, .jsonl or .parquet file."
)
@unknown_option
@click.option(
    "--delimiter", default=",", show_default=True, metavar="SIGN", help="What separates the values of a CSV file."
)
@click.option("--encoding", default="utf-8", show_default=True, metavar="NAME", help="Of a CSV file's text.")
@click.option("--raw", is_flag=True, help="CSV for programs alone: cells that a spreadsheet would compute stay so.")
@capture_option
@result_options
def predict_command(  # noqa: PLR0913 - click passes each option by its name
    model: str,
    file: Path,
    output: Path | None,
    unknown: Unknown,
    delimiter: str,
    encoding: str,
    raw: bool,
    capture: str | None,
    as_json: bool,
    project: Project,
) -> None:
    """Score a file of raw records (CSV, .jsonl or .parquet) by an approved model version.

    The rows come out as they are, with `prediction` and, unless the model predicts a number, `probability`: as CSV on
    stdout, or in the file of -o. Without /VERSION the highest approved version scores.

    In CSV, a cell that a spreadsheet would take for a formula (=, @, or a sign and more than a number) gets an
    apostrophe before it, and stderr says how many did. JSON lines and Parquet are never changed.

    \b
    Example:
      runner predict NAME customers.csv -o scored.csv
      runner predict NAME/3 customers.parquet | head
    """
    from runner.serve.approved import load
    from runner.serve.predict import csv_form, format_of, predict, source_format, writing

    if as_json and output is None:
        raise UsageError("--json prints the result; with it, name the file of the rows: -o FILE.")
    if output is not None and output.exists() and output.samefile(file):
        raise UsageError(f"{output} is the file that is read; name another with -o.")
    source_format(file)
    if output is not None:
        format_of(output)
    form = csv_form(delimiter, encoding)
    version = project.version(model)
    folder = project.version_folder(version)
    began = time.monotonic()
    scorer = load(version, folder, unknown=unknown, threads=_cores())
    try:
        # unlike main's, the original stream raises where its reader is gone
        with (
            _capturing(scorer, capture, project) as kept,
            writing(output, sys.__stdout__ or sys.stdout, raw=raw) as writer,
        ):
            rows = predict(scorer, file, writer, on_rows=_progress(began), form=form, capture=kept)
    except BrokenPipeError:  # `| head` has seen enough; click would call that a failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    seconds = time.monotonic() - began
    if writer.guarded:
        some = "1 cell has" if writer.guarded == 1 else f"{writer.guarded:,} cells have"
        say(f"{some} an apostrophe before what a spreadsheet would compute; --raw leaves it out", err=True)
    if as_json:
        facts = {"rows": rows, "output": str(output), "seconds": round(seconds, 3)}
        print_json({"model": scorer.model, "run": version.run, **facts})
    else:
        say(f"{counted(rows, 'row')} scored by {scorer.model} in {seconds:.1f} s", err=True)


@click.command("serve")
@click.argument("model", metavar="NAME[/VERSION]")
@click.option("--host", default="127.0.0.1", show_default=True, help="An address other than loopback needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: one per core]")
@unknown_option
@click.option(
    "--max-body-mb",
    type=click.FloatRange(0, 1024, min_open=True),
    default=6.0,
    show_default=True,
    help="Of one request.",
)
@click.option(
    "--timeout-s", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="For a request to arrive."
)
@click.option("--max-connections", type=click.IntRange(1), default=512, show_default=True, help="In each worker.")
@capture_option
@click.option(
    "--token",
    envvar="RUNNER_TOKEN",
    metavar="TEXT",
    help="Better in the variable RUNNER_TOKEN, which `ps` does not show.",
)
@project_option
def serve_command(  # noqa: PLR0913 - click passes each option by its name
    model: str,
    host: str,
    port: int,
    workers: int | None,
    unknown: Unknown,
    max_body_mb: float,
    timeout_s: float,
    max_connections: int,
    capture: str | None,
    token: str | None,
    project: Project,
) -> None:
    """Serve an approved model version over HTTP, as SageMaker asks of a container: GET /ping, POST /invocations.

    There are a page to try it at /, /metrics for Prometheus, and /openapi.json. Records come as CSV, JSON or JSON
    lines. SIGTERM or Ctrl-C ends it once the requests under way are answered.

    \b
    Example:
      runner serve NAME
      RUNNER_TOKEN=secret runner serve NAME/3 --host 0.0.0.0 --port 80
    """
    from runner.loopback import is_loopback

    if not token and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, so a token is needed: "
            "RUNNER_TOKEN=… runner serve …; clients send `Authorization: Bearer …`."
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before XGBoost is loaded: a process per core, and forked ones
    from runner.serve.app import Application, RequestLimits
    from runner.serve.approved import load
    from runner.serve.listening import bind
    from runner.serve.metrics import Metrics
    from runner.serve.server import serve

    version = project.version(model)
    scorer = load(version, project.version_folder(version), unknown=unknown)
    processes = workers or _cores()
    limits = RequestLimits(body_bytes=int(max_body_mb * 2**20), timeout_s=timeout_s, connections=max_connections)
    metrics, kept = Metrics(processes), None
    if capture is not None:
        from runner.serve.capture import RequestCapture

        if project.target(capture).kind != "local":
            raise UsageError(f"{capture} is an endpoint, which SageMaker captures. Name a local target.")
        with project.capturing(capture) as settings:
            kept = RequestCapture(scorer, settings, metrics=metrics, writers=processes)
    application = Application(scorer, version, limits=limits, metrics=metrics, token=token or None, capture=kept)
    try:
        listening = bind(host, port)
    except UsageError as error:
        raise UsageError(f"{error} Choose another with --port.") from error
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    ready = f"serving {scorer.model} of run {version.run} at {address} ({counted(processes, 'worker')})"
    serve(application, listening, workers=processes, on_ready=lambda: say(ready, err=True))


@contextmanager
def _capturing(scorer: Scorer, target: str | None, project: Project) -> Iterator[RequestCapture | None]:
    """What keeps scored rows for the target; None without one."""
    if target is None:
        yield None
        return
    from runner.serve.capture import RequestCapture

    with project.capturing(target) as settings:
        kept = RequestCapture(scorer, settings)
        try:
            yield kept
        finally:
            kept.close()
            if kept.writer.dropped:
                say(f"{counted(kept.writer.dropped, 'part')} of the rows not captured; see above", err=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(began: float) -> Callable[[int, float], None]:
    """A line on stderr that is written over, twice a second; on no terminal, one every ten seconds."""
    live = sys.stderr.isatty()
    shown = began

    def show(rows: int, part: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= (0.5 if live else 10):
            shown = now
            say(f"{rows:>14,} rows  {part:4.0%}  {rows / (now - began):,.0f} rows/s", err=True, over=live)

    return show
