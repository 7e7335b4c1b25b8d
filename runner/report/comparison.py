"""The page that sets runs side by side: metrics with intervals, what differs, and the notebooks' own figures."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.audit.cells import CellChange
from runner.audit.compare import MetricRow, RunComparison, RunFacts
from runner.audit.diff import Difference, MetricChange
from runner.errors import counted
from runner.escape import visible
from runner.notebook.recorded import Figure, read_figures
from runner.records import Metric, Value
from runner.report import clean
from runner.report.axis import axis
from runner.report.files import environment, number, page, reason, write_page
from runner.report.page import WORDS

# Okabe and Ito, Color Universal Design, 2008; without the yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PANELS = 8
WIDTH, TOP, ROW, LETTER = 440, 28, 24, 6.6  # of a panel, in pixels


@dataclass(frozen=True)
class Panel:
    """One metric as a plot: an address for `img`, and the same in words; "" and why it cannot be drawn."""

    address: str
    alt: str


@dataclass(frozen=True)
class Pair:
    """One named figure of a step on both sides; None where that side has none."""

    step: str
    name: str
    before: Figure | None
    after: Figure | None


def write_comparison(
    path: Path, *, comparison: RunComparison | None, difference: Difference | None, runs: Path
) -> Path:
    """Write the page of several runs, or of a difference; its path. `runs` is the folder of the runs."""
    links = _links(path, comparison, runs)
    return write_page(path, comparison_page(comparison, difference, runs=runs, links=links))


def comparison_page(
    comparison: RunComparison | None, difference: Difference | None, *, runs: Path, links: Sequence[str | None]
) -> bytes:
    """As `write_comparison`, written nowhere; `links` has the address of each run's report, None for no link."""
    labels = short_names(comparison) if comparison else []
    pairs, same = _figures(comparison, runs) if comparison and difference else ([], [])
    return page(
        "comparison.html.j2",
        comparison=comparison,
        difference=difference,
        labels=labels,
        links=links,
        headline=headline(comparison, difference),
        summary=summary(difference) if difference else "",
        tone=_tone(difference),
        panels=panels(comparison) if comparison else [],
        best=[_best(row) for row in comparison.metrics] if comparison else [],
        reasons=reasons(comparison) if comparison else [],
        pairs=pairs,
        same=same,
        image=clean.image,
        alike=alike,
        value_text=value_text,
        words=WORDS,
        verdict_in_words=verdict_in_words,
        metric_in_words=metric_in_words,
    )


def short_names(comparison: RunComparison) -> list[str]:
    """The ends of the runs' ids, or whole ids where these are not enough to tell them apart."""
    names = [facts.run for facts in comparison.runs]
    ends = [name.rpartition("-")[2] for name in names]
    return ends if len(set(ends)) == len(set(names)) else names


