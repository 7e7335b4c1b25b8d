"""The page of a sweep or a search: the best first, then all combinations as a plot and as a table."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from runner.errors import counted
from runner.escape import visible
from runner.records import Metric
from runner.report.comparison import COLOURS
from runner.report.files import number, page, reason, svg_address, write_page
from runner.run.search import FACTS, SWEEPS, write_record
from runner.run.sweep import Combination, State, SweepResult

PAGE = "report.html"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def write_sweep(swept: SweepResult, runs: Path, *, drawn: tuple[str, str] | None) -> Path:
    """Write report.html and sweep.json into the sweep's folder, that of a search or runs/sweeps/<first run>; the page's
    path. `drawn` is its plot."""
    folder = swept.folder or min((tried.run for tried in swept.tried if tried.run), default="none")
    content = page(
        "sweep.html.j2",
        swept=swept,
        best=swept.best,
        counts=counts(swept),
        plot=drawn,
        others=sorted({name for tried in swept.tried for name in tried.metrics} - {swept.metric}),
    )
    path = write_page(runs / SWEEPS / folder / PAGE, content)
    write_record(path.with_name(FACTS), swept)
    return path


def counts(swept: SweepResult) -> str:
    """Of a search how far it is: "12 of 50 trials: 8 complete, 3 pruned, 1 running"; "" of another sweep."""
    if swept.search is None:
        return ""
    states = {state: swept.count(state) for state in get_args(State)}
    words = ", ".join(f"{count:,} {state}" for state, count in states.items() if count)
    return f"{swept.ended:,} of {counted(swept.total, 'trial')}" + (f": {words}" if words else "")


def plot(swept: SweepResult) -> tuple[str, str] | None:
    """(address for `img`, the same in words) of the metric over the first swept value, a line for each other one.

    ("", why) where it cannot be drawn.
    """
    try:
        return _plot(swept)
    except Exception as error:  # the runs are done; their page must be written also without its plot
        return "", f"The plot cannot be drawn: {reason(error)}"


def _plot(swept: SweepResult) -> tuple[str, str] | None:
    points = [(tried, metric) for tried in swept.tried if (metric := swept.value(tried)) is not None]
    if len(points) < 2:
        return None
    if swept.search is not None:
        return _search_plot(swept, points)
    from matplotlib.figure import Figure  # half a second to import

    names = list(swept.tried[0].values)
    # the name with the most values goes along the axis
    counts = {name: len({tried.values[name] for tried, _ in points}) for name in names}
    along = max(names, key=lambda name: counts[name])
    ticks = sorted({tried.values[along] for tried, _ in points}, key=_as_number)
    lines: dict[str, list[tuple[int, Any]]] = {}
    for tried, metric in points:
        label = ", ".join(f"{name} {visible(tried.values[name])}" for name in names if name != along)
        lines.setdefault(label, []).append((ticks.index(tried.values[along]), metric))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(7.2, 3.6), facecolor="none")
        axes = _axes(figure)
        for place, (label, line) in enumerate(sorted(lines.items())):
            line.sort(key=lambda pair: pair[0])
            colour = COLOURS[place % len(COLOURS)]
            shift = (place - (len(lines) - 1) / 2) * min(0.08, 0.5 / max(1, len(lines)))
            xs, ys = [x + shift for x, _ in line], [metric.value for _, metric in line]
            if all(metric.low is not None and metric.high is not None for _, metric in line):
                low = [max(0.0, metric.value - metric.low) for _, metric in line]
                high = [max(0.0, metric.high - metric.value) for _, metric in line]
                axes.errorbar(xs, ys, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.7)
            axes.plot(xs, ys, marker=MARKERS[place % len(MARKERS)], color=colour, linewidth=1.4, label=label)
        axes.set_xticks(range(len(ticks)), labels=list(map(visible, ticks)), parse_math=False)
        axes.set_xlabel(along, parse_math=False)
        axes.set_ylabel(f"{swept.metric} ({swept.better} is better)", parse_math=False)
        if len(lines) > 1:
            beside = (1.01, 1.0)  # never on a line
            legend = axes.legend(
                frameon=False, fontsize=8, ncols=1 + len(lines) // 12, loc="upper left", bbox_to_anchor=beside
            )
            for text in legend.get_texts():
                text.set_parse_math(False)  # a value may have a `$`
        figure.tight_layout()
        address = svg_address(figure)
    best, metric = points[0]
    values = ", ".join(f"{name} {value}" for name, value in best.values.items())
    of_all = f"{swept.metric} of {counted(len(points), 'combination')} over {along}"
    return address, f"{of_all}; the best is {number(metric.value)} with {values}"


def _axes(figure: Any) -> Any:
    """The axes of a plot in the page's own colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.grid(axis="y", color="#8b949e", linewidth=0.4, alpha=0.6)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _search_plot(swept: SweepResult, points: Sequence[tuple[Combination, Metric]]) -> tuple[str, str]:
    """Each trial's value in the order of the trials, with the best so far; what pruned ones reported last."""
    from matplotlib.figure import Figure

    values = dict(sorted((tried.number, metric.value) for tried, metric in points))
    best = list(itertools.accumulate(values.values(), max if swept.better == "higher" else min))
    pruned = {
        tried.number: tried.reported[max(tried.reported)]
        for tried in swept.tried
        if tried.state == "pruned" and tried.reported
    }
    figure = Figure(figsize=(7.2, 3.6), facecolor="none")
    axes = _axes(figure)
    axes.plot(list(values), best, drawstyle="steps-post", color=COLOURS[0], linewidth=1.4, label="best so far")
    axes.plot(list(values), list(values.values()), "o", color=COLOURS[0], markersize=4, label="complete")
    if pruned:
        last = list(pruned.values())
        axes.plot(list(pruned), last, "x", color=COLOURS[1], markersize=5, label="pruned: what it reported last")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{swept.metric} ({swept.better} is better)", parse_math=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    of_all = f"{swept.metric} of {counted(len(values), 'complete trial')}"
    more = f" and the last reports of {counted(len(pruned), 'pruned one')}" if pruned else ""
    return svg_address(figure), f"{of_all}{more}, in their order; the best is {number(best[-1])}"


def _as_number(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
