"""A difference or a comparison as Markdown, fit for a pull request.

What comes from notebooks stands in code spans and fences, where nothing in it is a mention, a link or markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from runner.audit.compare import RunComparison
from runner.audit.diff import Change, DataChange, Difference, MetricChange, StepChange
from runner.errors import counted
from runner.escape import code, markdown, terminal
from runner.report.comparison import (
    alike,
    cell_place,
    headline,
    metric_in_words,
    metric_text,
    reasons,
    rows_of,
    short_names,
    summary,
    value_text,
)

LINES = 60  # of code for each cell or module; the page has all


def pull_request(result: Difference | RunComparison) -> str:
    blocks = _difference(result) if isinstance(result, Difference) else _comparison(result)
    return "\n\n".join(blocks) + "\n"


def fence(lines: Sequence[str], *, language: str = "diff") -> str:
    """The lines as a block, cut after LINES."""
    lines = [terminal(line) for line in lines]
    language = language if re.fullmatch(r"[A-Za-z0-9+#._-]{1,40}", language) else "text"
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    ticks = "`" * max(3, longest + 1)
    more = [f"and {counted(len(lines) - LINES, 'more line')}"] if len(lines) > LINES else []
    return "\n".join([f"{ticks}{language}", *lines[:LINES], ticks, *more])


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (headers, *rows)]
    return "\n".join([lines[0], f"|{' --- |' * len(headers)}", *lines[1:]])


def _difference(difference: Difference) -> Iterator[str]:
    yield f"### {code(difference.before.name)} → {code(difference.after.name)}"
    if difference.after.run:
        yield f"**{markdown(headline(None, difference))}**"
    yield summary(difference)
    rules = [rule for rule in difference.rules if rule.before != rule.after]
    changed = [metric for metric in difference.metrics if metric.direction != "same"]
    imported = [package for package in difference.packages if package.imported]
    tables = (
        (
            ["rule", "before", "after"],
            [[code(rule.rule), markdown(rule.before or "–"), markdown(rule.after or "–")] for rule in rules],
        ),
        (["metric", "before", "after", "difference", ""], [_metric_row(metric) for metric in changed]),
        (["parameter", "before", "after"], [_change_row(change) for change in difference.parameters]),
        (["key of the pipeline", "before", "after"], [_change_row(change) for change in difference.pipeline]),
        (["environment", "before", "after"], [_change_row(change) for change in difference.environment]),
        (["data", "from", "before", "after"], [_data_row(data) for data in difference.data if data.outside]),
        (
            ["package", "before", "after"],
            [
                [
                    code(package.name),
                    *(code(version) if version else "–" for version in (package.before, package.after)),
                ]
                for package in imported
            ],
        ),
    )
    for headers, rows in tables:
        if rows:
            yield table(headers, rows)
    for step in difference.steps:
        yield from _step(step)


def _step(step: StepChange) -> Iterator[str]:
    if step.kind != "changed":
        yield f"#### Step {code(step.step)} {step.kind}: {code(step.notebook)}, {counted(len(step.cells), 'code cell')}"
        return
    yield f"#### {code(step.step)}, {code(step.notebook)}"
    for cell in step.cells:
        place = f"Cell {cell_place(cell)} {cell.kind}" + (f": {code(cell.first_line)}" if cell.kind == "moved" else "")
        yield f"{place}\n{fence(cell.diff)}" if cell.diff else place
    for module in step.modules:
        yield f"Module {code(module.name)} {module.kind}\n{fence(module.diff)}"
    if step.text_cells:
        yield f"{counted(step.text_cells, 'text cell')} changed."


def _comparison(comparison: RunComparison) -> Iterator[str]:
    rows = rows_of(comparison, name=code, value=code, metric=metric_text)
    yield table(["", *(code(name) for name in short_names(comparison))], rows)
    yield from filter(None, [alike(comparison)])
    for run, why, names in reasons(comparison):
        yield f"≠ not comparable: {code(why)}, in {code(run)}: {', '.join(map(code, names))}."


def _data_row(data: DataChange) -> list[str]:
    hashes = [code(sha256[:12]) if sha256 else "absent" for sha256 in (data.before, data.after)]
    return [code(data.name), code(data.source_after or data.source_before), *hashes]


def _metric_row(metric: MetricChange) -> list[str]:
    known = metric.difference is not None and not metric.not_comparable
    difference = f"{metric.difference:+.4g}" if known else "–"
    values = [metric_text(value) if value else "–" for value in (metric.before, metric.after)]
    return [code(metric.name), *values, difference, markdown(metric_in_words(metric))]


def _change_row(change: Change) -> list[str]:
    return [
        code(change.name),
        "–" if change.kind == "added" else code(value_text(change.before)),
        "–" if change.kind == "removed" else code(value_text(change.after)),
    ]