def reasons(comparison: RunComparison) -> list[tuple[str, str, list[str]]]:
    """(run, why, metrics) of everything that cannot be compared with the first run that has it."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for row in comparison.metrics:
        for label, why in zip(short_names(comparison), row.not_comparable, strict=True):
            if why:
                metrics.setdefault((label, why), []).append(row.name)
    return [(label, why, names) for (label, why), names in metrics.items()]


def alike(comparison: RunComparison) -> str:
    """How many parameters are the same in all runs, in a sentence; "" where none is."""
    many = comparison.same
    return f"{counted(many, 'parameter')} {'is' if many == 1 else 'are'} the same in all." if many else ""


def rows_of(
    comparison: RunComparison,
    *,
    name: Callable[[str], str],
    value: Callable[[str], str],
    metric: Callable[[Metric], str],
) -> Iterator[list[str]]:
    """The table of a comparison as text: gate, model, parameters and metrics by run. The callables write their part."""
    versions = [run.model_version for run in comparison.runs]
    yield ["gate", *(verdict_in_words(run) for run in comparison.runs)]
    yield ["model", *(f"{name(version.label)} {version.status}" if version else "–" for version in versions)]
    for row in comparison.parameters:
        values = zip(row.values, row.there, strict=True)
        yield [name(row.name), *(value(value_text(item)) if there else "–" for item, there in values)]
    for measured in comparison.metrics:
        cells = zip(measured.values, measured.not_comparable, strict=True)
        yield [
            name(measured.name),
            *((metric(item) if item else "–") + (" ≠" if why else "") for item, why in cells),
        ]


def cell_place(cell: CellChange) -> str:
    """Where the cell is, `[7]`, or where it was and is."""
    if cell.before and cell.after and cell.before != cell.after:
        return f"[{cell.before}] → [{cell.after}]"
    return f"[{cell.after or cell.before}]"


def value_text(value: Value) -> str:
    """A value as Python writes it, shortened."""
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"


def summary(difference: Difference) -> str:
    """How much differs, in one line."""
    edited = [step for step in difference.steps if step.kind == "changed"]
    counts = [
        (sum(step.kind != "changed" for step in difference.steps), "step"),
        (sum(len(step.cells) for step in edited), "code cell"),
        (sum(step.text_cells for step in edited), "text cell"),
        (sum(len(step.modules) for step in edited), "module"),
        (len(difference.parameters), "parameter"),
        (len(difference.pipeline), "other key"),
        (sum(data.outside for data in difference.data), "source"),
        (len(difference.packages), "package"),
        (len(difference.environment), "machine setting"),
    ]
    parts = [counted(count, name) for count, name in counts if count]
    return f"Different: {', '.join(parts)}." if parts else "Nothing differs in code, parameters, data and environment."


def headline(comparison: RunComparison | None, difference: Difference | None) -> str:
    """The result in one line."""
    if difference is None:
        return f"{counted(len(comparison.runs) if comparison else 0, 'run')} side by side"
    if difference.after.run is None or difference.before.run is None:
        return f"{difference.before.name} → {difference.after.name}"
    verdicts = [verdict_in_words(run) for run in (difference.before.run, difference.after.run)]
    gate = f"Gate {verdicts[0]} in both" if verdicts[0] == verdicts[1] else f"Gate {verdicts[0]} → {verdicts[1]}"
    return f"{gate}; {metrics_in_words(difference)}."


def verdict_in_words(run: RunFacts) -> str:
    """The gate's verdict, or why there is none."""
    if run.verdict is not None:
        return WORDS[run.verdict]
    return "no verdict" if run.status == "succeeded" else f"run {run.status}"


def metric_in_words(metric: MetricChange) -> str:
    """Whether it is better or worse, and how sure that is; "" where that is unknown."""
    if metric.not_comparable:
        return f"not comparable: {metric.not_comparable}"
    if metric.before is None or metric.after is None:
        return "new" if metric.before is None else "missing"
    word = metric.direction if metric.direction in ("better", "worse") else ""
    return ", ".join(part for part in (word, "intervals overlap" if metric.overlap else "") if part)


def metrics_in_words(difference: Difference) -> str:
    """How many metrics are better or worse, and how many of these with intervals that overlap."""
    parts = []
    for direction in ("better", "worse"):
        changed = [metric for metric in difference.metrics if metric.direction == direction]
        overlapping = sum(bool(metric.overlap) for metric in changed)
        if changed:
            near = f" ({overlapping} with overlapping intervals)" if overlapping else ""
            parts.append(f"{len(changed)} {direction}{near}")
    if not_comparable := sum(bool(metric.not_comparable) for metric in difference.metrics):
        parts.append(f"{not_comparable} not comparable")
    return f"metrics: {', '.join(parts)}" if parts else "no metric is better or worse"


def panels(comparison: RunComparison) -> list[Panel]:
    """A small plot for each of the first metrics that differ: judged ones first, then those with an interval."""
    rows = [row for row in comparison.metrics if _worth_plotting(row)]
    rows.sort(key=lambda row: (not row.in_gate, all(value is None or value.low is None for value in row.values)))
    labels = short_names(comparison)
    if len(comparison.parameters) == 1:
        only = comparison.parameters[0]
        name = only.name.partition(".")[2]
        labels = [f"{label}  {name}={value_text(v)}"[:34] for label, v in zip(labels, only.values, strict=True)]
    return [_panel_or_why(row, list(map(visible, labels))) for row in rows[:PANELS]]


def _worth_plotting(row: MetricRow) -> bool:
    """Whether a plot of it shows more than the same number again, of something that can be better or worse."""
    values = {value.value for value in row.values if value is not None}
    says = row.better is not None or any(value is not None and value.low is not None for value in row.values)
    return (len(values) > 1 and says) or (row.in_gate and sum(value is not None for value in row.values) > 1)


def _panel_or_why(row: MetricRow, labels: Sequence[str]) -> Panel:
    try:
        return _panel(row, labels)
    except Exception as error:  # a notebook's number may not fit an axis
        return Panel("", f"{row.name} cannot be drawn: {reason(error)}.")


