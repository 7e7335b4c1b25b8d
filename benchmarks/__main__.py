"""`make bench`: every path once per round, rounds interleaved; medians and paired ratios to the plain script."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paths import PATHS, ROOT, copy_project


@dataclass(frozen=True)
class Sample:
    wall_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7")
    rounds = 3 if parser.parse_args().quick else 7
    samples: dict[str, list[Sample]] = {name: [] for name in PATHS}
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(rounds + 1):  # the first warms caches and is not counted
            for name, command in PATHS.items():
                project = copy_project(Path(scratch) / f"{round_}-{len(name)}-{name.split()[0]}")
                sample = measure(command(project), project / "notebooks")
                if round_:
                    samples[name].append(sample)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds, medians\n"
    )
    print(f"{'path':<24} {'wall s':>7} {'ratio':>6} {'CPU s':>7} {'ratio':>6}")
    base = samples["plain script"]
    for name, found in samples.items():
        wall = statistics.median(sample.wall_s / plain.wall_s for sample, plain in zip(found, base, strict=True))
        cpu = statistics.median(sample.cpu_s / plain.cpu_s for sample, plain in zip(found, base, strict=True))
        print(
            f"{name:<24} {statistics.median(s.wall_s for s in found):7.2f} {wall:6.2f} "
            f"{statistics.median(s.cpu_s for s in found):7.2f} {cpu:6.2f}"
        )


def measure(command: list[str], cwd: Path) -> Sample:
    """Wall and CPU seconds of the command with all its children. Raises CalledProcessError with its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command} left with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Sample(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    main()
