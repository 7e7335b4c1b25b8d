"""A step folder in, its result out: the function that both a local run and a remote job call.

    folder/job.json       what to do                        (read)
    folder/notebook.ipynb, modules/, in/                    (read)
    folder/out/           what the notebook writes
    folder/executed.ipynb the notebook with its outputs, also on failure
    folder/result.json    the StepResult, written last

Knows no run store, no registry, no cloud and no command line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runner.cluster import HERE, Machines
from runner.content import artifact, atomic_write, file_fact, stamp
from runner.errors import PipelineError, RunnerError, UsageError
from runner.escape import terminal
from runner.failpoint import reach
from runner.kernel.choose import OPENED, start
from runner.kernel.choose import SOURCE as SOURCE  # its name beside those of the step folder's other files
from runner.notebook.recorded import Report, read_scraps
from runner.notebook.redaction import Redactor
from runner.notebook.source import Cell, Notebook, read_notebook
from runner.paths import stays_below
from runner.pipeline.file import REGISTRATION
from runner.records import (
    STANDARD,
    Artifact,
    Opened,
    Registration,
    StepError,
    StepJob,
    StepResult,
    StepStatus,
    Value,
    encode,
    read,
    utc_text,
)
from runner.step.outcome import cells_run, out_of_memory_count, why_ended

if TYPE_CHECKING:  # papermill and ipykernel take 0.7 s to import
    from runner.cluster.process import Cluster
    from runner.kernel.standard import Kernel
    from runner.step.execution import Execution

JOB, RESULT, EXECUTED = "job.json", "result.json", "executed.ipynb"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """`done` of `total` code cells have run; `cell` is the number of the one that runs now."""

    step: str
    done: int
    total: int
    cell: int | None = None
    first_line: str = ""
    note: str = ""  # of the cluster: its size, and where its dashboard is
    unit: str = "cells"  # of `done` and `total`; keys of a mapped step
    report: Report | None = None  # what the notebook has just reported


def execute(
    folder: Path,
    *,
    cwd: Path | None = None,
    project: Path | None = None,
    kernel: Kernel | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    machines: Machines = HERE,
    cluster: Cluster | None = None,
) -> StepResult:
    """Execute the step folder and write its result.json.

    `cwd` is the kernel's working folder (default: the step's own snapshot of modules); files of `project` that cells
    read although they are no inputs are noted in the result. Setting `stop` interrupts the kernel; the step is then
    `interrupted`. The notebook's errors are in the result's `error`; errors of the folder itself raise RunnerError.
    A job that wants a cluster gets one on `machines`, of which this is the first; `cluster` is one that runs already.
    """
    job = read(StepJob, folder / JOB)
    if job.cluster is not None and cluster is None:
        from runner.step.on_cluster import execute_on_cluster  # which calls this function

        stop = stop or threading.Event()
        return execute_on_cluster(
            job, folder, cwd=cwd, project=project, stop=stop, on_progress=on_progress, machines=machines
        )
    notebook = read_notebook(folder / SOURCE)
    folder = folder.resolve()
    began, clock = (cluster.began, cluster.clock) if cluster is not None else (datetime.now(UTC), time.monotonic())
    ooms = out_of_memory_count()
    redactor = Redactor(secret_values(job))

    def attempt(kernel: Kernel) -> tuple[Execution, list[Any]]:
        _clear(job, folder)
        deadline = None if job.timeout_s is None else clock + job.timeout_s
        execution = _execution(
            job, notebook, folder, kernel, stop or threading.Event(), on_progress, redactor, deadline
        )
        if cluster is not None:
            execution.lost = cluster.process.lost
        return execution, _cells(execution, job, notebook, folder)

    def start_kernel(kind: str) -> Kernel:
        try:
            return start(folder, cwd=cwd, threads=job.threads, project=project, kernel=kind)
        except PipelineError as error:
            raise PipelineError(f"steps.{job.step}: {job.notebook}: {error}") from error

    execution, cells = attempt(kernel or start_kernel(job.kernel))
    why = execution.kernel.instead or execution.kernel.refused
    if why:
        log.warning("%s: executed by the standard kernel, because %s", job.step, terminal(why))
    if execution.kernel.refused:
        shutil.rmtree(folder / "out")
        execution, cells = attempt(start_kernel(STANDARD))
    error = why_ended(execution, cells, job, out_of_memory=out_of_memory_count() > ooms, redactor=redactor)
    error = error if cluster is None else cluster.process.error(error)
    outputs, inputs = dict[str, Artifact](), dict(job.inputs)
    registration = None
    if error is None:
        outputs, error = _outputs(job, folder)
    if error is None:
        error = _changed(job, folder)
    opened, opened_error = _opened(folder, project)
    error = error or opened_error
    scraps = read_scraps(folder / EXECUTED)
    if error is None and (folder / "out" / REGISTRATION).exists():
        registration = _without_secrets(read(Registration, folder / "out" / REGISTRATION), redactor)
    status: StepStatus = "succeeded" if error is None else "interrupted" if error.kind == "interrupted" else "failed"
    result = StepResult(
        status=status,
        started=utc_text(began),
        ended=utc_text(),
        seconds=round(time.monotonic() - clock, 3),
        cells=len(notebook.code),
        cells_run=cells_run(execution, cells),
        metrics=scraps.metrics,
        problems=scraps.problems,
        inputs=inputs,
        outputs=outputs,
        undeclared=_undeclared(outputs, folder) if error is None else [],
        executed=artifact(folder / EXECUTED, name=EXECUTED),
        error=error,
        kernel=execution.kernel.kind,
        threads=job.threads,
        registration=registration,
        opened=opened,
        redacted=redactor.redacted,
        cluster=cluster.end() if cluster is not None else None,
    )
    write_result(result, job, folder)
    return result


def write_result(result: StepResult, job: StepJob, folder: Path) -> None:
    """Write result.json, the last file of a step."""
    atomic_write(folder / RESULT, encode(result))
    reach("result written", job.step)


def _clear(job: StepJob, folder: Path) -> None:
    """Make the step folder as it is before its notebook runs."""
    for name in (RESULT, EXECUTED):
        (folder / name).unlink(missing_ok=True)
    _forget_bytecode(folder)
    for output in job.outputs.values():
        path = folder / "out" / output
        (path if output.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)


def _cells(execution: Execution, job: StepJob, notebook: Notebook, folder: Path) -> list[Any]:
    """Execute the notebook; how it ended is in `session`."""
    # imported here, as the kernel starts during this second of imports
    from runner.step.engine import execute as execute_notebook

    try:
        return execute_notebook(
            folder / SOURCE,
            _values(job, folder),
            language=notebook.language,
            kernel_name=notebook.kernel_name or "python3",
            execution=execution,
            secrets=job.secrets,
        )
    finally:
        execution.kernel.close()
        _forget_bytecode(folder)


def _forget_bytecode(folder: Path) -> None:
    """Otherwise Python executes the files in `__pycache__` instead of the module whose hash is recorded."""
    for cache in sorted((folder / "modules").rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)


def _values(job: StepJob, folder: Path) -> dict[str, Value]:
    """The values of the injected-parameters cell: inputs and outputs as absolute paths."""
    inputs: dict[str, Value] = {
        name: str(folder / fact.value) if fact.is_file else fact.value for name, fact in job.inputs.items()
    }
    outputs: dict[str, Value] = {name: str(folder / "out" / path) for name, path in job.outputs.items()}
    # the engine replaces these by code that reads the variable
    secrets: dict[str, Value] = {name: f"env:{variable}" for name, variable in job.secrets.items()}
    return job.parameters | secrets | inputs | outputs


def secret_values(job: StepJob) -> list[str]:
    """The values of the job's secrets. Raises UsageError where the environment lacks one."""
    missing = [variable for variable in job.secrets.values() if variable not in os.environ]
    if missing:
        raise UsageError(
            f"Step {job.step} takes a secret from the environment variable {missing[0]}, which is not set."
        )
    return [os.environ[variable] for variable in job.secrets.values()]


