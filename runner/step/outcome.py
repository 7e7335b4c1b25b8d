"""How an execution ended: which cell, what happened there, in a sentence."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.notebook.redaction import Redactor
from runner.notebook.source import first_line
from runner.records import StepError, StepJob, StepResult, StepStatus, utc_text

if TYPE_CHECKING:
    from runner.step.execution import CellError, Execution

UNNAMED = ("NoneType", "<Error>")  # IPython's name of an error whose value could not be shown, nbclient's of none
NOT_THE_END = "a notebook succeeds by reaching its end"


def not_executed(job: StepJob, error: StepError) -> StepResult:
    """The result of a step of which no cell was executed."""
    now, inputs = utc_text(), dict(job.inputs)
    status: StepStatus = "interrupted" if error.kind == "interrupted" else "failed"
    return StepResult(
        status=status, started=now, ended=now, seconds=0.0, cells=0, cells_run=0, inputs=inputs, error=error
    )


def cells_run(execution: Execution, cells: list[Any]) -> int:
    """Code cells that ran to their end, without the injected one."""
    return sum(
        cell.cell_type == "code" and cell.execution_count is not None
        for index, cell in enumerate(cells)
        if execution.ending == "end" or execution.index is None or index < execution.index
    )


def why_ended(
    execution: Execution, cells: list[Any], job: StepJob, *, out_of_memory: bool, redactor: Redactor
) -> StepError | None:
    """Why the notebook did not reach its end; None where it did."""
    if execution.ending == "end":
        return None
    cell = cells[execution.index] if execution.index is not None else None
    before = cells[: execution.index or 0]
    number = 1 + sum(other.cell_type == "code" and other.execution_count is not None for other in before)
    error = _cell_error(execution, (cell or {}).get("outputs", []))
    kind, ename, evalue = _ending(execution, job, out_of_memory, error)
    traceback = error.traceback if error is not None else execution.last_words.splitlines()
    # a dying kernel's last words are not among the outputs, which have been redacted already
    (ename, evalue, traceback), _ = redactor.inside([ename, evalue, traceback])
    line = first_line(cell.source) if cell is not None else ""
    return StepError(kind=kind, ename=ename, evalue=evalue, cell=number, first_line=line, traceback=traceback)


def _cell_error(execution: Execution, outputs: list[Any]) -> CellError | None:
    """The exception that ended the cell: as its error output has it, otherwise as the kernel's reply has it.

    IPython prints exception groups and its own usage errors to stderr, and a library's handler may show nothing.
    """
    from runner.step.execution import CellError  # loaded by now, but not when `execute` is imported

    replied = execution.error
    for output in reversed([output for output in outputs if output.output_type == "error"]):
        if replied is None or replied.ename == output.ename or replied.ename in UNNAMED:
            return CellError(output.ename, output.evalue, list(output.traceback))
    if replied is None:
        return None
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    return replace(replied, traceback=printed.splitlines())


def _ending(execution: Execution, job: StepJob, out_of_memory: bool, error: CellError | None) -> tuple[Any, str, str]:
    """(kind, name, sentence) of an execution that did not reach the notebook's end."""
    match execution.ending:
        case "left":
            return "stopped early", "SystemExit", f"the cell called exit(); {NOT_THE_END}"
        case "error" if error is not None:
            return _exception(error)
        case "cell timeout":
            return "timeout", "CellTimeout", f"the cell ran longer than cell_timeout_s = {execution.limit_s:g}"
        case "step timeout":
            return "timeout", "StepTimeout", f"the step ran longer than timeout_s = {job.timeout_s:g}"
        case "stopped":
            return "interrupted", "Interrupted", "the run was told to stop"
        case "lost":
            return "cluster lost", "ClusterLost", "the cluster that it worked on has ended"
        case "silent":
            return "kernel died", "KernelSilent", "the kernel runs, and did not say how the cell has ended"
    return _process_end(execution.exit_code, execution.last_words[-400:], out_of_memory)


def _exception(error: CellError) -> tuple[Any, str, str]:
    if error.ename == "SystemExit":
        code = f" with {error.evalue}" if error.evalue else ""
        return "stopped early", "SystemExit", f"the cell left{code}; {NOT_THE_END}"
    if not (error.ename or error.evalue):
        return "exception", "Error", "the kernel gave no reason"
    if not error.ename and error.evalue.isdigit():  # as shells' kernels have it
        return "exception", "Error", f"exit code {error.evalue}"
    return "exception", error.ename or "Error", error.evalue


def _process_end(code: int | None, last_words: str, out_of_memory: bool) -> tuple[Any, str, str]:
    if code is None:
        return "kernel died", "KernelDied", f"the kernel did not answer. {last_words}".strip()
    if code == 0:
        return "stopped early", "KernelExited", f"the kernel process exited; {NOT_THE_END}"
    if code > 0:
        return "kernel died", "KernelDied", f"the kernel process exited with code {code}. {last_words}".strip()
    if code == -signal.SIGKILL and out_of_memory:
        return "out of memory", "OutOfMemory", "the kernel was killed because the memory was used up"
    return "kernel died", "KernelDied", f"the kernel was killed by {signal.Signals(-code).name}"


def out_of_memory_count(root: Path = Path("/")) -> int:
    """How often a process has been killed for memory so far; 0 where it is not known.

    In this process's control group and those below it; if that is not known, on the whole machine, which may count
    those of other containers. `root` is that of the file system.
    """
    for file in (*_group_files(root), root / "proc/vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _group_files(root: Path) -> Iterator[Path]:
    """Files of the control group; a container sees its own group as the root, whatever its name is outside."""
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for group in (path.lstrip("/"), ""):
                if "memory" in controllers.split(","):
                    yield groups / "memory" / group / "memory.oom_control"  # version 1
                elif number == "0":
                    yield groups / group / "memory.events"  # version 2
