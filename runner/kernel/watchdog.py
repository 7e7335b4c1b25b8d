"""A process that kills kernels once their runner has ended, whatever their cells are doing. Linux only.

A kernel's own thread cannot: a cell that holds the interpreter (a regular expression is enough) stops it. Nor can
PR_SET_PDEATHSIG, which fires when the *thread* that started the kernel ends. Forked early, so it is small.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from runner.kernel.process_tree import group_runs, kill_family

POLL_MS = 500.0
LINE_BYTES = 4096


class Watchdog:
    """Watches kernels by their process groups; it ends by itself when its parent and all that it watches have ended."""

    def __init__(self, owner: int) -> None:
        """Fork it; `works` says whether that is possible. `owner` is the runner's process; if that has ended, this
        process and its group are killed."""
        self.works = True
        try:
            runner = os.pidfd_open(owner)
        except ProcessLookupError:
            os.killpg(os.getpgrp(), signal.SIGKILL)
            raise
        except OSError:  # a container's rules forbid it
            self.works, self._write = False, os.open(os.devnull, os.O_WRONLY)
            return
        read, self._write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                # a grandchild, so that no cell that waits for its children finds it
                if os.fork() == 0:
                    os.setsid()
                    _keep_only(runner, read)
                    _watch(runner, read)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(runner)
        os.close(read)

    def add(self, group: int) -> None:
        os.write(self._write, f"{group}\n".encode())

    def drop(self, group: int) -> None:
        os.write(self._write, f"-{group}\n".encode())

    def close(self) -> None:
        """In a process forked from its parent, which keeps it."""
        os.close(self._write)


def _watch(runner: int, commands: int) -> None:
    groups: set[int] = set()
    poll = select.poll()
    for descriptor in (runner, commands):
        poll.register(descriptor, select.POLLIN)
    parent_ended, rest = False, b""
    while not parent_ended or any(group_runs(group) for group in groups):
        ready = [descriptor for descriptor, _ in poll.poll(POLL_MS if parent_ended else None)]
        if commands in ready:
            data = os.read(commands, LINE_BYTES)
            if not data:
                parent_ended = True
                poll.unregister(commands)
            *lines, rest = (rest + data).split(b"\n")
            for number in map(int, lines):
                (groups.add if number > 0 else groups.discard)(abs(number))
        elif runner in ready:
            for group in groups:
                kill_family(group)
            return


def _keep_only(*descriptors: int) -> None:
    """Close all others, so that no reader waits for this process to close a descriptor that it inherited."""
    for name in [entry.name for entry in Path("/proc/self/fd").iterdir()]:
        if int(name) not in (*descriptors, 0, 1, 2):
            with contextlib.suppress(OSError):
                os.close(int(name))
