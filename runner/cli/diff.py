"""Setting things side by side: `diff` for two runs, or a commit and the working tree; `compare` for several runs."""

from __future__ import annotations

import hashlib
import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import metric_text, print_json, print_table, result_options
from runner.cli.terminal import say
from runner.errors import Refused, UsageError, counted
from runner.project import Project

if TYPE_CHECKING:
    from runner.audit.cells import CellChange
    from runner.audit.compare import RunComparison, RunFacts
    from runner.audit.diff import Change, Difference, MetricChange, StepChange
    from runner.run.store import Store

PAGES = "comparisons"  # beside the runs, as these are sealed
COLOURS = {"+": "green", "-": "red", "@": "cyan"}

markdown_option = click.option("--md", "as_markdown", is_flag=True, help="Print Markdown, for a pull request.")
output_option = click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Where to write the page.  [default: below runs/comparisons/; none with --md or --json]",
)
open_option = click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")


@click.command("diff")
@click.argument("before", metavar="RUN|REVISION")
@click.argument("after", metavar="[RUN]", required=False)
@output_option
@open_option
@markdown_option
@result_options
def diff_command(
    before: str, after: str | None, output: Path | None, open_: bool, as_markdown: bool, as_json: bool, project: Project
) -> None:
    """Show what differs between two runs, or from a git revision to the working tree: code by cell.

    Of two runs it also writes a page with their metrics and figures side by side. A revision needs no run.

    \b
    Example:
      runner diff 7f3a latest
      runner diff main --md
    """
    from runner.audit import compare, diff

    wants_page = _wants_page(output, open_, as_markdown, as_json)
    store = project.store
    comparison: RunComparison | None = None
    if after is None:
        difference, page = diff.since_commit(project.file, before), output
    else:
        manifests = project.as_of_now([project.run(reference) for reference in (before, after)])
        difference, comparison = diff.between_runs(manifests[0], manifests[1], store), compare.compare(manifests)
        page = output or (store.root / PAGES / f"{manifests[0].run}-{manifests[1].run}.html" if wants_page else None)
    if page is not None:
        _write(page, comparison, difference, store)
    _print(difference, page, as_markdown=as_markdown, as_json=as_json)
    _open(page, open_)


@click.command("compare")
@click.argument("runs", metavar="RUN RUN…", nargs=-1, required=True)
@output_option
@open_option
@markdown_option
@result_options
def compare_command(
    runs: tuple[str, ...], output: Path | None, open_: bool, as_markdown: bool, as_json: bool, project: Project
) -> None:
    """Show runs in one table: the parameters that differ, metrics with their intervals, verdicts, model versions.

    A metric that was measured on other data than in the first run is said not to be comparable.

    \b
    Example:
      runner compare 7f3a 2b1c latest
    """
    from runner.audit import compare

    if len(runs) < 2:
        raise UsageError("Name two runs or more; `runner runs` lists them.")
    wants_page = _wants_page(output, open_, as_markdown, as_json)
    store = project.store
    comparison = compare.compare(project.as_of_now([project.run(reference) for reference in runs]))
    names = " ".join(facts.run for facts in comparison.runs)
    name = f"compare-{hashlib.sha256(names.encode()).hexdigest()[:12]}.html"
    page = output or (store.root / PAGES / name if wants_page else None)
    if page is not None:
        _write(page, comparison, None, store)
    _print(comparison, page, as_markdown=as_markdown, as_json=as_json)
    _open(page, open_)


def _wants_page(output: Path | None, open_: bool, as_markdown: bool, as_json: bool) -> bool:
    """For a person always; for a program only if asked, as drawing takes most of the time. Raises UsageError."""
    if as_markdown and as_json:
        raise UsageError("Write --md or --json, not both.")
    return output is not None or open_ or not (as_markdown or as_json)


def _write(page: Path, comparison: RunComparison | None, difference: Difference | None, store: Store) -> None:
    from runner.report.comparison import write_comparison  # jinja2

    try:
        write_comparison(page, comparison=comparison, difference=difference, runs=store.root)
    except OSError as error:
        raise Refused(
            f"Cannot write {page}: {error.strerror}. Name a place that can be written to with -o FILE.html."
        ) from error


def _print(result: Difference | RunComparison, page: Path | None, *, as_markdown: bool, as_json: bool) -> None:
    """The result on stdout in the form asked for; with Markdown, the page's path goes to stderr."""
    from runner.audit.diff import Difference

    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(result), "page": str(page.absolute()) if page else None})
        return
    if as_markdown:
        from runner.report.pull_request import pull_request

        say(pull_request(result), nl=False)
    elif isinstance(result, Difference):
        _say_difference(result)
    else:
        _say_comparison(result)
    if page is not None:
        say(f"page {page}", err=as_markdown)


def _open(page: Path | None, wanted: bool) -> None:
    if wanted and page is not None:
        webbrowser.open(page.absolute().as_uri())


