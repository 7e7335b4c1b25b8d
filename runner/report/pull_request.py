"""A difference or a comparison as Markdown, fit for a pull request.

What comes from notebooks stands in code spans and fences, where nothing in it is a mention, a link or markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from runner.audit.compare import Comparison, RunFacts
from runner.audit.diff import Change, Difference, MetricChange, StepChange
from runner.errors import counted
from runner.escape import code, markdown, terminal
from runner.records import Metric
from runner.report.comparison import (
    alike,
    headline,
    metric_in_words,
    reasons,
    said,
    short_names,
    summary,
    verdict_in_words,
)
from runner.report.files import number

LINES = 60  # of code for each cell or module; the page has all


def pull_request(made: Difference | Comparison) -> str:
    lines = _difference(made) if isinstance(made, Difference) else _comparison(made)
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
        rows = [[code(rule.rule), *(markdown(said or "–") for said in (rule.before, rule.after))] for rule in moved]
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
            [code(one.name), *(code(there) if there else "–" for there in (one.before, one.after))] for one in imported
        ]
        yield from table(["package", "before", "after"], rows)


def _step(step: StepChange) -> Iterator[str]:
    if step.how != "changed":
        yield f"#### Step {code(step.step)} {step.how}: {code(step.notebook)}, {counted(len(step.cells), 'code cell')}"
        yield ""
        return
    yield f"#### {code(step.step)}, {code(step.notebook)}"
    yield ""
    for cell in step.cells:
        where = f"[{cell.after or cell.before}]"
        if cell.before and cell.after and cell.before != cell.after:
            where = f"[{cell.before}] → [{cell.after}]"
        yield f"Cell {where} {cell.how}" + (f": {code(cell.first_line)}" if cell.how == "moved" else "")
        if cell.diff:
            yield from fence(cell.diff)
        yield ""
    for module in step.modules:
        yield f"Module {code(module.name)} {module.how}"
        yield from fence(module.diff)
        yield ""
    if step.text_cells:
        yield f"{counted(step.text_cells, 'text cell')} changed."
        yield ""


def _comparison(comparison: Comparison) -> Iterator[str]:
    rows = [
        ["gate", *(verdict_in_words(run) for run in comparison.runs)],
        ["model", *(_version(run) for run in comparison.runs)],
    ]
    rows += [
        [code(row.name), *(code(said(v)) if there else "–" for v, there in zip(row.values, row.there, strict=True))]
        for row in comparison.parameters
    ]
    rows += [
        [
            code(row.name),
            *(
                _metric(metric) + (" ≠" if why else "")
                for metric, why in zip(row.values, row.not_comparable, strict=True)
            ),
        ]
        for row in comparison.metrics
    ]
    yield from table(["", *(code(name) for name in short_names(comparison))], rows)
    yield from filter(None, [alike(comparison)])
    for run, why, names in reasons(comparison):
        yield ""
        yield f"≠ not comparable: {code(why)}, in {code(run)}: {', '.join(map(code, names))}."


def _metric_row(metric: MetricChange) -> list[str]:
    known = metric.difference is not None and not metric.not_comparable
    difference = f"{metric.difference:+.4g}" if known else "–"
    return [
        code(metric.name),
        _metric(metric.before),
        _metric(metric.after),
        difference,
        markdown(metric_in_words(metric)),
    ]


def _change_row(change: Change) -> list[str]:
    return [
        code(change.name),
        "–" if change.how == "added" else code(said(change.before)),
        "–" if change.how == "removed" else code(said(change.after)),
    ]


def _metric(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    interval = "" if metric.low is None else f" ({number(metric.low)} to {number(metric.high)})"
    return f"{number(metric.value)}{interval}"


def _version(run: RunFacts) -> str:
    return f"{code(run.model_version.label)} {run.model_version.status}" if run.model_version else "–"
