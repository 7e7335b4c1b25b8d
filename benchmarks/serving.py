"""`python -m benchmarks.serving`: one worker of `runner serve` beside other servers of the same model, paired.

100 trees of depth 5 on 70 numbers; the server on one core, the clients on another. Every server is asked in turn, in
rounds; medians, and ratios within a round. On a noisy machine the processor time of a request says more than how many
there are in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb

import runner.model
from benchmarks.measuring import machine, pss_mb, table, tree, write_between
from benchmarks.paths import ROOT
from runner.content import artifact
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion

PEERS = Path(os.environ.get("SERVING_PEERS", ROOT / ".venv-peers-serving")) / "bin" / "python"
FEATURES = 70
NAMES = [f"f{at}" for at in range(FEATURES)]
OURS, FLOOR = "runner serve", "no-op uvicorn"
FLASK, FASTAPI, MLSERVER = "Flask as in AWS' container", "FastAPI, inplace_predict", "MLServer"
LEAST = {(1, FLASK): 5, (1, MLSERVER): 5}  # how many times as fast as this peer; with 1,000 rows, as any
PAGE, BEGIN, END = ROOT / "docs" / "serving.md", "<!-- written by make bench-serving -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    kind: str
    clients: int


CASES = [
    Case("1 row, CSV", 1, "csv", 16),
    Case("1 row, JSON", 1, "json", 16),
    Case("1 row, named JSON", 1, "records", 16),
    Case("1000 rows, CSV", 1000, "csv", 4),
    Case("1000 rows, JSON", 1000, "json", 4),
]


@dataclass(frozen=True)
class Load:
    """What a server did for some seconds."""

    per_s: float
    cpu_us: float  # a request
    p99_ms: float


@dataclass
class Running:
    name: str
    process: subprocess.Popen[bytes]
    port: int
    start_s: float
    loads: dict[str, list[Load]] = field(default_factory=dict)  # by case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        project, model, table = make(Path(scratch))
        with running(project, model, cores[0]) as servers:
            os.sched_setaffinity(0, {cores[-1]})
            for case in CASES:
                for round_ in range(options.rounds + 1):  # the first warms caches and is not counted
                    for server in servers:
                        body = request(server.name, case, table)
                        if body is not None:
                            load = asyncio.run(put_load(server, body, case.clients, options.seconds))
                            server.loads.setdefault(case.name, []).extend([load] if round_ else [])
            memory_mb = max(map(pss_mb, tree(servers[0].process.pid)))  # of the largest process: the worker
        least = {case.name: limit_us(case, model, table) for case in CASES}
    report(servers, least, memory_mb, write=options.write)


def make(folder: Path) -> tuple[Path, Path, np.ndarray]:
    """A project with an approved version, its trees as JSON, and raw records."""
    chance = np.random.default_rng(5)
    table = chance.normal(100, 30, (4000, FEATURES)).round(3)
    frame = pd.DataFrame(table, columns=NAMES)
    answers = (frame[NAMES[:8]].sum(axis=1) + chance.normal(0, 40, 4000) > 800).astype(int)
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 5}, xgb.DMatrix(frame, answers), 100)
    run = "20261122-101630-0000"
    place = folder / "runs" / run / "steps/train/out/model"
    place.parent.mkdir(parents=True)
    runner.model.save(place, booster, frame, target="y", positive="1")
    (folder / "pipeline.toml").write_text('name = "bench"\n[steps.train]\nnotebook = "train.ipynb"\n')
    saved = artifact(place, name="steps/train/out/model")
    registry = LocalRegistry(folder / "runs/registry.db")
    registry.register(NewVersion(name="bench", run=run, sha256=saved.sha256, artifact=saved, created_by="benchmark"))
    registry.decide("bench", 1, "approved", who="benchmark", why="benchmark")
    booster.save_model(folder / "model.json")
    return folder, folder / "model.json", table[:1000]


@contextmanager
def running(project: Path, model: Path, core: int) -> Iterator[list[Running]]:
    """All servers, on one core, each answering /ping or something like it."""
    peers = str(Path(__file__).with_name("serving_peers.py"))
    serve = [sys.executable, "-m", "runner", "serve", "bench", "--workers", "1", "--port"]
    commands: dict[str, Callable[[str], list[str]]] = {
        OURS: lambda port: [*serve, port],
        FLOOR: lambda port: [sys.executable, peers, "floor", port, str(model)],
    }
    if PEERS.exists():
        commands[FLASK] = lambda port: [str(PEERS), peers, "flask", port, str(model)]
        commands[FASTAPI] = lambda port: [str(PEERS), peers, "fastapi", port, str(model)]
        commands[MLSERVER] = lambda port: [str(PEERS), peers, "mlserver", port, str(model)]
    else:
        print(f"{PEERS} is not there, so the peers are left out: make bench-serving")
    started = []
    try:
        for at, (name, command) in enumerate(commands.items()):
            port = 18000 + 10 * at
            began = time.monotonic()
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if name not in (OURS, FLOOR):
                environment.pop("PYTHONPATH", None)
            log = open(project / f"{at}.log", "wb")  # noqa: SIM115  # the process has it
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *command(str(port))], cwd=project, env=environment, stdout=log, stderr=log
            )
            started.append(Running(name, process, port, 0))
            wait(port, process, project / f"{at}.log")
            started[-1].start_s = time.monotonic() - began
        yield started
    finally:
        for server in started:
            server.process.terminate()
        for server in started:
            server.process.wait(60)


def wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import http.client

    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v2/health/ready" if port == 18040 else "/ping")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"no server:\n{log.read_text()[-3000:]}")


def request(server: str, case: Case, table: np.ndarray) -> bytes | None:
    """The whole HTTP request; None where the server does not take such a one."""
    rows = table[: case.rows].tolist()
    path, kind = "/invocations", "text/csv" if case.kind == "csv" else "application/json"
    if server == MLSERVER:
        if case.kind != "json":
            return None
        path = "/v2/models/m/infer"
        flat = [value for row in rows for value in row]
        inputs = [{"name": "x", "shape": [len(rows), FEATURES], "datatype": "FP32", "data": flat}]
        body = json.dumps({"inputs": inputs})  # numbers without names, so all are asked with such
    elif case.kind == "csv":
        body = "\n".join(",".join(map(str, row)) for row in rows)
    elif server == FLASK:
        return None  # that container takes no JSON
    elif case.kind == "records":
        body = json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows])
    else:
        body = json.dumps({"instances": rows})
    headers = f"host: x\r\ncontent-type: {kind}\r\naccept: {kind}\r\ncontent-length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n{body}".encode()


class Client(asyncio.Protocol):
    """One connection that sends the request again as soon as it has the answer."""

    def __init__(self, body: bytes, until: float, times: list[float], done: asyncio.Future[None]) -> None:
        self.body, self.until, self.times, self.done = body, until, times, done
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.body)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, content = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(content) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(self.buffer[:2000].decode())
        self.buffer = b""
        now = time.perf_counter()
        self.times.append(now - self.began)
        if now < self.until:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)


async def put_load(server: Running, body: bytes, clients: int, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    began, cpu = time.perf_counter(), cpu_s(server.process.pid)
    waiting = []
    for _ in range(clients):
        done: asyncio.Future[None] = loop.create_future()
        waiting.append(done)
        client = Client(body, began + seconds, times, done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", server.port)  # type: ignore[misc]
    await asyncio.gather(*waiting)
    took, cpu = time.perf_counter() - began, cpu_s(server.process.pid) - cpu
    p99 = sorted(times)[int(len(times) * 0.99)] * 1e3
    return Load(len(times) / took, cpu / len(times) * 1e6, p99)


def cpu_s(pid: int) -> float:
    """Of the process and all its living descendants."""
    stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in tree(pid)]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def limit_us(case: Case, model: Path, table: np.ndarray) -> float:
    """The least time of scoring in a process: XGBoost's own call, and reading the numbers by the fastest means."""
    import msgspec

    from runner.scoring.inference import Booster

    booster = Booster(model.read_bytes(), 1)
    matrix = np.ascontiguousarray(table[: case.rows], dtype="float32")
    body = (request(OURS, case, table) or b"").partition(b"\r\n\r\n")[2]
    text = b"[" + body.replace(b"\n", b",") + b"]"

    def read() -> object:
        return msgspec.json.decode(body) if case.kind != "csv" else msgspec.json.decode(text, type=list[float])

    return least_us(lambda: booster.predict(matrix, *matrix.shape)) + least_us(read)


