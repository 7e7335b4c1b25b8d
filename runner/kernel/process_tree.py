"""The processes that a kernel's cells have started, also those in sessions of their own. Standard library only.

Where there is no /proc, a kernel has no family beyond its process group.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
OWN_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Process:
    pid: int
    started: str  # clock ticks since boot: with the pid, this process and no later one


def python(module: str) -> list[str]:
    """The command that runs the module's `main`. No file in the working folder hides a package from it; `-P` would do
    this too, but change the interpreter's flags, which cells see."""
    start = f"import sys; sys.flags.safe_path or sys.path.pop(0); from {module} import main; main()"
    return [sys.executable, "-c", start]


def become_subreaper() -> None:
    """Have daemons that cells start become children of this process instead of init's."""
    if sys.platform.startswith("linux"):
        _libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@functools.cache
def _libc() -> Any:
    import ctypes  # not needed by whoever only ends processes

    return ctypes.CDLL(None)


def descendants(pid: int) -> list[Process]:
    children: dict[int, list[Process]] = {}
    for process, parent in _all():
        children.setdefault(parent, []).append(process)
    processes: list[Process] = []
    pending = [pid]
    while pending:
        own = children.get(pending.pop(), [])
        processes += own
        pending += [process.pid for process in own]
    return processes


def own_children(tasks: Path = OWN_TASKS) -> list[Process]:
    """This process's children that are not zombies. Only for one that waits for each of them by itself: where others
    end and are waited for meanwhile, Linux may leave some out."""
    processes = []
    try:
        lists = [(task / "children").read_bytes() for task in tasks.iterdir()]
    except OSError:  # a Linux without these lists: every process is asked for its parent
        return [process for process, parent in _all() if parent == os.getpid()]
    for pid in b" ".join(lists).split():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, *rest = _stat(int(pid))
            if state != "Z":
                processes.append(Process(int(pid), rest[17]))
    return processes


def kill(processes: Iterable[Process]) -> None:
    """Kill those that still run."""
    for process in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if _stat(process.pid)[19] == process.started:
                os.kill(process.pid, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    """Send the signal to the process group, if it still runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def group_runs(group: int) -> bool:
    """Whether a process of the group runs. One that has ended and that nobody waits for does not count: in a container
    the first program is the parent of all orphans, and may not wait for them."""
    for process, _ in _all():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(_stat(process.pid)[2]) == group:
                return True
    return False


def kill_family(pid: int) -> None:
    """Kill a kernel's process group and all its descendants, if there are any."""
    family = descendants(pid)
    signal_group(pid, signal.SIGKILL)
    kill(family)


def kill_strays() -> None:
    """Kill the descendants of this process that have left its group."""
    for process in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) != os.getpgrp():
                kill([process])


def _all() -> Iterable[tuple[Process, int]]:
    """Every process that is not a zombie, with its parent's pid."""
    with contextlib.suppress(OSError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    state, parent, *rest = _stat(int(entry.name))
                    if state != "Z":
                        yield Process(int(entry.name), rest[17]), int(parent)


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third on, which is the state."""
    # the name before may be no UTF-8: the kernel cuts it after 15 bytes
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
