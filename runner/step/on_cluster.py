"""A step with a cluster: that is started before its kernel, which gets its address, and ended after it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from runner.cluster import FOLDER, Machines
from runner.cluster.process import Cluster, logs
from runner.cluster.process import start as start_cluster
from runner.kernel.choose import start as start_kernel
from runner.records import StepJob, StepResult
from runner.step.execute import Progress, execute, secret_values, write_result
from runner.step.outcome import not_executed

SCRATCH = "scratch"  # what workers have no memory for


def execute_on_cluster(
    job: StepJob,
    folder: Path,
    *,
    cwd: Path | None,
    project: Path | None,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    machines: Machines,
) -> StepResult:
    """As `execute`, with the job's cluster; where that does not come about, no cell is executed."""
    assert job.cluster is not None
    folder = folder.resolve()
    modules = folder / "modules"
    cwd = cwd.resolve() if cwd is not None and cwd.is_dir() else modules
    modules.mkdir(exist_ok=True)
    on_progress(Progress(job.step, 0, 0, None, f"starting {job.cluster.workers} workers"))
    with ExitStack() as stack:
        on_line = machines.on_line or stack.enter_context(logs(folder / FOLDER, secret_values(job)))
        scratch = folder / SCRATCH
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir()
        process = start_cluster(
            job.cluster,
            machines,
            threads=job.threads and max(1, job.threads // job.cluster.workers),
            path=[modules, cwd],
            scratch=scratch,
            on_line=on_line,
            dashboard=machines.on_line is None,
            beside=1 if job.beside is msgspec.UNSET else job.beside,
        )
        stack.callback(process.close)
        cluster = Cluster(job.cluster, machines, process)
        deadline = None if job.timeout_s is None else cluster.clock + job.timeout_s
        kernel = None
        error = process.wait("address", stop=stop, deadline=deadline)
        if error is None:
            kernel = start_kernel(
                folder, cwd=cwd, threads=job.threads, project=project, kernel=job.kernel, variables=cluster.environment
            )
            stack.callback(kernel.close)
            process.watch(kernel.pid)
            error = process.wait("ready", stop=stop, deadline=deadline)
        if error is not None:
            result = msgspec.structs.replace(not_executed(job, error), kernel=job.kernel, cluster=cluster.end())
            write_result(result, job, folder)
            return result
        return execute(
            folder,
            cwd=cwd,
            project=project,
            kernel=kernel,
            stop=stop,
            on_progress=lambda progress: on_progress(replace(progress, note=cluster.dashboard)),
            cluster=cluster,
        )