def least_us(call: Callable[[], object]) -> float:
    """The median time of the calls within a second."""
    times = []
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def report(servers: list[Running], least: dict[str, float], memory_mb: float, *, write: bool) -> None:
    """Print the results, with `write` also into the page; exit 1 where a goal is missed, 2 where a peer is absent."""
    ours = servers[0]
    lines, missed = [], []
    for case in CASES:
        case_lines, case_missed = case_report(case, servers, least[case.name])
        lines += case_lines
        missed += case_missed
    lines += [f"Start {ours.start_s:.1f} s (at most 3 wanted), memory {memory_mb:.0f} MB a worker (at most 220).", ""]
    missed += ["the start took more than 3 s"] if ours.start_s > 3 else []
    missed += ["a worker takes more than 220 MB"] if memory_mb > 220 else []
    absent = [name for name in (FLASK, FASTAPI, MLSERVER) if name not in {server.name for server in servers}]
    lines.append(
        f"Missed: {'; '.join(missed)}." if missed else "Nothing missed." if absent else "All that was wanted is met."
    )
    if absent:
        lines.append(f"Not judged: {', '.join(absent)} was not measured.")
    print("\n".join(lines))
    if write and not absent:
        write_between(PAGE, BEGIN, END, "\n".join([machine(), "", *lines]))
    sys.exit(1 if missed else 2 if absent else 0)


