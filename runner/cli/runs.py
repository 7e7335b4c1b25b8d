"""Looking at runs: `runs`, `show`, `report`."""

from __future__ import annotations

import itertools
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.display import headline, step_line
from runner.cli.options import (
    fields,
    metric_text,
    print_json,
    print_table,
    project_option,
    result_options,
    run_json,
    table_lines,
)
from runner.cli.summary import hint, summary
from runner.cli.terminal import say
from runner.errors import RunnerError, UsageError
from runner.manifest import RunManifest, failures_first
from runner.project import Project

if TYPE_CHECKING:
    from runner.run.store import Store

SHOWN_KEYS = 20  # of a mapped step
COLUMNS = 100  # that a line of `runs` takes at most; --json has everything


@click.command("runs")
@click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--best", metavar="METRIC", help="The best by this metric first, of all runs that recorded it.")
@click.option("--tag", metavar="TAG", help="Only runs with this tag.")
@result_options
def runs_command(count: int, best: str | None, tag: str | None, as_json: bool, project: Project) -> None:
    """List runs, the newest first, with the metrics that the gate judges.

    \b
    Example:
      runner runs -n 5
      runner runs --best evaluate.auc --tag nightly
    """
    store = project.store
    manifests = _manifests(store, tag)
    if best is None:
        manifests = itertools.islice(manifests, count)
    listed = list(manifests)
    if best is not None:
        listed = _ranked(listed, best)[:count]
    metrics = dict.fromkeys(([best] if best else []) + [rule.metric for rule in project.spec.gate])
    shown = [name for name in metrics if any(name in manifest.metrics for manifest in listed)]
    if as_json:
        print_json([_full_json(manifest, store.folder(manifest.run)) for manifest in project.as_of_now(listed)])
        return
    headers = ["run", "status", "verdict", *_short(shown), "model", "note"]
    rows = [
        [
            manifest.run,  # its start in UTC
            manifest.status,
            manifest.verdict.outcome if manifest.verdict else None,
            *(f"{manifest.metrics[name].value:.4g}" if name in manifest.metrics else None for name in shown),
            manifest.model_version.label if manifest.model_version else None,
            _note(manifest),
        ]
        for manifest in listed
    ]
    for line in table_lines([headers, *rows]):
        say(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…")


def _short(metrics: list[str]) -> list[str]:
    """The metrics' names without their steps, where that leaves no two alike."""
    names = [name.partition(".")[2] or name for name in metrics]
    return names if len(set(names)) == len(names) else metrics


def _note(manifest: RunManifest) -> str:
    profile = [f"profile {manifest.profile}"] if manifest.profile else []
    return " ".join([*profile, manifest.note, *(f"#{tag}" for tag in manifest.tags)]).strip()


def _manifests(store: Store, tag: str | None) -> Iterator[RunManifest]:
    """The newest first; names those that cannot be read, leaves out those that never began."""
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
    from runner.pipeline.file import nearest

    ranked = [manifest for manifest in manifests if metric in manifest.metrics]
    if not ranked:
        known = {name for manifest in manifests for name in manifest.metrics}
        raise UsageError(f"No run recorded {metric!r}{nearest(metric, known)}")
    lower = ranked[0].metrics[metric].better == "lower"
    return sorted(ranked, key=lambda manifest: manifest.metrics[metric].value, reverse=not lower)


@click.command("show")
@click.argument("run")
@click.option("--md", "as_markdown", is_flag=True, help="Print Markdown, for the page of a CI job.")
@result_options
def show_command(run: str, as_markdown: bool, as_json: bool, project: Project) -> None:
    """Show one run: steps, metrics, verdict, provenance.

    RUN is an id, a unique part of one, `latest`, or NAME/VERSION.

    \b
    Example:
      runner show latest
      runner show latest --md >> "$GITHUB_STEP_SUMMARY"
    """
    (manifest,) = project.as_of_now([project.run(run)])
    folder = project.store.folder(manifest.run)
    if as_json:
        print_json(_full_json(manifest, folder))
        return
    if as_markdown:
        from runner.report.run_markdown import run_markdown

        say(run_markdown(manifest, folder, list(hint(manifest))), nl=False)
        return
    say(headline(manifest))
    if note := _note(manifest):
        say(f"  {note}")
    for step in manifest.steps:
        say(step_line(step, None, started=None))
    _say_keys(manifest)
    if manifest.metrics:
        say("metrics")
        print_table(
            ["  metric", "value"], [[f"  {name}", metric_text(metric)] for name, metric in manifest.metrics.items()]
        )
    for key, fact in manifest.sources.items():
        if fact.artifact:
            say(f"  from {fact.source} ({key}, sha256 {fact.artifact.sha256[:12]})")
    say(summary(manifest, folder))


def _say_keys(manifest: RunManifest) -> None:
    """A table of the keys of each mapped step, those that failed first; of many the first."""
    for step, keys in manifest.keyed().items():
        names = list(dict.fromkeys(name for key in keys for name in key.metrics))
        print_table(
            [f"  {step}", "status", *names, ""],
            [
                [
                    f"  {key.key}",
                    key.status,
                    *(metric_text(key.metrics[name]) if name in key.metrics else None for name in names),
                    key.error,
                ]
                for key in failures_first(keys)[:SHOWN_KEYS]
            ],
        )
        if len(keys) > SHOWN_KEYS:
            say(f"  and {len(keys) - SHOWN_KEYS:,} more, in the report and with --json")


@click.command("report")
@click.argument("run")
@click.option("--open", "open_", is_flag=True, help="Open it in the browser.")
@project_option
def report_command(run: str, open_: bool, project: Project) -> None:
    """Write a run's report anew, with what was decided on its model since, and print where it is.

    \b
    Example:
      runner report latest --open
    """
    from runner.report.page import write_all
    from runner.ui.jupyter import page_address

    (manifest,) = project.as_of_now([project.run(run)])
    path = write_all(project.store.folder(manifest.run), manifest)
    say(path)
    if (address := page_address(project.root, "run", manifest.run)) is not None:
        say(f"  in JupyterLab: {address}", err=True)
    if open_:
        webbrowser.open(path.absolute().as_uri())


def _full_json(manifest: RunManifest, folder: Path) -> dict[str, Any]:
    """A run's result, and what was recorded when it started."""
    return {
        **run_json(manifest, folder),
        **fields(manifest, "started", "ended", "started_by", "profile", "note", "tags"),
        "commit": manifest.git.commit if manifest.git else None,
        "sources": {key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact},
    }
