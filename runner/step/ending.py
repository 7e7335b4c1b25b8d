"""How an execution ended: which cell, what happened there, in a sentence."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.pipeline.credentials import Redactor
from runner.records import StepError, StepJob

if TYPE_CHECKING:  # papermill
    from runner.step.client import Session


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
        return "exception", raised.ename or "Error", raised.evalue or "the kernel gave no reason"
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
