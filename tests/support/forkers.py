"""Processes that have imported what others start with and fork themselves for each: one of a kind for a run of the tests.

Each is asked by datagrams on a socket, and ends when nobody holds the other end. Where pytest has several processes, they
share them: those are themselves forks of one (workers.py), which starts a forker when it is first asked for something.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.kernel.forked.client import ALONE

WORKERS = str(Path(__file__).with_name("workers.py"))
_starting = threading.Lock()
_started: dict[str, socket.socket] = {}


@dataclass(frozen=True)
class Forker:
    """`line`, with the number of its socket's descriptor behind it, is its command; `variable` of the environment tells
    forks of pytest theirs."""

    variable: str
    line: Sequence[str]
    folder: str
    env: Mapping[str, str]

    def ask(self, data: bytes, descriptors: Sequence[int]) -> None:
        with _starting:
            if self.variable not in _started:
                _started[self.variable] = self._find() or self._start()
        socket.send_fds(_started[self.variable], [data], list(descriptors))

    def _find(self) -> socket.socket | None:
        number = os.environ.pop(self.variable, None)  # what this process starts has not the descriptor
        return None if number is None else socket.socket(fileno=int(number))

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = theirs.fileno()
        with theirs:
            process = subprocess.Popen(
                [*self.line, str(number)], cwd=self.folder, env=self.env, pass_fds=[number], stdin=subprocess.DEVNULL
            )
        atexit.register(process.wait)
        atexit.register(ours.close)  # which comes first
        return ours


def share(forkers: Sequence[Forker]) -> str:
    """Start the process that pytest's are forks of; how xdist is told to have them (`--tx`)."""
    asking, theirs = socket.socketpair()
    ends, passed = [asking], [theirs.fileno()]
    told = []
    for forker in forkers:
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.environ[forker.variable] = str(ours.fileno())
        told.append({**asdict(forker), "asked": other.fileno(), "asking": ours.fileno()})
        ends += [ours, other]
        passed += [ours.fileno(), other.fileno()]
    address = f"runner-tests-{secrets.token_hex(8)}"  # not a file: it goes with its process
    line = [sys.executable, WORKERS, "--fork", address, str(theirs.fileno()), json.dumps(told)]
    process = subprocess.Popen(line, env={**os.environ, **ALONE}, pass_fds=passed, stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.wait)
    for end in ends:
        atexit.register(end.close)
    return f"popen//python={shlex.join([sys.executable, '-I', '-S', WORKERS, address])}"
