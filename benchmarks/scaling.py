"""How seconds and memory grow: with rows, cells, runs in the store and keys of a mapped step, beside other tools.

    make .venv-peers/.ready
    python -m benchmarks.scaling [--quick] [--rounds 3] [--most 10000000]

Each point is a fresh folder and a whole process, rounds interleaved, medians; memory is PSS of all processes together.
A way that has taken longer than LIMIT_S for a size is not asked for the next one. Writes docs/scaling.svg and the table in
docs/performance.md; --quick measures small sizes once and writes neither. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import many_runs, overhead
from benchmarks.large import draw, measured
from benchmarks.measuring import machine, table, write_between
from benchmarks.paths import ROOT, code_cell, copy_project, notebook, papermill_api, plain_script, runner
from benchmarks.peers import PEERS, dvc, dvc_keys, ploomber_engine

PAGE, FIGURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "scaling.svg"
BEGIN, END = "<!-- written by benchmarks.scaling -->\n", "<!-- end of scaling -->\n"
PICTURE = f"![Seconds and peak memory over rows, seconds over cells, runs and keys, on log axes]({FIGURE.name})"
LIMIT_S, ONCE_S = 30.0, 20.0  # a way goes no further; a point is measured once
OURS, PAPERMILL, ENGINE, DVC, PLAIN = "runner run", "papermill's API", "ploomber-engine", "dvc repro", "plain script"
SHOWN = {OURS: ("#0072B2", "o"), PAPERMILL: ("#D55E00", "s"), ENGINE: ("#009E73", "^"), DVC: ("#E69F00", "X"), PLAIN: ("#666666", "D"),
         "runner run, nothing changed": ("#0072B2", "v"), "runner runs": ("#CC79A7", "P")}  # fmt: skip
ROUNDS = 30  # trees that are learned from the rows
KEYED = """
name = "keyed"
[steps.only]
notebook = "nb.ipynb"
map = {{ key = {keys} }}
"""
LOOP = "\nfor key in range({keys}): {call}('nb.ipynb', f'out-{{key}}.ipynb', parameters={{'key': key}}, {more})\n"
Way = Callable[[Path, int], tuple[list[str], Path]]  # (a folder to be made, a size) -> a command and its folder


def of_rows(command: Callable[[Path], list[str]]) -> Way:
    """The churn notebooks on a drawn table, which is drawn once."""

    def way(folder: Path, rows: int) -> tuple[list[str], Path]:
        source = Path(tempfile.gettempdir()) / f"churn-{rows}.csv"
        if not source.exists():
            partial = source.with_suffix(".partial")
            draw(partial, rows)
            partial.replace(source)
        project = copy_project(folder)
        (project / "data" / "churn.csv").unlink()
        (project / "data" / "churn.csv").symlink_to(source)
        file = project / "pipeline.toml"
        file.write_text(file.read_text().replace("seed = 42\n", f"seed = 42\nrounds = {ROUNDS}\n"))
        return command(project), project / "notebooks"

    return way


def of_cells(name: str) -> Way:
    return lambda folder, cells: (overhead.WAYS[name](folder), overhead.trivial(folder, cells))


def of_runs(*arguments: str) -> Way:
    """A store of so many runs, which all rounds share."""

    def way(folder: Path, runs: int) -> tuple[list[str], Path]:
        project = folder.parent / f"store-{runs}"
        if not project.exists():
            project.mkdir(parents=True)
            many_runs.write_project(project, megabytes=1)
            many_runs.run(project, ["run"])
            many_runs.multiply(project, runs)
            # recorded anew, in this environment: what a run does of which nothing has changed
            measured([sys.executable, "-m", "runner", "run"], project)
        return [sys.executable, "-m", "runner", *arguments], project

    return way


def of_keys(command: Callable[[Path, int], list[str]]) -> Way:
    """One notebook with one cell, for each key."""

    def way(folder: Path, keys: int) -> tuple[list[str], Path]:
        folder.mkdir(parents=True)
        cells = [code_cell("p", "key: int = 0", "parameters"), code_cell("c", "x = key + 1")]
        (folder / "nb.ipynb").write_text(notebook(cells, "python3"))
        (folder / "pipeline.toml").write_text(KEYED.format(keys=list(range(keys))))
        return command(folder, keys), folder

    return way


def _papermill_loop(_: Path, keys: int) -> list[str]:
    more = "kernel_name='python3', progress_bar=False"
    return [
        sys.executable,
        "-c",
        "import papermill" + LOOP.format(keys=keys, call="papermill.execute_notebook", more=more),
    ]


def _engine_loop(_: Path, keys: int) -> list[str]:
    (packages,) = PEERS.glob("lib/python*/site-packages")
    before = f"import sys; sys.path.append({str(packages)!r}); from ploomber_engine import execute_notebook"
    return [sys.executable, "-c", before + LOOP.format(keys=keys, call="execute_notebook", more="progress_bar=False")]


@dataclass(frozen=True)
class Curve:
    """Ways to do one thing, and how much of it."""

    of: str
    sizes: Sequence[int]
    quick: Sequence[int]
    ways: Mapping[str, Way]
    memory: bool = False


CURVES = (
    Curve(
        "rows",
        (10_000, 100_000, 1_000_000, 10_000_000),
        (10_000, 50_000),
        {
            OURS: of_rows(runner),
            PAPERMILL: of_rows(papermill_api),
            ENGINE: of_rows(ploomber_engine),
            DVC: of_rows(dvc),
            PLAIN: of_rows(plain_script),
        },
        memory=True,
    ),
    Curve(
        "cells",
        (1, 10, 100, 1_000),
        (1, 30),
        {OURS: of_cells(overhead.OURS), PAPERMILL: of_cells("papermill's API"), ENGINE: of_cells("ploomber-engine")},
    ),
    Curve(
        "runs in the store",
        (10, 100, 1_000, 10_000),
        (10, 100),
        {"runner run, nothing changed": of_runs("run"), "runner runs": of_runs("runs")},
    ),
    Curve(
        "keys",
        (1, 10, 100, 1_000),
        (1, 5),
        {
            OURS: of_keys(lambda *_: [sys.executable, "-m", "runner", "run", "-j", str(os.cpu_count() or 1)]),
            PAPERMILL: of_keys(_papermill_loop),
            ENGINE: of_keys(_engine_loop),
            DVC: of_keys(dvc_keys),
        },
    ),
)


@dataclass
class Point:
    """What one way took for one size, in each round."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


