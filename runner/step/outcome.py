"""How an execution ended: which cell, what happened there, in a sentence."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.notebook.redaction import Redactor
from runner.notebook.source import first_line
from runner.records import StepError, StepJob

if TYPE_CHECKING:
    from runner.step.session import Session

NOT_TOLD = ("NoneType", "<Error>")  # IPython's word where a value could not be shown, and nbclient's for none


def cells_run(session: Session, cells: list[Any]) -> int:
    """Code cells that ran to their end, without the injected one."""
    return sum(
        cell.cell_type == "code" and cell.execution_count is not None
        for index, cell in enumerate(cells)
        if session.ending == "end" or session.index is None or index < session.index
    )


def why_ended(
    session: Session, cells: list[Any], job: StepJob, *, out_of_memory: bool, redactor: Redactor
) -> StepError | None:
    """Why the notebook did not reach its end; None where it did."""
    if session.ending == "end":
        return None
    cell = cells[session.index] if session.index is not None else None
    before = cells[: session.index or 0]
    number = 1 + sum(other.cell_type == "code" and other.execution_count is not None for other in before)
    source = cell.source if cell is not None else ""
    outputs = (cell or {}).get("outputs", [])
    raised = _raised(session, outputs)
    kind, ename, evalue = _said(session, job, out_of_memory, raised)
    traceback = raised.traceback if raised is not None else session.last_words.splitlines()
    # a dying kernel's last words never were an output
    (ename, evalue, traceback), _ = redactor.inside([ename, evalue, traceback])
    return StepError(
        kind=kind, ename=ename, evalue=evalue, cell=number, first_line=first_line(source), traceback=traceback
    )


@dataclass(frozen=True)
class _Raised:
    ename: str
    evalue: str
    traceback: list[str]


def _raised(session: Session, outputs: list[Any]) -> _Raised | None:
    """The exception that ended the cell: as its error output has it, else as the kernel has told it.

    IPython prints exception groups and its own usage errors to stderr, and a library's handler may show nothing.
    """
    told = session.raised
    shown = [out for out in outputs if out.output_type == "error"]
    for out in reversed(shown):
        if told is None or told.ename == out.ename or told.ename in NOT_TOLD:
            return _Raised(out.ename, out.evalue, list(out.traceback))
    if told is None:
        return None
    printed = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stderr")
    return _Raised(told.ename, told.evalue, printed.splitlines())


def _said(session: Session, job: StepJob, out_of_memory: bool, raised: _Raised | None) -> tuple[Any, str, str]:
    """(kind, name, sentence) of an ending other than the notebook's own."""
    if session.ending == "left":
        return "stopped early", "SystemExit", "the cell called exit(); a notebook succeeds by reaching its end"
    if session.ending == "error" and raised is not None:
        if raised.ename == "SystemExit":
            code = f" with {raised.evalue}" if raised.evalue else ""
            return "stopped early", "SystemExit", f"the cell left{code}; a notebook succeeds by reaching its end"
        if not (raised.ename or raised.evalue):
            return "exception", "Error", "the kernel gave no reason"
        if not raised.ename and raised.evalue.isdigit():  # as shells' kernels have it
            return "exception", "Error", f"exit code {raised.evalue}"
        return "exception", raised.ename or "Error", raised.evalue
    if session.ending == "cell timeout":
        return "timeout", "CellTimeout", f"the cell ran longer than cell_timeout_s = {session.limit_s:g}"
    if session.ending == "step timeout":
        return "timeout", "StepTimeout", f"the step ran longer than timeout_s = {job.timeout_s:g}"
    if session.ending == "stopped":
        return "interrupted", "Interrupted", "the run was told to stop"
    if session.ending == "silent":
        return "kernel died", "KernelSilent", "the kernel runs, and did not say how the cell has ended"
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


def out_of_memory_count(root: Path = Path("/")) -> int:
    """How often a process has been killed for memory so far; 0 where nothing says.

    Of this process's control group and those below it; only where that does not say, of the whole machine, where
    another container's may count too. `root` is that of the file system.
    """
    for file in (*_group_files(root), root / "proc/vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _group_files(root: Path) -> Iterator[Path]:
    """Where the control group may tell; a container sees its own group as the root, whatever its name is outside."""
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for place in (path.lstrip("/"), ""):
                if "memory" in controllers.split(","):
                    yield groups / "memory" / place / "memory.oom_control"  # version 1
                elif number == "0":
                    yield groups / place / "memory.events"  # version 2
