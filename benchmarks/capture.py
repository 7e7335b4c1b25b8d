"""`python -m benchmarks.capture`: what capturing every request costs `runner serve`, paired with serving without.

The model, requests and load of `benchmarks.serving`, one worker each, both on one core, asked in turn. On a machine that
others use too the processor time of a request says more than how many there are in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import machine, table, write_between
from benchmarks.paths import ROOT
from benchmarks.serving import CASES, OURS, Case, Running, make, median, put_load, request, wait

PAGE, BEGIN, END = ROOT / "docs" / "monitoring.md", "<!-- written by make bench-capture -->\n", "<!-- end -->\n"
TARGETS = """
[targets.whole]
kind = "local"
capture = {}
[targets.chosen]
kind = "local"
capture = { hash = ["f1"], leave_out = ["f2"] }
"""
WITHOUT, WHOLE, CHOSEN = "without", "100 %", "100 %, a column hashed and one left out"
OPTIONS = {WITHOUT: [], WHOLE: ["--capture", "whole"], CHOSEN: ["--capture", "chosen"]}
MOST_COST, MOST_P99_MS = 0.10, 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        project, _, records = make(Path(scratch))
        with (project / "pipeline.toml").open("a") as file:
            file.write(TARGETS)
        with running(project, cores[0]) as servers:
            os.sched_setaffinity(0, {cores[-1]})
            for case in CASES:
                body = request(OURS, case, records)
                assert body is not None
                for round_ in range(options.rounds + 1):  # the first warms caches and is not counted
                    for server in servers:
                        load = asyncio.run(put_load(server, body, case.clients, options.seconds))
                        server.loads.setdefault(case.name, []).extend([load] if round_ else [])
                    shutil.rmtree(project / "runs/captured", ignore_errors=True)
    report(servers, write=options.write)


@contextmanager
def running(project: Path, core: int) -> Iterator[list[Running]]:
    """The same server with and without capture, on one core."""
    started: list[Running] = []
    try:
        for at, (name, more) in enumerate(OPTIONS.items()):
            port, log = 18100 + at, project / f"{at}.log"
            command = [sys.executable, "-m", "runner", "serve", "bench", "--workers", "1", "--port", str(port), *more]
            with log.open("wb") as file:
                process = subprocess.Popen(
                    ["taskset", "-c", str(core), *command],
                    cwd=project,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=file,
                    stderr=file,
                )
            began = time.monotonic()
            started.append(Running(name, process, port, 0))
            wait(port, process, log)
            started[-1].start_s = time.monotonic() - began
        yield started
    finally:
        for server in started:
            server.process.terminate()
        for server in started:
            server.process.wait(60)


def report(servers: list[Running], *, write: bool) -> None:
    """Print the table, with `write` also into the page; exit 1 where a goal is missed."""
    lines, missed = [], []
    for case in CASES:
        rows = []
        for server in servers:
            rate, cpu = cost(case, server, servers[0])
            loads = server.loads[case.name]
            p99 = median(loads, "p99_ms")
            rows.append(
                [server.name, f"{median(loads, 'per_s'):,.0f}", f"{median(loads, 'cpu_us'):,.0f}", f"{p99:.1f}"]
                + ([f"{rate:.0%}", f"{cpu:.0%}"] if server is not servers[0] else ["0%", "0%"])
            )
            if server.name == WHOLE:
                missed += [f"{case.name}: {rate:.0%} of the rate"] if rate > MOST_COST else []
                slow = case.clients == 16 and p99 >= MOST_P99_MS
                missed += [f"{case.name}: p99 {p99:.1f} ms"] if slow else []
        head = ["capture", "requests/s", "CPU µs", "p99 ms", "costs of the rate", "of CPU"]
        lines += [f"**{case.name}, {case.clients} clients**", "", *table(head, rows), ""]
    lines.append(f"Missed: {'; '.join(missed)}." if missed else "All that was wanted is met.")
    print("\n".join(lines))
    if write:
        busy = f"{machine()} On the average {os.getloadavg()[1]:.0f} processes wanted the cores."
        write_between(PAGE, BEGIN, END, "\n".join([busy, "", *lines]))
    sys.exit(1 if missed else 0)


def cost(case: Case, server: Running, base: Running) -> tuple[float, float]:
    """What part of the rate is lost and of the processor time is added, medians of the rounds."""
    pairs = list(zip(server.loads[case.name], base.loads[case.name], strict=True))
    rate = 1 - statistics.median(load.per_s / reference.per_s for load, reference in pairs)
    return rate, statistics.median(load.cpu_us / reference.cpu_us for load, reference in pairs) - 1


if __name__ == "__main__":
    main()
