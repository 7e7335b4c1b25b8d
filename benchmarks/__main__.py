"""`make bench`: the same notebooks every way there is, rounds interleaved; medians, and ratios within a round."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import figure, overhead, sweep
from benchmarks.measuring import Sample, machine, measure, median_cpu_s, median_s, paired, peak_mb, table, write_between
from benchmarks.paths import ROOT, copy_project, papermill_api, papermill_cli, plain_script, runner
from benchmarks.peers import nbconvert, ploomber, ploomber_engine

PLAIN, OURS, API, ENGINE = "plain script", "`runner run`, with report", "papermill's API", "ploomber-engine"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- end -->\n"
DRAWN = "plain script that draws the figures"
WAYS: dict[str, Callable[[Path], list[str]]] = {
    PLAIN: plain_script,
    DRAWN: lambda project: plain_script(project, drawn=True),
    OURS: runner,
    "`runner run --kernel standard`": lambda project: runner(project, "--kernel", "standard"),
    ENGINE: ploomber_engine,
    API: papermill_api,
    "4 × papermill command": papermill_cli,
    "4 × nbconvert --execute": nbconvert,
    "ploomber build": ploomber,
}
QUICK = (PLAIN, OURS, ENGINE, API)
SLOW = list(WAYS)[list(WAYS).index(API) :]  # fewer rounds of these
CELLS = (1, 200)
LIMIT, LIMIT_DRAWN, SWEEP = "import once, fork, plain code", "the same, drawing the figures", "`runner sweep`"
SWEEPS: dict[str, Callable[[Path], list[str]]] = {
    LIMIT: sweep.limit,
    LIMIT_DRAWN: lambda project: sweep.limit(project, drawn=True),
    SWEEP: sweep.ours,
}


@dataclass(frozen=True)
class Rounds:
    whole: int
    slow: int
    memory: int
    trivial: int
    sweep: int


WARM_UP = 1  # rounds that are not counted
FEW = Rounds(whole=3, slow=1, memory=1, trivial=3, sweep=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds of what matters most; writes no page")
    parser.add_argument("--rounds", type=int, default=7, help="of the fast ways; fewer of the slow ones")
    options = parser.parse_args()
    quick, most = options.quick, options.rounds
    rounds = FEW if quick else Rounds(most, slow=most // 2, memory=most // 2, trivial=most // 2 + 1, sweep=most)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        ways = {name: WAYS[name] for name in QUICK} if quick else WAYS
        parts = [whole(place, ways, rounds), memory(place, ways, rounds), trivial(place, rounds, quick=quick)]
        parts.append(many(place, rounds))
    if not quick:
        write_between(PAGE, BEGIN, END, "\n\n".join([machine(), *("\n".join(part) for part in parts)]))


def sampled(
    place: Path, ways: Mapping[str, Callable[[Path], list[str]]], rounds: int, *, slow_rounds: int
) -> dict[str, list[Sample]]:
    """Each way to run a project, in a fresh copy of it; the first round of the fast ones is not counted."""
    samples: dict[str, list[Sample]] = {name: [] for name in ways}
    for round_ in range(-WARM_UP, rounds):
        for number, (name, command) in enumerate(ways.items()):
            if name in SLOW and not 0 <= round_ < slow_rounds:
                continue
            project = copy_project(place / f"{round_}-{number}")
            sample = measure(command(project), project if command is ploomber else project / "notebooks")
            if round_ >= 0:
                samples[name].append(sample)
    return samples


def whole(place: Path, ways: Mapping[str, Callable[[Path], list[str]]], rounds: Rounds) -> list[str]:
    samples = sampled(place / "whole", ways, rounds.whole, slow_rounds=rounds.slow)
    lines = ["**Four notebooks, cold, the whole process**", ""]
    rows = []
    for name, runs in samples.items():
        wall, cpu = paired(samples, name, PLAIN)
        seconds = (f"{median_s(runs):.2f}", f"{wall:.2f}", f"{median_cpu_s(runs):.2f}", f"{cpu:.2f}")
        rows.append([name, *seconds, str(len(runs))])
    lines += table(["", "wall s", "× plain", "CPU s", "× plain", "rounds"], rows)
    wall, cpu = paired(samples, OURS, PLAIN)
    goals = [
        goal("wall, against the plain script", wall, 1.25, 1.00),
        goal("CPU, against the plain script", cpu, 1.40, 1.20),
        goal("wall, against papermill's API", paired(samples, OURS, API)[0], 0.30, 0.25),
        goal("wall, against ploomber-engine", paired(samples, OURS, ENGINE)[0], 0.75, 0.65),
    ]
    if len(ways) == len(WAYS):
        figure.draw({name: paired(samples, name, PLAIN)[0] for name in ways}, ROOT / "docs" / "performance.svg")
    return say([*lines, "", *table(GOALS, goals)])


def memory(place: Path, ways: Mapping[str, Callable[[Path], list[str]]], rounds: Rounds) -> list[str]:
    peaks_mb: dict[str, list[float]] = {name: [] for name in ways if name != DRAWN}
    for round_ in range(rounds.memory):
        for number, (name, peaks) in enumerate(peaks_mb.items()):
            if name in SLOW and name != API and round_:
                continue
            project = copy_project(place / f"memory-{round_}-{number}")
            command = ways[name]
            peaks.append(peak_mb(command(project), project if command is ploomber else project / "notebooks"))
    lines = ["**Peak memory, all processes together (PSS)**", ""]
    lines += table(["", "MB"], [[name, f"{statistics.median(peaks):.0f}"] for name, peaks in peaks_mb.items()])
    ratio = statistics.median(ours / theirs for ours, theirs in zip(peaks_mb[OURS], peaks_mb[API], strict=True))
    return say([*lines, "", *table(GOALS, [goal("PSS, against papermill's API", ratio, 1.2, 1.0)])])


def trivial(place: Path, rounds: Rounds, *, quick: bool) -> list[str]:
    ways = {name: way for name, way in overhead.WAYS.items() if not quick or name in overhead.QUICK}
    samples: dict[tuple[str, int], list[Sample]] = {(name, cells): [] for name in ways for cells in CELLS}
    for round_ in range(-WARM_UP, rounds.trivial):
        for number, (name, way) in enumerate(ways.items()):
            for cells in CELLS:
                folder = overhead.trivial(place / f"trivial-{round_}-{number}-{cells}", cells)
                sample = measure(way(folder), folder)
                if round_ >= 0:
                    samples[name, cells].append(sample)
    rows, more = [], {}
    for name in ways:
        few, all_ = (samples[name, cells] for cells in CELLS)
        more[name] = statistics.median(b.wall_s - a.wall_s for a, b in zip(few, all_, strict=True))
        rows.append([name, f"{median_s(few):.2f}", f"{median_s(all_):.2f}", f"{more[name]:.2f}"])
    lines = [f"**A notebook of trivial cells, wall seconds** ({rounds.trivial} rounds)", ""]
    lines += table(["", "1 cell", "200 cells", "difference"], rows)
    ours = goal("200 cells over one, s", more[overhead.OURS], 0.3, 0.12)
    return say([*lines, "", *table(GOALS, [ours])])


def many(place: Path, rounds: Rounds) -> list[str]:
    samples = sampled(place / "sweep", SWEEPS, rounds.sweep, slow_rounds=rounds.sweep)
    lines = [f"**Sixteen trainings, {sweep.JOBS} at once, and the winner's evaluation** ({rounds.sweep} rounds)", ""]
    rows = [
        [name, f"{median_s(runs):.2f}", f"{paired(samples, name, LIMIT)[0]:.2f}", f"{median_cpu_s(runs):.2f}"]
        for name, runs in samples.items()
    ]
    lines += table(["", "wall s", "× plain", "CPU s"], rows)
    ours = goal("wall, against its plain limit", paired(samples, SWEEP, LIMIT)[0], 1.25, 1.15)
    return say([*lines, "", *table(GOALS, [ours])])


GOALS = ["", "found", "goal", "stretch", ""]


def goal(name: str, measured: float, most: float, stretch: float) -> list[str]:
    outcome = "met, and the stretch" if measured <= stretch else "met" if measured <= most else "**missed**"
    return [name, f"{measured:.2f}", f"{most:.2f}", f"{stretch:.2f}", outcome]


def say(lines: list[str]) -> list[str]:
    print("\n".join(lines), end="\n\n", flush=True)
    return lines


if __name__ == "__main__":
    main()