def case_report(case: Case, servers: list[Running], least: float) -> tuple[list[str], list[str]]:
    """The lines of one case, and the goals it misses. `least` is the processor time of scoring alone, in µs."""
    ours, floor = servers[:2]
    base, rows, missed = ours.loads[case.name], [], []
    for server in servers:
        loads = server.loads.get(case.name)
        if not loads:
            continue
        per_s, cpu, p99 = (median(loads, name) for name in ("per_s", "cpu_us", "p99_ms"))
        faster = statistics.median(us.per_s / them.per_s for us, them in zip(base, loads, strict=True))
        cheaper = statistics.median(them.cpu_us / us.cpu_us for us, them in zip(base, loads, strict=True))
        rows.append([server.name, f"{per_s:,.0f}", f"{cpu:,.0f}", f"{p99:.1f}", f"{faster:.1f}", f"{cheaper:.1f}"])
        needed = LEAST.get((case.rows, server.name), 2 if case.rows > 1 and server not in (ours, floor) else 0)
        missed += [f"{case.name}: {faster:.1f} × {server.name}, not {needed} ×"] if faster < needed else []
    physical = median(floor.loads[case.name], "cpu_us") + least
    part, p99 = physical / median(base, "cpu_us"), median(base, "p99_ms")
    missed += [f"{case.name}: {part:.0%} of the physical limit, not 40 %"] if part < 0.4 else []
    missed += [f"{case.name}: p99 {p99:.1f} ms, not under 15"] if case.clients == 16 and p99 >= 15 else []
    head = ["", "requests/s", "CPU µs", "p99 ms", "runner serve is × by rate", "by CPU"]
    limit = f"HTTP, XGBoost's call and reading take {physical:,.0f} µs at least: runner serve is at {part:.0%} of that."
    return [f"**{case.name}, {case.clients} clients**", "", *table(head, rows), "", limit, ""], missed


def median(loads: list[Load], name: str) -> float:
    return statistics.median(getattr(load, name) for load in loads)


if __name__ == "__main__":
    main()