def _panel(row: MetricRow, labels: Sequence[str]) -> Panel:
    better = f", {row.better} is better" if row.better else ""
    ends = [end for value in row.values if value is not None for end in (value.value, value.low, value.high)]
    scale = axis([end for end in ends if end is not None])
    left = 24 + LETTER * max(map(len, labels))
    bottom = TOP + ROW * len(labels)

    def at(value: float | None) -> float | None:
        return None if value is None else round(left + scale.at(value, WIDTH - left - 14), 1)

    rows = [
        {
            "label": label,
            "y": TOP + ROW * place + ROW / 2,
            "colour": COLOURS[place % len(COLOURS)],
            "hollow": bool(why),
            "x": at(value.value) if value else None,
            "low": at(value.low) if value and value.high is not None else None,
            "high": at(value.high) if value else None,
        }
        for place, (label, value, why) in enumerate(zip(labels, row.values, row.not_comparable, strict=True))
    ]
    drawing = environment().get_template("panel.svg.j2").render(
        title=f"{row.name}{better}", ticks=[(at(value), text) for value, text in scale.ticks], rows=rows,
        width=WIDTH, height=bottom + 24, top=TOP, bottom=bottom, left=left,
    )  # fmt: skip
    content = drawing.encode("utf-8", "backslashreplace")
    address = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return Panel(address, f"{row.name}{better}: {_in_words(row, labels)}")


def _in_words(row: MetricRow, labels: Sequence[str]) -> str:
    parts = []
    for label, value, why in zip(labels, row.values, row.not_comparable, strict=True):
        text = "not recorded" if value is None else metric_text(value)
        parts.append(f"{label} {text}" + (f", not comparable: {why}" if why else ""))
    return "; ".join(parts)


def metric_text(metric: Metric) -> str:
    interval = "" if metric.low is None else f" ({number(metric.low)} to {number(metric.high)})"
    return f"{number(metric.value)}{interval}"


def _best(row: MetricRow) -> list[bool]:
    """Which values are the best among the comparable ones; none where all are equal or the direction is not known."""
    usable = [v.value for v, why in zip(row.values, row.not_comparable, strict=True) if v is not None and not why]
    if row.better is None or len(set(usable)) < 2:
        return [False] * len(row.values)
    best = max(usable) if row.better == "higher" else min(usable)
    return [
        v is not None and not why and v.value == best for v, why in zip(row.values, row.not_comparable, strict=True)
    ]


def _tone(difference: Difference | None) -> str:
    if difference is None or difference.after.run is None or difference.before.run is None:
        return "plain"
    before, after = difference.before.run.verdict, difference.after.run.verdict
    if before == after:
        return "plain"
    return {"pass": "good", "fail": "bad", "error": "bad", "inconclusive": "unsure", None: "plain"}[after]


def _links(path: Path, comparison: RunComparison | None, runs: Path) -> list[str]:
    """Each run's report, relative to the page; "" where there is none."""
    reports = [runs.absolute() / facts.run / "report.html" for facts in comparison.runs] if comparison else []
    page_folder = path.absolute().parent
    return [Path(os.path.relpath(report, page_folder)).as_posix() if report.exists() else "" for report in reports]


def _figures(comparison: RunComparison, runs: Path) -> tuple[list[Pair], list[str]]:
    """The named figures that differ, in pairs; and the names of those that are the same bytes on both sides."""
    sides = [_figures_of(runs / facts.run / "steps") for facts in comparison.runs]
    pairs, same = [], []
    for key in dict.fromkeys([*sides[1], *sides[0]]):
        before, after = sides[0].get(key), sides[1].get(key)
        step, name, _ = key
        if before is not None and after is not None and (before.mime, before.data) == (after.mime, after.data):
            same.append(f"{step}: {name}")
        else:
            pairs.append(Pair(step, name, before, after))
    return pairs, same


def _figures_of(steps: Path) -> dict[tuple[str, str, int], Figure]:
    """(step, name, how many of that name before it) -> figure, in the notebooks' order."""
    figures: dict[tuple[str, str, int], Figure] = {}
    for folder in sorted(steps.glob("*/"), key=lambda folder: folder.name):
        with contextlib.suppress(Exception):  # no notebook where a step never ran; and a notebook may hold anything
            for figure in read_figures(folder / "executed.ipynb")[0]:
                count = sum(key[:2] == (folder.name, figure.name) for key in figures)
                figures[folder.name, figure.name, count] = figure
    return figures
