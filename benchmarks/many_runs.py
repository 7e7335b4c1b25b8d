"""`python -m benchmarks.many_runs`: a store of ten thousand runs, and how fast `verify` reads beside sha256sum.

`--runs 50000 --megabytes 1 --rounds 3` is a store of 100,000 step folders, each run with step keys of its own in the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.paths import code_cell, notebook

LIMIT_S, READS = 0.5, 0.8
ASKED = (["run"], ["check"], ["runs"], ["show", "latest"], ["run", "--force"], ["gc", "--dry-run"])
COPIES: dict[str, str] = {}  # of files that have all the links that they can have
REMOVES = ["gc", "--keep", "1000"]
TOML = """
name = "many"
[steps.make]
notebook = "make.ipynb"
outputs = { data = "data.bin" }
[steps.count]
notebook = "count.ipynb"
inputs = { data = "make.data" }
"""


WRITE = """
import os
with open(data, "wb") as file:
    for _ in range({megabytes}):
        file.write(os.urandom(1_000_000))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=1_000, help="of the output that verify reads")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        write_project(project, options.megabytes)
        run(project, ["run"])
        verify(project)
        multiply(project, options.runs)
        print(f"\n{options.runs:,} runs           median s   CPU s   peak MB   (limit {LIMIT_S} s)", flush=True)
        for arguments, rounds in [*((words, options.rounds) for words in ASKED), (REMOVES, 1)]:
            taken = [used(project, arguments) for _ in range(rounds)]
            row = [statistics.median(column) for column in zip(*taken, strict=True)]
            print(f"runner {' '.join(arguments):<17} {row[0]:8.3f} {row[1]:8.3f} {row[2]:8.0f}", flush=True)


def write_project(project: Path, megabytes: int) -> None:
    (project / "pipeline.toml").write_text(TOML)
    for name, source in (("make", WRITE.format(megabytes=megabytes)), ("count", "size = len(data)")):
        cells = [code_cell("p", 'data: str = ""', "parameters"), code_cell("c", source)]
        (project / f"{name}.ipynb").write_text(notebook(cells, "runner"))


def multiply(project: Path, count: int) -> None:
    """Copies of the one run under earlier ids, so that it stays the latest; each has its entries in the cache."""
    runs = project / "runs"
    (original,) = [path for path in runs.iterdir() if (path / "run.json").exists()]
    text = (original / "run.json").read_text()
    cached = {path: path.read_text() for path in (runs / "cache").glob("*/" + "?" * 64 + ".json")}
    began = datetime.strptime(original.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    for number in range(1, count):
        name = f"{began - timedelta(minutes=number):%Y%m%d-%H%M%S}-{number % 65536:04x}"
        shutil.copytree(original, runs / name, symlinks=True, copy_function=_link_or_copy)
        (runs / name / "run.json").unlink()
        (runs / name / "run.json").write_text(text.replace(original.name, name))
        for path, entries in cached.items():
            key = hashlib.sha256(f"{path.parent.name} {name}".encode()).hexdigest()
            path.with_name(f"{key}.json").write_text(entries.replace(original.name, name))


def _link_or_copy(source: str, target: str) -> None:
    """A link; where the file has no room for one, as with ext4's 65,000, to a copy of it from then on."""
    try:
        os.link(COPIES.get(source, source), target)
    except OSError:
        shutil.copyfile(source, target)
        COPIES[source] = target


def verify(project: Path) -> None:
    """The same files by `verify --all` and by sha256sum, five times each in turn."""
    files = [str(path) for path in (project / "runs" / "objects").iterdir()]
    size = sum(Path(path).stat().st_size for path in files)
    ours, theirs = [], []
    for _ in range(5):
        ours.append(timed(project, ["verify", "--all"]))
        clock = time.perf_counter()
        subprocess.run(["sha256sum", *files], check=True, capture_output=True)
        theirs.append(time.perf_counter() - clock)
    speed, reference = size / statistics.median(ours), size / statistics.median(theirs)
    print(f"verify --all    {speed / 1e6:7.0f} MB/s with its start, {statistics.median(ours):.2f} s")
    print(f"sha256sum       {reference / 1e6:7.0f} MB/s, {statistics.median(theirs):.2f} s")
    print(f"ratio           {speed / reference:7.2f}   (required {READS})")


def timed(project: Path, arguments: list[str]) -> float:
    clock = time.perf_counter()
    run(project, arguments)
    return time.perf_counter() - clock


def used(project: Path, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of processor with the processes it starts, and its own peak memory in MB."""
    clock = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"runner {' '.join(arguments)} left with {process.returncode}.")
    return time.perf_counter() - clock, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def run(project: Path, arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "runner", *arguments], cwd=project, check=True, capture_output=True)


if __name__ == "__main__":
    main()
