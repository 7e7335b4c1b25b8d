"""Inside a worker: what it and its tasks print goes into a log of its own. Dask calls `dask_setup` as it starts."""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "RUNNER_WORKER_LOG"  # the path of a pipe


def dask_setup(_worker: Any) -> None:
    pipe = os.open(os.environ[VARIABLE], os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(pipe, stream)
    os.close(pipe)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a killed worker has lost nothing
