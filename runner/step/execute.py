"""A step folder in, its result out: the one function that both a local run and a remote job call.

    folder/job.json       what to do                        (read)
    folder/notebook.ipynb, modules/, in/                    (read)
    folder/out/           what the notebook writes
    folder/executed.ipynb the notebook with its outputs, also on failure
    folder/result.json    how it went, written last

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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runner.content import artifact, atomic_write, file_fact, stamp
from runner.errors import PipelineError, RunnerError, UsageError
from runner.escape import terminal
from runner.failpoint import reach
from runner.kernel.choose import OPENED, start
from runner.kernel.choose import SOURCE as SOURCE  # its name beside those of the step folder's other files
from runner.notebook.recorded import read_scraps
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
)
from runner.step.outcome import cells_run, out_of_memory_count, why_ended

if TYPE_CHECKING:  # papermill and ipykernel take 0.7 s to import
    from runner.kernel.standard import Kernel
    from runner.step.session import Session

JOB, RESULT, EXECUTED = "job.json", "result.json", "executed.ipynb"


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a step is: `done` of `total` code cells, and the one that runs now."""

    step: str
    done: int
    total: int
    cell: int | None = None
    first_line: str = ""


def execute(
    folder: Path,
    *,
    cwd: Path | None = None,
    project: Path | None = None,
    kernel: Kernel | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StepResult:
    """Execute the step folder and write its result.json.

    `cwd` is the kernel's working folder (default: the step's own snapshot of modules); files of `project` that cells
    read without their being inputs are noted in the result. Setting `stop` interrupts the
    kernel; the step is then `interrupted`. What the notebook does wrong is in the result's `error`; only what
    concerns the folder itself raises (a RunnerError).
    """
    job = read(StepJob, folder / JOB)
    notebook = read_notebook(folder / SOURCE)
    folder = folder.resolve()
    began = datetime.now(UTC)
    clock = time.monotonic()
    ooms = out_of_memory_count()
    redactor = Redactor(_secret_values(job))

    def attempt(kernel: Kernel) -> tuple[Session, list[Any]]:
        _clear(job, folder)
        deadline = None if job.timeout_s is None else clock + job.timeout_s
        session = _session(job, notebook, folder, kernel, stop or threading.Event(), on_progress, redactor, deadline)
        return session, _cells(session, job, notebook, folder)

    def started(kind: str) -> Kernel:
        try:
            return start(folder, cwd=cwd, threads=job.threads, project=project, kernel=kind)
        except PipelineError as error:
            raise PipelineError(f"steps.{job.step}: {job.notebook}: {error}") from error

    session, cells = attempt(kernel or started(job.kernel))
    why = session.kernel.instead or session.kernel.refused
    if why:
        log.warning("%s: executed by the standard kernel, because %s", job.step, terminal(why))
    if session.kernel.refused:
        shutil.rmtree(folder / "out")
        session, cells = attempt(started(STANDARD))
    error = why_ended(session, cells, job, out_of_memory=out_of_memory_count() > ooms, redactor=redactor)
    outputs, inputs = dict[str, Artifact](), dict(job.inputs)
    registration = None
    if error is None:
        outputs, error = _outputs(job, folder)
    if error is None:
        error = _changed(job, folder)
    opened, unfit = _opened(folder, project)
    error = error or unfit
    scraps = read_scraps(folder / EXECUTED)
    if error is None and (folder / "out" / REGISTRATION).exists():
        registration = _without_secrets(read(Registration, folder / "out" / REGISTRATION), redactor)
    status: StepStatus = "succeeded" if error is None else "interrupted" if error.kind == "interrupted" else "failed"
    result = StepResult(
        status=status,
        started=_utc(began),
        ended=_utc(datetime.now(UTC)),
        seconds=round(time.monotonic() - clock, 3),
        cells=len(notebook.code),
        cells_run=cells_run(session, cells),
        metrics=scraps.metrics,
        problems=scraps.problems,
        inputs=inputs,
        outputs=outputs,
        undeclared=_undeclared(outputs, folder) if error is None else [],
        executed=artifact(folder / EXECUTED, name=EXECUTED),
        error=error,
        kernel=session.kernel.kind,
        threads=job.threads,
        registration=registration,
        opened=opened,
        redacted=redactor.found,
    )
    atomic_write(folder / RESULT, encode(result))
    reach("result written", job.step)
    return result


def _clear(job: StepJob, folder: Path) -> None:
    """The step folder as it is before its notebook runs."""
    for name in (RESULT, EXECUTED):
        (folder / name).unlink(missing_ok=True)
    _forget_bytecode(folder)
    for place in job.outputs.values():
        target = folder / "out" / place
        (target if place.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)


def _cells(session: Session, job: StepJob, notebook: Notebook, folder: Path) -> list[Any]:
    """Execute the notebook; how it ended is in `session`."""
    # late: with no kernel started yet, this second of imports would come before it instead of beside it
    from runner.step.engine import execute as execute_notebook

    try:
        return execute_notebook(
            folder / SOURCE,
            _values(job, folder),
            language=notebook.language,
            kernel_name=notebook.kernel_name or "python3",
            session=session,
            secrets=job.secrets,
        )
    finally:
        session.kernel.close()
        _forget_bytecode(folder)


def _forget_bytecode(folder: Path) -> None:
    """Python would execute what lies in `__pycache__` instead of the module whose hash is known."""
    for cache in sorted((folder / "modules").rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _values(job: StepJob, folder: Path) -> dict[str, Value]:
    """What goes into the injected-parameters cell: inputs and outputs as absolute paths."""
    inputs: dict[str, Value] = {
        name: str(folder / fact.value) if fact.present and fact.as_ == "path" else fact.value
        for name, fact in job.inputs.items()
    }
    outputs: dict[str, Value] = {name: str(folder / "out" / place) for name, place in job.outputs.items()}
    # a secret's place is taken by its variable's name until the engine has the cell look it up
    return {
        **job.parameters,
        **{name: f"env:{variable}" for name, variable in job.secrets.items()},
        **inputs,
        **outputs,
    }


def _secret_values(job: StepJob) -> list[str]:
    missing = [variable for variable in job.secrets.values() if variable not in os.environ]
    if missing:
        raise UsageError(
            f"Step {job.step} takes a secret from the environment variable {missing[0]}, which is not set."
        )
    return [os.environ[variable] for variable in job.secrets.values()]


def _session(
    job: StepJob,
    notebook: Notebook,
    folder: Path,
    kernel: Kernel,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    redactor: Redactor,
    deadline: float | None,
) -> Session:
    from runner.step.saving import Saver
    from runner.step.session import Limits, Session

    total = len(notebook.code)
    # papermill puts its cell right after the one tagged `parameters`, or first
    tagged = next((i for i, cell in enumerate(notebook.cells) if "parameters" in cell.tags), -1)
    values = bool(job.parameters or job.secrets or job.inputs or job.outputs)

    def source_cell(index: int) -> Cell | None:
        if not values or index <= tagged:
            return notebook.cells[index]
        return None if index == tagged + 1 else notebook.cells[index - 1]

    def on_cell(index: int, done: bool) -> None:
        cell = source_cell(index)
        if cell is not None and cell.number is not None:
            on_progress(Progress(job.step, cell.number - (not done), total, cell.number, cell.first_line))

    return Session(on_cell, stop, Limits(job.cell_timeout_s, deadline), kernel, Saver(folder / EXECUTED, redactor))


def _outputs(job: StepJob, folder: Path) -> tuple[dict[str, Artifact], StepError | None]:
    found: dict[str, Artifact] = {}
    for name, place in job.outputs.items():
        path = folder / "out" / place
        wrong = _wrong_kind(path, place)
        if wrong is None:
            try:
                found[name] = artifact(path, name=f"out/{place}")
                continue
            except RunnerError as error:
                wrong = str(error)
        missing = StepError(
            kind="output missing",
            ename="OutputMissing",
            evalue=f"the notebook ended, but output `{name}` ({place}) {wrong}. Write it to the path in `{name}`.",
        )
        return found, missing
    return found, None


def _undeclared(outputs: dict[str, Artifact], folder: Path) -> list[str]:
    """Files in out/ that belong to no output, relative to it, by names that a record can hold. A registration's request
    is the runner's own."""
    ours = {REGISTRATION, *(found.path.removeprefix("out/") for found in outputs.values() if found.files is None)}
    folders = tuple(found.path.removeprefix("out/") for found in outputs.values() if found.files is not None)
    there = [path for path in (folder / "out").rglob("*") if path.is_symlink() or not path.is_dir()]
    names = sorted(path.relative_to(folder / "out").as_posix() for path in there)
    return [name for name in names if name not in ours and not name.startswith(folders) and stays_below(name)]


def _wrong_kind(path: Path, place: str) -> str | None:
    if place.endswith("/"):
        return None if path.is_dir() and any(path.iterdir()) else "is not a folder with something in it"
    return None if path.is_file() else "is not there"


def _changed(job: StepJob, folder: Path) -> StepError | None:
    """Inputs whose bytes are others than those the job was made with."""
    for name, fact in job.inputs.items():
        if fact.artifact is None or not fact.stamp or fact.as_ == "uri":
            continue
        path = folder / fact.value
        try:
            same = stamp(path) == fact.stamp or artifact(path, name=name).sha256 == fact.artifact.sha256
        except (OSError, RunnerError):
            same = False
        if not same:
            return StepError(
                kind="input changed",
                ename="InputChanged",
                evalue=f"input `{name}` ({fact.source}) was changed while the step ran, so what it saw is not known",
            )
    return None


def _without_secrets(asked: Registration, redactor: Redactor) -> Registration:
    (card, description), kinds = redactor.inside([asked.card, asked.description])
    redactor.note("what it registers", kinds)
    return msgspec.structs.replace(asked, card=card, description=description)


def _opened(folder: Path, project: Path | None) -> tuple[dict[str, Opened], StepError | None]:
    """The project's files that cells read, as the kernel noted them; directories and what is gone left out. An error
    for one whose name no record can hold, as whether it has changed could not be known."""
    found: dict[str, Opened] = {}
    unfit: StepError | None = None
    if project is not None and (folder / OPENED).exists():
        for line in (folder / OPENED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(OSError, RunnerError, ValueError):
                name, cell = json.loads(line)
                fact = file_fact(project / name)
                if stays_below(name):
                    found.setdefault(name, Opened(sha256=fact.sha256, cell=cell))
                else:
                    said = f"a cell read {name!r}, a name that cannot be recorded: control characters or no UTF-8."
                    unfit = StepError(kind="refused", ename="UnfitName", evalue=f"{said} Rename it", cell=cell)
        (folder / OPENED).unlink()
    return dict(sorted(found.items())), unfit