def _say_difference(difference: Difference) -> None:
    from runner.report.comparison import summary

    say(f"{difference.before.name} → {difference.after.name}")
    if difference.before.run and difference.after.run:
        _say_verdicts(difference, difference.before.run, difference.after.run)
        _say_metrics(difference.metrics)
    if difference.parameters:
        say("parameters")
        _say_changes(difference.parameters, by_step=True)
    for title, changes in (("pipeline", difference.pipeline), ("environment", difference.environment)):
        if changes:
            say(title)
            _say_changes(changes, by_step=False)
    _say_data_and_packages(difference)
    for step in difference.steps:
        _say_step(step)
    say(summary(difference))


def _say_verdicts(difference: Difference, before: RunFacts, after: RunFacts) -> None:
    from runner.report.comparison import verdict_in_words

    names = [verdict_in_words(run) for run in (before, after)]
    say(f"gate {names[0]}" if names[0] == names[1] else f"gate {names[0]} → {names[1]}")
    for rule in difference.rules:
        if rule.before != rule.after:
            say(f"  {rule.rule}: {rule.before or '–'} → {rule.after or '–'}")


def _say_metrics(metrics: Iterable[MetricChange]) -> None:
    from runner.report.comparison import metric_in_words

    changed = [metric for metric in metrics if metric.direction != "same"]
    if not changed:
        say("metrics: all the same")
        return
    print_table(
        ["metrics", "before", "after", "difference", ""],
        [
            [
                f"  {metric.name}",
                *(metric_text(value) if value else "–" for value in (metric.before, metric.after)),
                "" if metric.difference is None or metric.not_comparable else f"{metric.difference:+.4g}",
                metric_in_words(metric),
            ]
            for metric in changed
        ],
    )


def _say_changes(changes: Iterable[Change], *, by_step: bool) -> None:
    """One line for each; a parameter with the same change in several steps has one line."""
    from runner.report.comparison import value_text

    lines: dict[str, list[str]] = {}
    for change in changes:
        step, _, name = change.name.partition(".") if by_step else ("", "", change.name)
        before, after = value_text(change.before), value_text(change.after)
        text = {"changed": f"{before} → {after}", "added": f"added, {after}", "removed": f"removed, was {before}"}
        lines.setdefault(f"{name}  {text[change.kind]}", []).append(step)
    for line, steps in lines.items():
        say(f"  {line}" + (f"   ({', '.join(steps)})" if by_step else ""))


def _say_data_and_packages(difference: Difference) -> None:
    outputs = [data.name for data in difference.data if not data.outside]
    if difference.data:
        say("data")
    for data in (data for data in difference.data if data.outside):
        hashes = " → ".join(sha256[:12] if sha256 else "absent" for sha256 in (data.before, data.after))
        same = "the same bytes" if data.before == data.after else hashes
        place = " → ".join(dict.fromkeys(place or "–" for place in (data.source_before, data.source_after)))
        say(f"  {data.name}  {place}  {same}")
    if outputs:
        say(f"  made by the run and different: {', '.join(outputs)}")
    imported = [package for package in difference.packages if package.imported]
    others = len(difference.packages) - len(imported)
    if difference.packages:
        say("packages")
    for package in imported:
        say(f"  {package.name}  {package.before or 'not there'} → {package.after or 'not there'}")
    if others:
        say(f"  {others} that no step imports")


def _say_step(step: StepChange) -> None:
    if step.kind != "changed":
        say(f"step {step.step} {step.kind}: {step.notebook}, {counted(len(step.cells), 'code cell')}")
        return
    say(f"code of {step.step}, {step.notebook}")
    say_cells(step.cells)
    for module in step.modules:
        say(f"  module {module.name} {module.kind}")
        _say_lines(module.diff)
    if step.text_cells:
        say(f"  {counted(step.text_cells, 'text cell')} changed")


def say_cells(cells: Iterable[CellChange]) -> None:
    """The change of each cell, with its lines."""
    from runner.report.comparison import cell_place

    for cell in cells:
        first_line = f": {cell.first_line}" if cell.kind == "moved" else ""
        say(f"  cell {cell_place(cell)} {cell.kind}{first_line}")
        _say_lines(cell.diff)


def _say_lines(lines: Iterable[str]) -> None:
    for line in lines:
        say(f"    {line}", colour=COLOURS.get(line[:1]))


def _say_comparison(comparison: RunComparison) -> None:
    from runner.report.comparison import alike, reasons, rows_of, short_names

    rows = list(rows_of(comparison, name=str, value=str, metric=metric_text))
    rows.insert(2, ["note", *(run.note or "–" for run in comparison.runs)])
    print_table(["run", *short_names(comparison)], rows)
    if same := alike(comparison):
        say(same)
    for run, why, names in reasons(comparison):
        say(f"≠ not comparable: {why} ({run}: {', '.join(names)})")
