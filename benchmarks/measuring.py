"""What a command costs: wall and processor seconds, and the memory of all its processes together."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.paths import ROOT

EVERY_S = 0.03  # memory is read


@dataclass(frozen=True)
class Sample:
    wall_s: float
    cpu_s: float


def measure(command: list[str], cwd: Path) -> Sample:
    """Wall and processor seconds of the command with all its children. Raises SystemExit with what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.perf_counter()
    process = start(command, cwd)
    output = process.communicate()
    wall = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    check(process, output)
    return Sample(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def peak_mb(command: list[str], cwd: Path) -> float:
    """The most memory at any time of all processes together, each page shared among those that have it (PSS)."""
    process = start(command, cwd)
    sums = [0.0]

    def watch() -> None:
        while process.poll() is None:
            sums.append(sum(map(pss_mb, tree(process.pid))))
            time.sleep(EVERY_S)

    watching = threading.Thread(target=watch)
    watching.start()
    output = process.communicate()
    watching.join()
    check(process, output)
    return max(sums)


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def check(process: subprocess.Popen[str], output: tuple[str, str]) -> None:
    if process.returncode:
        out, err = output
        raise SystemExit(f"{process.args!r} left with {process.returncode}:\n{out[-2000:]}\n{err[-4000:]}")


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put the text between the two markers in the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def tree(pid: int) -> Iterator[int]:
    """The process and all its living descendants."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return
    for child in children:
        yield from tree(child)


def pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024


def paired(samples: Mapping[str, Sequence[Sample]], name: str, base: str) -> tuple[float, float]:
    """Medians of the ratios to the base in the same round, of wall and of processor time."""
    pairs = list(zip(samples[name], samples[base], strict=False))
    wall = statistics.median(sample.wall_s / reference.wall_s for sample, reference in pairs)
    return wall, statistics.median(sample.cpu_s / reference.cpu_s for sample, reference in pairs)


def median_s(samples: Iterable[Sample]) -> float:
    return statistics.median(sample.wall_s for sample in samples)


def median_cpu_s(samples: Iterable[Sample]) -> float:
    return statistics.median(sample.cpu_s for sample in samples)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown, readable as text too; numbers to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    right = [at > 0 and all(row[at][:1].isdigit() or row[at][:1] == "-" for row in rows) for at in range(len(head))]
    rule = ["-" * (width - 1) + (":" if to else "-") for width, to in zip(widths, right, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, right, strict=True)
        return f"| {' | '.join(cell.rjust(width) if to else cell.ljust(width) for cell, width, to in cells)} |"

    return [line(row) for row in (head, rule, *rows)]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    processor = next(names, platform.machine())
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {processor}, {os.cpu_count()} cores, "
        f"{memory_gb:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}."
    )
