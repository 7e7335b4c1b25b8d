"""A difference or a comparison as Markdown, fit for a pull request.

What comes from notebooks stands in code spans and fences, where nothing in it is a mention, a link or markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from runner.audit.compare import Comparison
from runner.audit.diff import Change, Difference, MetricChange, StepChange
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


def pull_request(result: Difference | Comparison) -> str:
    lines = _difference(result) if isinstance(result, Difference) else _comparison(result)
    return "\n".join(lines) + "\n"


def fence(lines: Sequence[str], *, language: str = "diff") -> Iterator[str]:
    """The lines as a block, cut after LINES."""
    lines = [terminal(line) for line in lines]
    language = language if re.fullmatch(r"[A-Za-z0-9+#._-]{1,40}", language) else "text"
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    ticks = "`" * max(3, longest + 1)
    yield f"{ticks}{language}"
    yield from lines[:LINES]
    yield ticks
    if len(lines) > LINES:
        yield f"and {counted(len(lines) - LINES, 'more line')}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"|{' --- |' * len(headers)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _difference(difference: Difference) -> Iterator[str]:
    yield f"### {code(difference.before.name)} → {code(difference.after.name)}"
    yield ""
    if difference.after.run:
        yield f"**{markdown(headline(None, difference))}**"
        yield ""
    yield summary(difference)
    yield ""
    moved = [rule for rule in difference.rules if rule.before != rule.after]
    if moved:
        rows = [[code(rule.rule), markdown(rule.before or "–"), markdown(rule.after or "–")] for rule in moved]
        yield from table(["rule", "before", "after"], rows)
    changed = [metric for metric in difference.metrics if metric.direction != "same"]
    if changed:
        yield from table(["metric", "before", "after", "difference", ""], map(_metric_row, changed))
    for title, changes in (
        ("parameter", difference.parameters),
        ("key of the pipeline", difference.pipeline),
        ("environment", difference.environment),
    ):
        if changes:
            yield from table([title, "before", "after"], map(_change_row, changes))
    yield from _data(difference)
    for step in difference.steps:
        yield from _step(step)


def _data(difference: Difference) -> Iterator[str]:
    outside = [data for data in difference.data if data.outside]
    if outside:
        rows = [
            [
                code(data.name),
                code(data.source_after or data.source_before),
                *(code(sha256[:12]) if sha256 else "absent" for sha256 in (data.before, data.after)),
            ]
            for data in outside
        ]
        yield from table(["data", "from", "before", "after"], rows)
    imported = [package for package in difference.packages if package.imported]
    if imported:
        rows = [
            [code(package.name), *(code(version) if version else "–" for version in (package.before, package.after))]
            for package in imported
        ]
        yield from table(["package", "before", "after"], rows)


def _step(step: StepChange) -> Iterator[str]:
    if step.kind != "changed":
        yield f"#### Step {code(step.step)} {step.kind}: {code(step.notebook)}, {counted(len(step.cells), 'code cell')}"
        yield ""
        return
    yield f"#### {code(step.step)}, {code(step.notebook)}"
    yield ""
    for cell in step.cells:
        yield f"Cell {cell_place(cell)} {cell.kind}" + (f": {code(cell.first_line)}" if cell.kind == "moved" else "")
        if cell.diff:
            yield from fence(cell.diff)
        yield ""
    for module in step.modules:
        yield f"Module {code(module.name)} {module.kind}"
        yield from fence(module.diff)
        yield ""
    if step.text_cells:
        yield f"{counted(step.text_cells, 'text cell')} changed."
        yield ""


def _comparison(comparison: Comparison) -> Iterator[str]:
    rows = rows_of(comparison, name=code, value=code, metric=metric_text)
    yield from table(["", *(code(name) for name in short_names(comparison))], rows)
    yield from filter(None, [alike(comparison)])
    for run, why, names in reasons(comparison):
        yield ""
        yield f"≠ not comparable: {code(why)}, in {code(run)}: {', '.join(map(code, names))}."


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