def _execution(
    job: StepJob,
    notebook: Notebook,
    folder: Path,
    kernel: Kernel,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    redactor: Redactor,
    deadline: float | None,
) -> Execution:
    from runner.step.execution import Execution, TimeLimits
    from runner.step.saving import Saver

    total = len(notebook.code)
    # papermill puts its cell right after the one tagged `parameters`, or first
    tagged = next((i for i, cell in enumerate(notebook.cells) if "parameters" in cell.tags), -1)
    values = bool(job.parameters or job.secrets or job.inputs or job.outputs)

    def source_cell(index: int) -> Cell | None:
        if not values or index <= tagged:
            return notebook.cells[index]
        return None if index == tagged + 1 else notebook.cells[index - 1]

    shown = Progress(job.step, 0, total)

    def on_cell(index: int, done: bool) -> None:
        nonlocal shown
        cell = source_cell(index)
        if cell is not None and cell.number is not None:
            shown = Progress(job.step, cell.number - (not done), total, cell.number, cell.first_line)
            on_progress(shown)

    def on_report(report: Report) -> None:
        words = f"{report.name} {report.value:.4g} at step {report.step:,}"
        on_progress(replace(shown, first_line=words, report=report))

    limits = TimeLimits(job.cell_timeout_s, deadline)
    return Execution(on_cell, stop, limits, kernel, Saver(folder / EXECUTED, redactor), on_report=on_report)


