"""The program of one machine of a cluster: Dask's scheduler where it is the first one, and nannies with their workers.

    python -m runner.cluster.node DESCRIPTION

It says what happens by lines on stdout that begin with MARK, each with a JSON object; any other line there is its own
log. It ends when its stdin does, when the scheduler is told to, and with its owner, whatever that dies of.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from runner.cluster import PACKAGES, worker_name
from runner.cluster.worker_log import VARIABLE
from runner.kernel.process_tree import become_subreaper
from runner.kernel.watchdog import Watchdog

MARK = "runner:cluster "
TELL_EVERY_S = 0.5
START_S = 600.0  # for the scheduler's machine to be there, and for a worker to find it again
LINE = 1000  # characters of a log's line; 4096 bytes are written to a pipe as one
TRY_EVERY_S = 0.5
END_S = 2.0  # for a worker's task to end by itself
CONNECT_S = 10.0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is to be. `workers` are the numbers of its own, of `of_workers` in all."""

    owner: int  # the process with which this one ends
    host: str  # the name or address that the other machines know this one by
    port: int = 0  # of the scheduler; 0 takes a free one
    scheduler: str = ""  # the host that has it, where it is another one
    dashboard: bool = False
    workers: list[int]
    of_workers: int
    threads: int = 0  # of each worker; 0 divides the cores
    worker_memory_bytes: int = 0  # 0 divides the machine's memory
    beside: int = 1  # clusters that share that memory, this one included
    scratch: str  # a folder for what does not fit into memory
    path: list[str]  # folders that tasks import from


def main() -> None:
    """Be the machine that the argument describes."""
    node = msgspec.json.decode(sys.argv[1], type=Node)
    if hasattr(os, "pidfd_open"):
        watchdog = Watchdog(node.owner)
        watchdog.add(os.getpgrp())
        become_subreaper()
    installed = next((place for place, folder in enumerate(sys.path) if folder.endswith("-packages")), len(sys.path))
    sys.path[installed:installed] = node.path
    asyncio.run(_lead(node) if not node.scheduler else _join(node))


def tell(**facts: Any) -> None:
    """Write one line for the owner."""
    os.write(1, (MARK + json.dumps(facts, ensure_ascii=False) + "\n").encode())


async def _lead(node: Node) -> None:
    """Be the first machine: the scheduler, and workers of its own."""
    import distributed

    web = {"dashboard": node.dashboard, "dashboard_address": "127.0.0.1:0"}
    started: Any = distributed.Scheduler(host=node.host, port=node.port, **web)  # type: ignore[arg-type]
    async with started as scheduler, AsyncExitStack() as stack:
        dashboard = f"http://127.0.0.1:{scheduler.http_server.port}/status" if node.dashboard else ""
        versions = {package: importlib.metadata.version(package) for package in PACKAGES["dask"]}
        tell(address=scheduler.address, dashboard=dashboard, versions=versions)
        ended = _when_ended(scheduler.finished())
        seen = set[str]()  # addresses of workers; one that is started again has a new one
        starting = asyncio.ensure_future(_start_workers(node, scheduler.address, stack))
        ready = False
        while not ended.done():
            seen |= set(scheduler.workers)
            if starting.done():
                starting.result()  # raises what was wrong with one
            if not ready and len(scheduler.workers) >= node.of_workers:
                ready = True
                tell(ready=True)
            used = sum(int(worker.metrics.get("memory", 0)) for worker in scheduler.workers.values())
            own = scheduler.proc.memory_info().rss
            tell(memory=used + own, workers=len(scheduler.workers), seen=len(seen))
            await asyncio.wait({ended}, timeout=TELL_EVERY_S if ready else TELL_EVERY_S / 5)
        tell(seen=len(seen | set(scheduler.workers)))
        starting.cancel()


async def _join(node: Node) -> None:
    """Be another machine: workers, for as long as there is a scheduler."""
    await _reachable(node.scheduler, node.port)
    async with AsyncExitStack() as stack:
        nannies = await _start_workers(node, f"tcp://{node.scheduler}:{node.port}", stack)
        tell(ready=True)
        await _when_ended(asyncio.gather(*(nanny.finished() for nanny in nannies)))


async def _reachable(host: str, port: int) -> None:
    """Wait for the port. Raises SystemExit with a sentence where it is not there in time."""
    until = time.monotonic() + START_S
    while True:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_S)
            writer.close()
            return
        except (OSError, TimeoutError) as error:
            if time.monotonic() > until:
                tell(sentence=f"the scheduler at {host}:{port} could not be reached for {START_S:.0f} s ({error})")
                raise SystemExit(1) from None
            await asyncio.sleep(TRY_EVERY_S)


async def _start_workers(node: Node, scheduler: str, stack: AsyncExitStack) -> list[Any]:
    """This machine's nannies, each with its worker."""
    import distributed
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    count = max(1, len(node.workers))
    nannies = [
        distributed.Nanny(
            scheduler,
            name=worker_name(number),
            host=node.host,
            nthreads=node.threads or max(1, CPU_COUNT // count),
            memory_limit=node.worker_memory_bytes or int(MEMORY_LIMIT / node.beside / count),
            death_timeout=START_S,
            preload=["runner.cluster.worker_log"],
            env={VARIABLE: str(_log_of(worker_name(number), Path(node.scratch)))},
            dashboard=False,
        )
        for number in node.workers
    ]
    stack.push_async_callback(_close, nannies)
    await asyncio.gather(*nannies)
    return nannies


async def _close(nannies: Sequence[Any]) -> None:
    await asyncio.gather(*(nanny.close(timeout=END_S) for nanny in nannies))


def _when_ended(engine: Any) -> asyncio.Future[Any]:
    """Done when stdin has ended, or `engine` has."""
    over = asyncio.get_running_loop().create_future()

    def end(*_: Any) -> None:
        asyncio.get_running_loop().remove_reader(0)
        if not over.done():
            over.set_result(None)

    asyncio.get_running_loop().add_reader(0, end)
    asyncio.ensure_future(engine).add_done_callback(end)
    return over


def _log_of(worker: str, folder: Path) -> Path:
    """A pipe that the worker, and its successors, write their stdout and stderr into; its lines are told."""
    pipe = folder / f"{worker}.pipe"
    os.mkfifo(pipe)

    def read() -> None:
        while True:
            with contextlib.suppress(FileNotFoundError), pipe.open(encoding="utf-8", errors="replace") as lines:
                while line := lines.readline(LINE):
                    tell(log=[worker, line.rstrip("\n")])
            if not pipe.exists():
                return

    threading.Thread(target=read, daemon=True, name=f"log of {worker}").start()
    return pipe


if __name__ == "__main__":
    main()
