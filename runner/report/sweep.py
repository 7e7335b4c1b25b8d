"""The page of a sweep: the winner first, then all combinations as a plot and as a table."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec

from runner.content import atomic_write
from runner.errors import counted
from runner.escape import visible
from runner.report.comparison import COLOURS
from runner.report.files import number, page, reason, svg_address, write_page
from runner.run.sweep import SweepResult

SWEEPS, PAGE, FACTS = "sweeps", "report.html", "sweep.json"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def write_sweep(swept: SweepResult, runs: Path, *, drawn: tuple[str, str] | None) -> Path:
    """Write runs/sweeps/<first run>/report.html and sweep.json beside it; the page's path. `drawn` is its plot."""
    first_run = min((tried.run for tried in swept.tried if tried.run), default="none")
    content = page(
        "sweep.html.j2",
        swept=swept,
        names=list(swept.tried[0].values),
        best=swept.tried[0] if swept.value(swept.tried[0]) else None,
        plot=drawn,
        others=sorted({name for tried in swept.tried for name in tried.metrics} - {swept.metric}),
    )
    path = write_page(runs / SWEEPS / first_run / PAGE, content)
    facts = {
        "step": swept.step,
        "metric": swept.metric,
        "better": swept.better,
        "winner": swept.winner.run if swept.winner else None,
        "tried": [{"values": dict(tried.values), "run": tried.run, "why": tried.why} for tried in swept.tried],
    }
    atomic_write(path.with_name(FACTS), msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    return path


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
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # half a second to import
    from matplotlib.figure import Figure

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
        FigureCanvasSVG(figure)
        axes = figure.subplots()
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
        axes.grid(axis="y", color="#8b949e", linewidth=0.4, alpha=0.6)
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
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


def _as_number(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