def _outputs(job: StepJob, folder: Path) -> tuple[dict[str, Artifact], StepError | None]:
    artifacts: dict[str, Artifact] = {}
    for name, path in job.outputs.items():
        try:
            reason = _output_problem(folder / "out" / path, is_folder=path.endswith("/"))
            if reason is None:
                artifacts[name] = artifact(folder / "out" / path, name=f"out/{path}")
                continue
        except RunnerError as error:
            reason = str(error)
        text = f"the notebook ended, but output `{name}` ({path}) {reason}. Write it to the path in `{name}`."
        return artifacts, StepError(kind="output missing", ename="OutputMissing", evalue=text)
    return artifacts, None


def _undeclared(outputs: dict[str, Artifact], folder: Path) -> list[str]:
    """Files in out/ that belong to no output, relative to it, by names that a record can hold. The request for a
    registration is not among them."""
    paths = {output.path.removeprefix("out/"): output for output in outputs.values()}
    declared = {REGISTRATION, *(path for path, output in paths.items() if output.files is None)}
    folders = tuple(path for path, output in paths.items() if output.files is not None)
    files = [path for path in (folder / "out").rglob("*") if path.is_symlink() or not path.is_dir()]
    names = sorted(path.relative_to(folder / "out").as_posix() for path in files)
    return [name for name in names if name not in declared and not name.startswith(folders) and stays_below(name)]


def _output_problem(path: Path, *, is_folder: bool) -> str | None:
    if is_folder:
        return None if path.is_dir() and any(path.iterdir()) else "is not a folder with something in it"
    return None if path.is_file() else "is not there"


def _changed(job: StepJob, folder: Path) -> StepError | None:
    """The error about an input whose bytes have changed since the job was made."""
    for name, fact in job.inputs.items():
        if fact.artifact is None or not fact.stamp or fact.as_ == "uri":
            continue
        path = folder / fact.value
        try:
            same = stamp(path) == fact.stamp or artifact(path, name=name).sha256 == fact.artifact.sha256
        except (OSError, RunnerError):
            same = False
        if not same:
            text = f"input `{name}` ({fact.source}) was changed while the step ran, so what it saw is not known"
            return StepError(kind="input changed", ename="InputChanged", evalue=text)
    return None


def _without_secrets(request: Registration, redactor: Redactor) -> Registration:
    (card, description), kinds = redactor.inside([request.card, request.description])
    redactor.note("what it registers", kinds)
    return msgspec.structs.replace(request, card=card, description=description)


def _opened(folder: Path, project: Path | None) -> tuple[dict[str, Opened], StepError | None]:
    """The project's files that cells read, as the kernel noted them, without folders and deleted files. An error for a
    file whose name no record can hold, because later nobody could tell whether it has changed."""
    opened: dict[str, Opened] = {}
    error: StepError | None = None
    if project is not None and (folder / OPENED).exists():
        for line in (folder / OPENED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(OSError, RunnerError, ValueError):
                name, cell = json.loads(line)
                fact = file_fact(project / name)
                if stays_below(name):
                    opened.setdefault(name, Opened(sha256=fact.sha256, cell=cell))
                else:
                    text = f"a cell read {name!r}, a name that cannot be recorded: control characters or no UTF-8."
                    error = StepError(kind="refused", ename="UnfitName", evalue=f"{text} Rename it", cell=cell)
        (folder / OPENED).unlink()
    return dict(sorted(opened.items())), error
