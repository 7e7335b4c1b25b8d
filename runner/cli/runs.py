"""Looking at runs: `runs`, `show`, `report`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from runner.cli.display import headline, step_line
from runner.cli.options import (
    json_option,
    metric_text,
    pipeline_option,
    print_json,
    print_table,
    run_json,
)
from runner.cli.text import summary
from runner.records import RunManifest


@click.command("runs")
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@json_option
@pipeline_option
def runs_command(count: int, as_json: bool, pipeline: Path) -> None:
    """List runs, the newest first.

    \b
    Example:
      runner runs -n 5
    """
    from runner import backend
    from runner.errors import RunnerError

    store = backend.store(pipeline)
    manifests: list[RunManifest] = []
    for run in store.runs()[:count]:
        try:
            manifests.append(store.manifest(run))
        except RunnerError as error:
            click.echo(f"{run}: {error}", err=True)
    if as_json:
        print_json([{**run_json(manifest, store.folder(manifest.run)), **_extras(manifest)} for manifest in manifests])
        return
    print_table(
        ["run", "status", "verdict", "model", "started (UTC)", "profile", "note"],
        [
            [
                manifest.run,
                manifest.status,
                manifest.verdict.outcome if manifest.verdict else "–",
                f"{manifest.model_version.name}/{manifest.model_version.version}" if manifest.model_version else "–",
                manifest.started[:19].replace("T", " "),
                manifest.profile or "–",
                " ".join([manifest.note, *(f"#{tag}" for tag in manifest.tags)]).strip(),
            ]
            for manifest in manifests
        ],
    )


@click.command("show")
@click.argument("run")
@json_option
@pipeline_option
def show_command(run: str, as_json: bool, pipeline: Path) -> None:
    """Show one run: steps, metrics, verdict, provenance.

    RUN is an id, a unique part of one, `latest`, or NAME/VERSION.

    \b
    Example:
      runner show latest
    """
    from runner import backend

    store = backend.store(pipeline)
    manifest = store.manifest(backend.find_run(pipeline, run))
    folder = store.folder(manifest.run)
    if as_json:
        print_json({**run_json(manifest, folder), **_extras(manifest)})
        return
    click.echo(headline(manifest))
    for step in manifest.steps:
        click.echo(step_line(step, None, started=None))
    if manifest.metrics:
        click.echo("metrics")
        print_table(
            ["  metric", "value"], [[f"  {name}", metric_text(metric)] for name, metric in manifest.metrics.items()]
        )
    for key, fact in manifest.sources.items():
        if fact.artifact:
            click.echo(f"  from {fact.source} ({key}, sha256 {fact.artifact.sha256[:12]})")
    click.echo(summary(manifest, folder))


@click.command("report")
@click.argument("run")
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
@pipeline_option
def report_command(run: str, open_: bool, pipeline: Path) -> None:
    """Print where a run's report is, writing it anew where it is missing.

    \b
    Example:
      runner report latest --open
    """
    from runner import backend
    from runner.cli.reporting import write_all

    store = backend.store(pipeline)
    manifest = store.manifest(backend.find_run(pipeline, run))
    path = write_all(store.folder(manifest.run), manifest)
    click.echo(path)
    if open_:
        webbrowser.open(path.absolute().as_uri())


def _extras(manifest: RunManifest) -> dict[str, Any]:
    """What a list of runs shows beyond the result of one."""
    return {
        "started": manifest.started,
        "ended": manifest.ended,
        "started_by": manifest.started_by,
        "profile": manifest.profile,
        "note": manifest.note,
        "tags": manifest.tags,
        "commit": manifest.git.commit if manifest.git else None,
        "sources": {key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact},
    }
