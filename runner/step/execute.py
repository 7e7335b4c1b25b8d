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
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.content import artifact, atomic_write, file_fact, stamp
from runner.errors import RunnerError, UsageError
from runner.failpoint import reach
from runner.pipeline.credentials import Redactor
from runner.pipeline.notebook import Cell, Notebook, imported_names, python_source, read_notebook
from runner.pipeline.scraps import read_scraps
from runner.records import (
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

if TYPE_CHECKING:  # papermill and ipykernel take 0.7 s to import
    from runner.step.client import Session
    from runner.step.process import KernelProcess

JOB, RESULT, SOURCE, EXECUTED, OPENED = "job.json", "result.json", "notebook.ipynb", "executed.ipynb", "opened.jsonl"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """Where a step is: `done` of `total` code cells, and the one that runs now."""

    step: str
    done: int
    total: int
    cell: int | None = None
    first_line: str = ""


def start(folder: Path, *, cwd: Path | None = None, threads: int = 0, project: Path | None = None) -> KernelProcess:
    """The kernel for the step folder, started ahead of `execute` so that it is ready when its inputs are.

    Needs the notebook and its modules there; job.json may still be missing.
    """
    from runner.step.process import start_kernel

    notebook = read_notebook(folder / SOURCE)
    modules = folder / "modules"
    here = cwd if cwd is not None and cwd.is_dir() else modules
    here.mkdir(exist_ok=True)
    return start_kernel(
        cwd=here,
        environment=_environment(threads, folder, [modules, here], _preload(notebook), project),
        language=notebook.language,
        kernel_name=notebook.kernel_name,
    )


def execute(
    folder: Path,
    *,
    cwd: Path | None = None,
    project: Path | None = None,
    kernel: KernelProcess | None = None,
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
    (folder / RESULT).unlink(missing_ok=True)
    (folder / EXECUTED).unlink(missing_ok=True)
    for place in job.outputs.values():
        target = folder / "out" / place
        (target if place.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    began = datetime.now(UTC)
    clock = time.monotonic()
    ooms = _out_of_memory_count()
    redactor = Redactor(_secret_values(job))
    session = _session(
        job,
        notebook,
        folder,
        kernel or start(folder, cwd=cwd, threads=job.threads, project=project),
        stop or threading.Event(),
        on_progress,
        redactor,
    )
    # late: with no kernel started yet, this second of imports would come before it instead of beside it
    from runner.step.engine import execute as execute_notebook

    try:
        cells = execute_notebook(
            folder / SOURCE,
            _values(job, folder),
            language=notebook.language,
            kernel_name=notebook.kernel_name or "python3",
            session=session,
            secrets=job.secrets,
        )
    finally:
        session.kernel.close()
        shutil.rmtree(folder / "modules" / "__pycache__", ignore_errors=True)
    error = _error(session, cells, job, _out_of_memory_count() > ooms, redactor)
    outputs, inputs = dict[str, Artifact](), dict(job.inputs)
    registration = None
    if error is None:
        outputs, error = _outputs(job, folder)
    if error is None:
        error = _changed(job, folder)
    scraps = read_scraps(folder / EXECUTED)
    if error is None and (folder / "out" / "registration.json").exists():
        registration = read(Registration, folder / "out" / "registration.json")
    status: StepStatus = "succeeded" if error is None else "interrupted" if error.kind == "interrupted" else "failed"
    result = StepResult(
        status=status,
        started=_utc(began),
        ended=_utc(datetime.now(UTC)),
        seconds=round(time.monotonic() - clock, 3),
        cells=len(notebook.code),
        cells_run=_cells_run(session, cells),
        metrics=scraps.metrics,
        problems=scraps.problems,
        inputs=inputs,
        outputs=outputs,
        executed=artifact(folder / EXECUTED, name=EXECUTED),
        error=error,
        kernel=job.kernel,
        threads=job.threads,
        registration=registration,
        opened=_opened(folder, project),
        redacted=redactor.found,
    )
    atomic_write(folder / RESULT, encode(result))
    reach("result written", job.step)
    return result


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


def _environment(
    threads: int, folder: Path, path: list[Path], preload: list[str], project: Path | None
) -> dict[str, str]:
    environment = dict(os.environ)
    # set by test runners, and ipykernel would then not capture what C libraries print
    environment.pop("PYTEST_CURRENT_TEST", None)
    environment.update(
        RUNNER_STEP_FOLDER=str(folder.resolve()),
        RUNNER_PATH=os.pathsep.join(str(place.resolve()) for place in path),
        RUNNER_PRELOAD=",".join(preload),
        # the order of a set of strings must not change a result from run to run
        PYTHONHASHSEED=os.environ.get("PYTHONHASHSEED", "0"),
    )
    # OpenMP's threads would spin while they wait for one that another process keeps from its core: five times slower
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    (folder / OPENED).unlink(missing_ok=True)
    if project is not None:
        environment.update(RUNNER_PROJECT=str(project.resolve()), RUNNER_OPENED=str((folder / OPENED).resolve()))
    if threads:
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    return environment


def _preload(notebook: Notebook) -> list[str]:
    """Installed packages the notebook imports, which its kernel may load while it waits; never the project's own."""
    from importlib.util import find_spec

    names = sorted(set().union(*(imported_names(python_source(cell)) for cell in notebook.code)))
    beside = {place.stem for place in notebook.path.parent.glob("*.py")} | {"runner"}
    found = []
    for name in names:
        top = name.partition(".")[0]
        if top in beside or (notebook.path.parent / "modules" / f"{top}.py").exists():
            continue
        if (notebook.path.parent / "modules" / top).exists():
            continue
        with contextlib.suppress(ImportError, ValueError):
            if find_spec(top) is not None:
                found.append(name)
    if "runner.scraps" in names:
        found.append("scrapbook")  # by which it records
    return found


def _session(
    job: StepJob,
    notebook: Notebook,
    folder: Path,
    kernel: KernelProcess,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    redactor: Redactor,
) -> Session:
    from runner.step.client import Limits, Session
    from runner.step.engine import Saver

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

    deadline = None if job.timeout_s is None else time.monotonic() + job.timeout_s
    return Session(on_cell, stop, Limits(job.cell_timeout_s, deadline), kernel, Saver(folder / EXECUTED, redactor))


def _cells_run(session: Session, cells: list[Any]) -> int:
    """Code cells that ran to their end, without the injected one."""
    return sum(
        cell.cell_type == "code" and cell.execution_count is not None
        for index, cell in enumerate(cells)
        if session.ending == "end" or session.index is None or index < session.index
    )


def _error(
    session: Session, cells: list[Any], job: StepJob, out_of_memory: bool, redactor: Redactor
) -> StepError | None:
    """Why the notebook did not reach its end; None where it did."""
    if session.ending == "end":
        return None
    cell = cells[session.index] if session.index is not None else None
    before = cells[: session.index or 0]
    number = 1 + sum(other.cell_type == "code" and other.execution_count is not None for other in before)
    source = cell.source if cell is not None else ""
    first = next((line.strip() for line in source.splitlines() if line.strip()), "")
    raised = next((out for out in reversed((cell or {}).get("outputs", [])) if out.output_type == "error"), None)
    kind, ename, evalue = _said(session, job, out_of_memory, raised)
    traceback = list(raised.traceback) if raised is not None else session.last_words.splitlines()
    (evalue, traceback), _ = redactor.inside([evalue, traceback])  # a dying kernel's last words never were an output
    return StepError(kind=kind, ename=ename, evalue=evalue, cell=number, first_line=first, traceback=traceback)


def _said(session: Session, job: StepJob, out_of_memory: bool, raised: Any) -> tuple[Any, str, str]:
    """(kind, name, sentence) of an ending other than the notebook's own."""
    if session.ending == "error" and raised is not None:
        if raised.ename == "SystemExit":
            code = f" with {raised.evalue}" if raised.evalue else ""
            return "stopped early", "SystemExit", f"the cell left{code}; a notebook succeeds by reaching its end"
        return "exception", raised.ename, raised.evalue
    if session.ending == "cell timeout":
        return "timeout", "CellTimeout", f"the cell ran longer than cell_timeout_s = {job.cell_timeout_s:g}"
    if session.ending == "step timeout":
        return "timeout", "StepTimeout", f"the step ran longer than timeout_s = {job.timeout_s:g}"
    if session.ending == "stopped":
        return "interrupted", "Interrupted", "the run was told to stop"
    code_ = session.exit_code
    if code_ is None:
        return "kernel died", "KernelDied", f"the kernel did not answer. {session.last_words[-400:]}".strip()
    if code_ == 0:
        return "stopped early", "KernelExited", "the kernel process exited; a notebook succeeds by reaching its end"
    if code_ > 0:
        return (
            "kernel died",
            "KernelDied",
            f"the kernel process exited with code {code_}. {session.last_words[-400:]}".strip(),
        )
    name = signal.Signals(-code_).name
    if code_ == -signal.SIGKILL and out_of_memory:
        return "out of memory", "OutOfMemory", "the kernel was killed because the memory was used up"
    return "kernel died", "KernelDied", f"the kernel was killed by {name}"


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


def _wrong_kind(path: Path, place: str) -> str | None:
    if place.endswith("/"):
        return None if path.is_dir() and any(path.iterdir()) else "is no folder with something in it"
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


def _opened(folder: Path, project: Path | None) -> dict[str, Opened]:
    """The project's files that cells read, as the kernel noted them; directories and what is gone left out."""
    found: dict[str, Opened] = {}
    if project is not None and (folder / OPENED).exists():
        for line in (folder / OPENED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(OSError, RunnerError, ValueError):
                name, cell = json.loads(line)
                found.setdefault(name, Opened(sha256=file_fact(project / name).sha256, cell=cell))
        (folder / OPENED).unlink()
    return dict(sorted(found.items()))


def _out_of_memory_count() -> int:
    """How often this machine's kernel has killed for memory so far; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
