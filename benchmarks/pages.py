"""`python -m benchmarks.pages`: the web pages of ten thousand runs: their time, their memory, and what a run that goes on
costs them. Nothing else should run on the machine."""

from __future__ import annotations

import argparse
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.many_runs import multiply, run
from benchmarks.measuring import machine, table
from benchmarks.paths import ROOT, code_cell, notebook

ROUNDS, FOLLOWED_S = 15, 60.0
FIRST, SORTED, FOUND = "/", "/?sort=-judge.auc&verdict=pass", "/?q=nothing"
TOML = """
name = "many"
[steps.judge]
notebook = "judge.ipynb"
[[gate]]
metric = "judge.auc"
min = 0.5
"""
JUDGE = "from runner.scraps import metric\nmetric('auc', 0.9, low=0.85, high=0.95, better='higher')"
SLOW = "import time\ntime.sleep(1)  # cell {}"


@dataclass
class Pages:
    """`runner ui` as a process of its own, and a browser as far as HTTP goes that it has let in."""

    process: subprocess.Popen[str]
    port: int
    cookie: str = ""
    closed: threading.Event = field(default_factory=threading.Event)

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"cookie": self.cookie})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise SystemExit(f"{path} was answered {answer.status}: {text[:500]}")
        self.cookie = self.cookie or (answer.getheader("set-cookie") or "").partition(";")[0]
        connection.close()
        return text

    def follow(self, path: str) -> None:
        """Read a stream of events until `closed`, as a browser at the page does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"cookie": self.cookie})
        stream = connection.getresponse()
        while not self.closed.is_set() and stream.readline():
            pass
        connection.close()

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak_mb(self) -> float:
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(kilobytes) / 1000

    def timed(self, path: str) -> tuple[float, float]:
        """Seconds on the clock, and of the server's processor."""
        cpu_s, clock = self.cpu_s, time.perf_counter()
        self.get(path)
        return time.perf_counter() - clock, self.cpu_s - cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=FOLLOWED_S, help="for which a run is followed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        write_project(project, JUDGE)
        run(project, ["run"])
        multiply(project, options.runs)
        pages = opened(project)
        try:
            rows = measured(pages)
            write_project(project, *[SLOW.format(number) for number in range(int(options.seconds) + 30)], JUDGE)
            rows += followed(pages, project, options.seconds)
        finally:
            pages.process.terminate()
            pages.process.wait()
    print(f"{machine()}\n\n{options.runs:,} runs\n")
    print("\n".join(table(["", "found", "wanted"], rows)))


def write_project(project: Path, *cells: str) -> None:
    (project / "pipeline.toml").write_text(TOML)
    (project / "judge.ipynb").write_text(notebook([code_cell(f"c{n}", text) for n, text in enumerate(cells)], "runner"))


def opened(project: Path) -> Pages:
    command = [sys.executable, "-m", "runner", "ui", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=project, env=environment, text=True, stderr=subprocess.PIPE)
    assert process.stderr is not None
    address = re.search(r":(\d+)(/\?token=\S+)", process.stderr.readline())
    assert address is not None
    pages = Pages(process, int(address[1]))
    pages.get(address[2])
    return pages


def measured(pages: Pages) -> list[list[str]]:
    """The first page at once after the start, then pages that are asked for again and again, and the memory."""
    at_once, _ = pages.timed(FIRST)
    wait_until(lambda: pages.timed(SORTED)[1] < 0.5)  # all runs were read once
    rows = [["first page, right after the start", f"{at_once:.2f} s", ""]]
    wanted = {
        FIRST: ("first page", "under 0.3 s"),
        SORTED: ("sorted by a metric", ""),
        FOUND: ("searched, no match", ""),
    }
    for path, (name, goal) in wanted.items():
        samples = [pages.timed(path) for _ in range(ROUNDS)]
        wall_s, cpu_s = (statistics.median(sample[at] for sample in samples) for at in (0, 1))
        rows.append([name, f"{wall_s:.3f} s, of it {cpu_s:.2f} s of processor", goal])
    return [*rows, ["peak memory of the process", f"{pages.peak_mb:.0f} MB", "under 120 MB"]]


def followed(pages: Pages, project: Path, seconds: float) -> list[list[str]]:
    """What the pages take of a core while nothing happens, and while a browser follows a run with a cell a second."""
    idle = share(pages, seconds / 3)
    running = subprocess.Popen(
        [sys.executable, "-m", "runner", "run"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: "data-running" in pages.get(FIRST))
        named = re.search(r'data-newest="([^"]+)"', pages.get(FIRST))
        assert named is not None
        stream = threading.Thread(target=pages.follow, args=[f"/events?newest={named[1]}&run={named[1]}"])
        stream.start()
        time.sleep(3)
        busy = share(pages, seconds)
        pages.closed.set()
    finally:
        running.terminate()
        running.wait()
    stream.join()
    return [
        ["of a core, nothing going on", f"{idle:.2%}", ""],
        ["of a core, a run followed by a browser", f"{busy:.2%}", "under 2 %"],
    ]


def share(pages: Pages, seconds: float) -> float:
    cpu_s, clock = pages.cpu_s, time.perf_counter()
    time.sleep(seconds)
    return (pages.cpu_s - cpu_s) / (time.perf_counter() - clock)


def wait_until(held: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not held():
        if time.monotonic() > until:
            raise SystemExit("It took longer than two minutes.")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
