"""Processes that a step's notebook hands work to: Dask's scheduler and workers, started and ended with the step.

`process.py` is what the step's process has in its hand, `node.py` the program of one machine, `worker_log.py` the part
of it inside each worker. What work goes to which worker, and what is done again, is the engine's. Knows no store, no
cloud and no command line; several machines are host names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.errors import PipelineError
from runner.records import Pipeline

PACKAGES = {"dask": ("dask", "distributed")}  # of each engine
FOLDER = "cluster"  # of a step: its logs
SCHEDULER = "scheduler"  # its log, also of what starts the workers of its machine
WORKERS = "workers"  # the same of a machine without scheduler
LOOPBACK = "127.0.0.1"
INSTALL = '`pip install "dask[dataframe]" distributed bokeh`'

OnLine = Callable[[str, str], None]  # (whose log, its line)


@dataclass(frozen=True)
class Machines:
    """The machines of a step, by the names they know each other by; the first one has notebook and scheduler."""

    own: str
    hosts: Sequence[str]
    on_line: OnLine | None = None  # takes the lines of logs; without it they are files in the step's folder


HERE = Machines(LOOPBACK, [LOOPBACK])


def require(pipeline: Pipeline) -> None:
    """Raises PipelineError where a step that is not skipped has a cluster whose packages are not installed here."""
    for name, spec in pipeline.steps.items():
        if spec.cluster is None or name in pipeline.skip:
            continue
        for package in PACKAGES[spec.cluster.engine]:
            if importlib.util.find_spec(package) is None:
                raise PipelineError(
                    f"steps.{name}.cluster: the package {package} is not installed here. Install what a cluster needs "
                    f"with {INSTALL}, and add it to the project's lock."
                )


def workers_of(hosts: Sequence[str], own: str, workers: int) -> range:
    """The numbers of the workers on the machine `own`: spread over the hosts as evenly as they go."""
    place = hosts.index(own)
    ends = [workers * (number + 1) // len(hosts) for number in range(-1, len(hosts))]
    return range(ends[place], ends[place + 1])


def worker_name(number: int) -> str:
    """The name of a worker, in the engine and of its log."""
    return f"worker-{number}"


def log_files(workers: int) -> list[str]:
    """The paths that logs may have in a step's folder."""
    names = [SCHEDULER, *map(worker_name, range(workers))]
    return [f"{FOLDER}/{name}.log{end}" for name in names for end in ("", ".1")]
