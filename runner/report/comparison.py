"""The page that sets runs side by side: metrics with intervals, what differs, and the notebooks' own figures."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.audit.compare import Comparison, MetricRow, RunFacts
from runner.audit.diff import Difference, MetricChange
from runner.content import atomic_write
from runner.errors import counted
from runner.escape import visible
from runner.notebook.recorded import Figure, read_figures
from runner.records import Metric, Value
from runner.report import clean
from runner.report.files import environment, number, reason, style
from runner.report.page import WORDS

# Okabe and Ito, Color Universal Design, 2008; without the yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PANELS = 8
WIDTH_IN, TITLE_IN, ROW_IN, TICKS_IN, LETTER_IN = 4.6, 0.32, 0.27, 0.3, 0.075


@dataclass(frozen=True)
class Panel:
    """One metric as a plot: an address for `img`, and the same in words; "" and why it cannot be drawn."""

    address: str
    alt: str


@dataclass(frozen=True)
class Pair:
    """One named figure of a step on both sides; an address is None where that side has none."""

    step: str
    name: str
    caption: str
    before: str | None
    after: str | None
    alt_before: str
    alt_after: str


def write_comparison(
    path: Path, *, comparison: Comparison | None, difference: Difference | None, runs: Path | None
) -> Path:
    """Write the page of several runs, or of a difference, to `path`, and return it. `runs` is the folder of the runs."""
    labels = short_names(comparison) if comparison else []
    pairs, same = _figures(comparison, runs) if comparison and difference and runs else ([], [])
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            style=style(),
            policy=clean.POLICY,
            comparison=comparison,
            difference=difference,
            labels=labels,
            links=_links(path, comparison, runs),
            headline=headline(comparison, difference),
            summary=summary(difference) if difference else "",
            tone=_tone(difference),
            panels=panels(comparison) if comparison else [],
            best=[_best(row) for row in comparison.metrics] if comparison else [],
            reasons=reasons(comparison) if comparison else [],
            pairs=pairs,
            same=same,
            alike=alike,
            said=said,
            words=WORDS,
            verdict_in_words=verdict_in_words,
            metric_in_words=metric_in_words,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page.encode())
    return path


def short_names(comparison: Comparison) -> list[str]:
    """The ends of the runs' ids, or whole ids where these are not enough to tell them apart."""
    names = [facts.run for facts in comparison.runs]
    ends = [name.rpartition("-")[2] for name in names]
    return ends if len(set(ends)) == len(set(names)) else names


