"""Looking at runs: `runs`, `show`, `report`."""

from __future__ import annotations

import itertools
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.display import headline, step_line
from runner.cli.options import json_option, metric_text, pipeline_option, print_json, print_table, run_json
from runner.cli.summary import hint, summary
from runner.cli.terminal import say
from runner.manifest import RunManifest

if TYPE_CHECKING:
    from runner.run.store import Store


@click.command("runs")
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--best", metavar="METRIC", help="The best by this metric first, of all runs that recorded it.")
@click.option("--tag", metavar="TAG", help="Only runs with this tag.")
@json_option
@pipeline_option
def runs_command(count: int, best: str | None, tag: str | None, as_json: bool, pipeline: Path) -> None:
    """List runs, the newest first, with the metrics that the gate judges.

    \b
    Example:
      runner runs -n 5
      runner runs --best evaluate.auc --tag nightly
    """
    from runner.project import Project

    project = Project(pipeline)
    store = project.store
    manifests = _manifests(store, tag)
    if best is None:
        manifests = itertools.islice(manifests, count)
    chosen = list(manifests)
    if best is not None:
        chosen = _ranked(chosen, best)[:count]
    judged = dict.fromkeys(([best] if best else []) + [rule.metric for rule in project.spec.gate])
    shown = [name for name in judged if any(name in manifest.metrics for manifest in chosen)]
    if as_json:
        chosen = project.as_of_now(chosen)
        print_json([{**run_json(manifest, store.folder(manifest.run)), **_extras(manifest)} for manifest in chosen])
        return
    print_table(
        ["run", "status", "verdict", *shown, "model", "started (UTC)", "profile", "note"],
        [
            [
                manifest.run,
                manifest.status,
                manifest.verdict.outcome if manifest.verdict else "–",
                *(metric_text(manifest.metrics[name]) if name in manifest.metrics else "–" for name in shown),
                manifest.model_version.label if manifest.model_version else "–",
                manifest.started[:19].replace("T", " "),
                manifest.profile or "–",
                " ".join([manifest.note, *(f"#{tag}" for tag in manifest.tags)]).strip(),
            ]
            for manifest in chosen
        ],
    )


def _manifests(store: Store, tag: str | None) -> Iterator[RunManifest]:
    """The newest first; what cannot be read is named, what never began is left out."""
    from runner.errors import RunnerError

    for run in store.runs():
        try:
            if store.begun(run):
                manifest = store.manifest(run)
                if tag is None or tag in manifest.tags:
                    yield manifest
        except RunnerError as error:
            say(f"{run}: {error}", err=True)


def _ranked(manifests: list[RunManifest], metric: str) -> list[RunManifest]:
    """Those that recorded the metric, the best first by the direction that was recorded with it."""
    from runner.errors import UsageError
    from runner.pipeline.file import nearest

    found = [manifest for manifest in manifests if metric in manifest.metrics]
    if not found:
        known = {name for manifest in manifests for name in manifest.metrics}
        raise UsageError(f"No run recorded {metric!r}{nearest(metric, known)}")
    lower = found[0].metrics[metric].better == "lower"
    return sorted(found, key=lambda manifest: manifest.metrics[metric].value, reverse=not lower)


@click.command("show")
@click.argument("run")
@click.option("--md", "as_markdown", is_flag=True, help="Print Markdown, for the page of a CI job.")
@json_option
@pipeline_option
def show_command(run: str, as_markdown: bool, as_json: bool, pipeline: Path) -> None:
    """Show one run: steps, metrics, verdict, provenance.

    RUN is an id, a unique part of one, `latest`, or NAME/VERSION.

    \b
    Example:
      runner show latest
      runner show latest --md >> "$GITHUB_STEP_SUMMARY"
    """
    from runner.project import Project

    project = Project(pipeline)
    (manifest,) = project.as_of_now([project.run(run)])
    folder = project.store.folder(manifest.run)
    if as_json:
        print_json({**run_json(manifest, folder), **_extras(manifest)})
        return
    if as_markdown:
        from runner.report.run_markdown import run_markdown

        say(run_markdown(manifest, folder, list(hint(manifest))), nl=False)
        return
    say(headline(manifest))
    for step in manifest.steps:
        say(step_line(step, None, started=None))
    if manifest.metrics:
        say("metrics")
        print_table(
            ["  metric", "value"], [[f"  {name}", metric_text(metric)] for name, metric in manifest.metrics.items()]
        )
    for key, fact in manifest.sources.items():
        if fact.artifact:
            say(f"  from {fact.source} ({key}, sha256 {fact.artifact.sha256[:12]})")
    say(summary(manifest, folder))


@click.command("report")
@click.argument("run")
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
@pipeline_option
def report_command(run: str, open_: bool, pipeline: Path) -> None:
    """Write a run's report anew, with what was decided on its model since, and print where it is.

    \b
    Example:
      runner report latest --open
    """
    from runner.cli.reporting import write_all
    from runner.project import Project

    project = Project(pipeline)
    (manifest,) = project.as_of_now([project.run(run)])
    path = write_all(project.store.folder(manifest.run), manifest)
    say(path)
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
