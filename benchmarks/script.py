"""`python -m benchmarks.script`: as fast as a script? A whole run, its cells and a sweep, each beside plain code.

The plain scripts are made from the notebooks' own code cells, with and without drawing their figures. Rounds are
interleaved, each in a fresh folder and every other one backwards; ratios are taken within a round, and what is printed
are their medians. Under eight minutes on two idle cores. Where other processes are at work, only processor time
compares, and OpenMP must not wait by spinning: OMP_WAIT_POLICY=PASSIVE. (Requests: `make bench-serving`.)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import overhead, sweep
from benchmarks.measuring import Sample, machine, measure, median_cpu_s, median_s, paired, table
from benchmarks.paths import copy_project, plain_script, runner

PLAIN, DRAWN = "plain script", "plain script that draws the figures"
RUN = "`runner run`, with report"
IMPORTS = "`import pandas, matplotlib.pyplot`"
ONE, CELLS = "`runner run`, one trivial cell, with report", "`runner run`, 200 trivial cells, with report"
LIMIT, SWEEP = f"import once, fork {sweep.JOBS}, draw the figures", "`runner sweep`, 16 trainings"
Way = Callable[[Path], tuple[list[str], Path]]  # a folder that is not there yet -> the command, and where it runs


def _project(command: Callable[[Path], list[str]]) -> Way:
    def way(folder: Path) -> tuple[list[str], Path]:
        project = copy_project(folder)
        return command(project), project / "notebooks"

    return way


def _trivial(cells: int) -> Way:
    return lambda folder: (overhead.WAYS[overhead.OURS](folder), overhead.trivial(folder, cells))


def _imports(folder: Path) -> tuple[list[str], Path]:
    folder.mkdir()
    return [sys.executable, "-c", "import pandas, matplotlib.pyplot"], folder


WHOLE: dict[str, Way] = {
    PLAIN: _project(plain_script),
    DRAWN: _project(lambda project: plain_script(project, drawn=True)),
    RUN: _project(runner),
    IMPORTS: _imports,
    ONE: _trivial(1),
    CELLS: _trivial(200),
}
SWEEPS: dict[str, Way] = {
    LIMIT: _project(lambda project: sweep.limit(project, drawn=True)),
    SWEEP: _project(sweep.ours),
}
Samples = dict[str, list[Sample]]


@dataclass(frozen=True)
class Row:
    """A line of the table: its figure, from the samples of a round, and the most that is wanted."""

    name: str
    most: float
    value: Callable[[Samples], float]


ROWS = [
    Row("four notebooks, wall, × plain script that draws", 1.00, lambda samples: paired(samples, RUN, DRAWN)[0]),
    Row("four notebooks, wall, × plain script", 1.20, lambda samples: paired(samples, RUN, PLAIN)[0]),
    Row("four notebooks, CPU, × plain script", 1.50, lambda samples: paired(samples, RUN, PLAIN)[1]),
    Row("200 trivial cells over one, wall s", 0.25, lambda samples: _over(samples, CELLS, ONE)),
    Row("one trivial notebook, wall, × the imports", 1.50, lambda samples: paired(samples, ONE, IMPORTS)[0]),
    Row("16 trainings, wall, × fork and draw", 1.00, lambda samples: paired(samples, SWEEP, LIMIT)[0]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="of all but the sweep")
    parser.add_argument("--sweeps", type=int, default=5, help="rounds of the sweep; 0 leaves it out")
    options = parser.parse_args()
    print(machine(), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        samples = rounds(Path(scratch) / "whole", WHOLE, options.rounds)
        samples |= rounds(Path(scratch) / "sweep", SWEEPS if options.sweeps else {}, options.sweeps)
    seconds = [
        [name, f"{median_s(runs):.2f}", f"{median_cpu_s(runs):.2f}", str(len(runs))] for name, runs in samples.items()
    ]
    print("\n".join(table(["", "wall s", "CPU s", "rounds"], seconds)), end="\n\n")
    values = {row: row.value(samples) for row in ROWS if SWEEP in samples or row is not ROWS[-1]}
    judged = [
        [row.name, f"{value:.2f}", f"{row.most:.2f}", "met" if value <= row.most else "**missed**"]
        for row, value in values.items()
    ]
    print("\n".join(table(["", "found", "goal", ""], judged)))


def rounds(place: Path, ways: Mapping[str, Way], count: int) -> Samples:
    """Samples by way, `count` of each; a first round, which makes caches, is not counted."""
    samples: Samples = {name: [] for name in ways}
    place.mkdir()
    for number in range(count + 1):
        for at, name in enumerate(list(ways) if number % 2 else reversed(ways)):
            sample = measure(*ways[name](place / f"{number}-{at}"))
            if number:
                samples[name].append(sample)
    return samples


def _over(samples: Samples, more: str, fewer: str) -> float:
    """The median of the differences in wall seconds."""
    return median(a.wall_s - b.wall_s for a, b in zip(samples[more], samples[fewer], strict=True))


if __name__ == "__main__":
    main()