def reasons(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """(run, why, metrics) of everything that cannot be held against the first run that has it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in comparison.metrics:
        for label, why in zip(short_names(comparison), row.not_comparable, strict=True):
            if why:
                found.setdefault((label, why), []).append(row.name)
    return [(label, why, names) for (label, why), names in found.items()]


def alike(comparison: Comparison) -> str:
    """How many parameters are the same in all runs, in a sentence; "" where none is."""
    many = comparison.same
    return f"{counted(many, 'parameter')} {'is' if many == 1 else 'are'} the same in all." if many else ""


def said(value: Value) -> str:
    """A value as Python writes it, shortened."""
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"


def summary(difference: Difference) -> str:
    """How much differs, in one line."""
    edited = [step for step in difference.steps if step.how == "changed"]
    counts = [
        (sum(step.how != "changed" for step in difference.steps), "step"),
        (sum(len(step.cells) for step in edited), "code cell"),
        (sum(step.text_cells for step in edited), "text cell"),
        (sum(len(step.modules) for step in edited), "module"),
        (len(difference.parameters), "parameter"),
        (len(difference.pipeline), "other key"),
        (sum(data.outside for data in difference.data), "source"),
        (len(difference.packages), "package"),
        (len(difference.environment), "machine setting"),
    ]
    told = [counted(count, name) for count, name in counts if count]
    return f"Different: {', '.join(told)}." if told else "Nothing differs in code, parameters, data and environment."


def headline(comparison: Comparison | None, difference: Difference | None) -> str:
    """What came of it, first."""
    if difference is None:
        return f"{counted(len(comparison.runs) if comparison else 0, 'run')} side by side"
    if difference.after.run is None or difference.before.run is None:
        return f"{difference.before.name} → {difference.after.name}"
    verdicts = [verdict_in_words(run) for run in (difference.before.run, difference.after.run)]
    gate = f"Gate {verdicts[0]} in both" if verdicts[0] == verdicts[1] else f"Gate {verdicts[0]} → {verdicts[1]}"
    return f"{gate}; {metrics_in_words(difference)}."


def verdict_in_words(run: RunFacts) -> str:
    """What the gate said, or why it said nothing."""
    if run.verdict is not None:
        return WORDS[run.verdict]
    return "no verdict" if run.status == "succeeded" else f"run {run.status}"


def metric_in_words(metric: MetricChange) -> str:
    """Which way it went and how sure that is; "" where nothing can be said."""
    if metric.not_comparable:
        return f"not comparable: {metric.not_comparable}"
    if metric.before is None or metric.after is None:
        return "new" if metric.before is None else "missing"
    word = metric.direction if metric.direction in ("better", "worse") else ""
    return ", ".join(part for part in (word, "intervals overlap" if metric.overlap else "") if part)


def metrics_in_words(difference: Difference) -> str:
    """How many metrics went which way, and how many of these with intervals that overlap."""
    told = []
    for way in ("better", "worse"):
        went = [metric for metric in difference.metrics if metric.direction == way]
        near = sum(bool(metric.overlap) for metric in went)
        if went:
            told.append(f"{len(went)} {way}" + (f" ({near} with overlapping intervals)" if near else ""))
    apart = sum(bool(metric.not_comparable) for metric in difference.metrics)
    if apart:
        told.append(f"{apart} not comparable")
    return f"metrics: {', '.join(told)}" if told else "no metric is better or worse"


def panels(comparison: Comparison) -> list[Panel]:
    """A small plot for each of the metrics that say most: judged ones first, then those with an interval."""
    rows = [row for row in comparison.metrics if _tells(row)]
    rows.sort(key=lambda row: (not row.in_gate, all(value is None or value.low is None for value in row.values)))
    labels = short_names(comparison)
    if len(comparison.parameters) == 1:
        only = comparison.parameters[0]
        name = only.name.partition(".")[2]
        labels = [f"{label}  {name}={said(v)}"[:34] for label, v in zip(labels, only.values, strict=True)]
    return [_panel_or_why(row, list(map(visible, labels))) for row in rows[:PANELS]]


def _tells(row: MetricRow) -> bool:
    """Whether a plot of it shows more than the same number again."""
    values = {value.value for value in row.values if value is not None}
    return len(values) > 1 or (row.in_gate and sum(value is not None for value in row.values) > 1)


def _panel_or_why(row: MetricRow, labels: Sequence[str]) -> Panel:
    try:
        return _panel(row, labels)
    except Exception as error:  # what a notebook records as a number need not fit an axis
        return Panel("", f"{row.name} cannot be drawn: {reason(error)}.")


def _panel(row: MetricRow, labels: Sequence[str]) -> Panel:
    import matplotlib as mpl  # takes 0.3 s
    from matplotlib.figure import Figure as Canvas

    way = f", {row.better} is better" if row.better else ""
    height = TITLE_IN + ROW_IN * len(labels) + TICKS_IN
    # a notebook may name a metric anything: names are never read as formulas, and need not have a glyph here
    with mpl.rc_context({"svg.hashsalt": "comparison", "font.size": 9}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Canvas(figsize=(WIDTH_IN, height), facecolor="none")
        left = (0.15 + LETTER_IN * max(map(len, labels))) / WIDTH_IN  # finding it out takes as long as drawing
        figure.subplots_adjust(left=left, right=0.97, top=1 - TITLE_IN / height, bottom=TICKS_IN / height)
        axes = figure.subplots()
        for place, (value, why) in enumerate(zip(row.values, row.not_comparable, strict=True)):
            if value is not None:
                _point(axes, place, value, comparable=not why)
        axes.set_title(visible(f"{row.name}{way}"), loc="left", x=0, fontsize=10, parse_math=False)
        axes.set_yticks(range(len(labels)), labels=labels, parse_math=False)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", color="#d0d7de", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        made = io.BytesIO()
        figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None})
    address = f"data:image/svg+xml;base64,{base64.b64encode(made.getvalue()).decode()}"
    return Panel(address, f"{row.name}{way}: {_in_words(row, labels)}")


def _point(axes: Any, place: int, value: Metric, *, comparable: bool) -> None:
    """The value with its interval as a bar; hollow where it cannot be compared."""
    colour = COLOURS[place % len(COLOURS)]
    reach = None if value.low is None or value.high is None else [[value.value - value.low], [value.high - value.value]]
    if reach is not None:
        reach = [[max(0.0, end) for end in side] for side in reach]  # an interval need not hold its value
    axes.errorbar(
        [value.value],
        [place],
        xerr=reach,
        fmt="o",
        markersize=6,
        color=colour,
        markerfacecolor=colour if comparable else "white",
        capsize=3,
        linewidth=1.6,
        linestyle="-" if comparable else ":",
    )


def _in_words(row: MetricRow, labels: Sequence[str]) -> str:
    told = []
    for label, value, why in zip(labels, row.values, row.not_comparable, strict=True):
        text = "not recorded" if value is None else number(value.value)
        if value is not None and value.low is not None:
            text += f" ({number(value.low)} to {number(value.high)})"
        told.append(f"{label} {text}" + (f", not comparable: {why}" if why else ""))
    return "; ".join(told)


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


def _links(path: Path, comparison: Comparison | None, runs: Path | None) -> list[str]:
    """Each run's report, from where the page is; "" where there is none."""
    found = []
    for facts in comparison.runs if comparison else []:
        report = runs / facts.run / "report.html" if runs else None
        there = report is not None and report.exists()
        found.append(
            Path(os.path.relpath(report.absolute(), path.absolute().parent)).as_posix() if report and there else ""
        )
    return found


def _figures(comparison: Comparison, runs: Path) -> tuple[list[Pair], list[str]]:
    """The named figures that differ, in pairs; and the names of those that are the same bytes on both sides."""
    sides = [_figures_of(runs / facts.run / "steps") for facts in comparison.runs]
    pairs, same = [], []
    for key in dict.fromkeys([*sides[1], *sides[0]]):
        old, new = sides[0].get(key), sides[1].get(key)
        shown = new or old
        assert shown is not None
        step, name, _ = key
        if old is not None and new is not None and (old.mime, old.data) == (new.mime, new.data):
            same.append(f"{step}: {name}")
            continue
        pairs.append(
            Pair(
                step=step,
                name=name,
                caption=shown.caption,
                before=clean.image(old.mime, old.data) if old else None,
                after=clean.image(new.mime, new.data) if new else None,
                alt_before=old.alt if old else "",
                alt_after=new.alt if new else "",
            )
        )
    return pairs, same


def _figures_of(steps: Path) -> dict[tuple[str, str, int], Figure]:
    """(step, name, how many of that name before it) -> figure, in the notebooks' order."""
    found: dict[tuple[str, str, int], Figure] = {}
    for folder in sorted(steps.glob("*/"), key=lambda folder: folder.name):
        with contextlib.suppress(
            Exception
        ):  # a step that never ran has none; a notebook holds what its cells put there
            for figure in read_figures(folder / "executed.ipynb")[0]:
                count = sum(key[:2] == (folder.name, figure.name) for key in found)
                found[folder.name, figure.name, count] = figure
    return found