Points = dict[tuple[str, int], Point]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round; writes no page")
    parser.add_argument("--rounds", type=int, default=3, help=f"of points that take less than {ONCE_S:g} s")
    parser.add_argument("--only", choices=[curve.of for curve in CURVES], help="one curve; writes no page")
    parser.add_argument("--most", type=int, default=10**7, help="sizes up to this one (10,000,000 rows take 1 GB)")
    options = parser.parse_args()
    if not PEERS.exists():
        raise SystemExit("The other tools are missing: make .venv-peers/.ready")
    found: dict[str, Points] = {}
    for curve in CURVES:
        if options.only in (None, curve.of):
            sizes = [size for size in (curve.quick if options.quick else curve.sizes) if size <= options.most]
            with tempfile.TemporaryDirectory(prefix="scaling-") as place:
                found[curve.of] = points(curve, sizes, Path(place), 1 if options.quick else options.rounds)
            print("\n".join(rows_of(curve, found[curve.of])), end="\n\n", flush=True)
    if options.quick or options.only:
        figure(found, target := Path(tempfile.gettempdir()) / FIGURE.name)
        print(target)
        return
    figure(found, FIGURE)
    parts = ["\n".join(rows_of(curve, found[curve.of])) for curve in CURVES]
    write_between(PAGE, BEGIN, END, "\n\n".join([PICTURE, machine(), *parts]))


def points(curve: Curve, sizes: Sequence[int], place: Path, rounds: int) -> Points:
    found: Points = {}
    for at, size in enumerate(sizes):
        for round_ in range(rounds):
            for name, way in curve.ways.items():
                before = found.get((name, sizes[at - 1])) if at else Point()
                point = found.get((name, size), Point())
                too_long = before is None or statistics.median(before.seconds or [0.0]) > LIMIT_S
                if too_long or any(seconds > ONCE_S for seconds in point.seconds):
                    continue
                folder = place / f"{size}-{round_}-{len(found)}-{list(curve.ways).index(name)}"
                command, cwd = way(folder, size)
                wall, _, peak, _ = measured(command, cwd)
                shutil.rmtree(folder, ignore_errors=True)
                point.seconds.append(wall)
                point.peak_mb.append(peak)
                found[name, size] = point
                print(f"{curve.of} {size:,}: {name} {wall:.2f} s, {peak:.0f} MB", file=sys.stderr, flush=True)
    return found


def rows_of(curve: Curve, found: Points) -> list[str]:
    """The curve as a table: a row for each way, seconds (and MB) for each size."""
    sizes = sorted({size for _, size in found})

    def cell(name: str, size: int) -> str:
        point = found.get((name, size))
        if point is None:
            return "–"
        mb = f", {statistics.median(point.peak_mb):,.0f} MB" if curve.memory else ""
        return f"{statistics.median(point.seconds):.2f} s{mb}"

    head = [curve.of, *(f"{size:,}" for size in sizes)]
    return table(head, [[f"`{name}`" if "runner" in name else name, *(cell(name, size) for size in sizes)] for name in curve.ways])  # fmt: skip


def figure(found: Mapping[str, Points], target: Path) -> None:
    """All curves on log axes, peak memory over rows as one more."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    curves = [curve for curve in CURVES if curve.of in found]
    panels = [(curve, what) for curve in curves for what in ("seconds", "peak_mb")[: 1 + curve.memory]]
    with mpl.rc_context({"svg.hashsalt": "scaling", "font.size": 9, "svg.fonttype": "path"}):
        shown, all_axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
        places, handles = list(all_axes.flat), {}
        for (curve, what), axes in zip(panels, places, strict=False):
            for name in curve.ways:
                sizes = sorted(size for other, size in found[curve.of] if other == name)
                values = [statistics.median(getattr(found[curve.of][name, size], what)) for size in sizes]
                colour, marker = SHOWN[name]
                (handles[name],) = axes.loglog(sizes, values, marker=marker, color=colour, markersize=4, label=name)
            axes.set(xlabel=curve.of, ylabel="seconds" if what == "seconds" else "peak memory, MB")
            axes.set(
                ylim=(10 ** math.floor(math.log10(axes.get_ylim()[0])), 10 ** math.ceil(math.log10(axes.get_ylim()[1])))
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value / 1e6:g} M")
                axis.set_minor_formatter(NullFormatter())
            axes.grid(which="major", color="#8b949e", linewidth=0.4, alpha=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in places[len(panels) :]:
            axes.axis("off")
        places[-1].legend(handles.values(), handles, loc="center", frameon=False)
        shown.savefig(target, metadata={"Date": None})
        plt.close(shown)


if __name__ == "__main__":
    main()
