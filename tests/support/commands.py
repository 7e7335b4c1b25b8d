"""The command line, started by tests: as a process, or as a fork of one that has its imports done."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.kernel.forked.client import ALONE
from support.forkers import Forker

TESTS = Path(__file__).parents[1]
TIMEOUT_S = 240
# what an interpreter, or a library, reads as it starts, so that a fork comes too late for it
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC", "OMP_", "OPENBLAS_", "MPL", "ARROW_", "UV_")


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, self.err
        return json.loads(self.out)


def command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "runner", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what is meant for pytest or would have each kernel compile its imports.

    No page of a run's report is written: tests that look at pages ask for them, and half of a small run's time is
    theirs.
    """
    left_out = ("RUNNER_", "PYTEST_", "PYTHONDONTWRITEBYTECODE", "JUPYTER_SERVER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "RUNNER_NO_REPORT": "1", **(extra or {})}


def execute(*arguments: str, folder: Path, env: Mapping[str, str]) -> Done:
    """A process of its own, from its start."""
    done = subprocess.run(
        command(*arguments), cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    return Done(done.returncode, done.stdout, done.stderr)


def fork(*arguments: str, folder: Path, env: Mapping[str, str]) -> Done:
    """As `execute`, in a process forked from one that has imported what commands import; half a second less.

    Where the environment has what is read at a start, or this is not Linux, it is `execute`.
    """
    early = (name for name in {*env, *AT_START} if name.startswith(READ_AT_START))
    if sys.platform != "linux" or any(env.get(name) != AT_START.get(name) for name in early):
        return execute(*arguments, folder=folder, env=env)
    os.umask(umask := os.umask(0o022))
    request = {"arguments": arguments, "folder": str(folder.absolute()), "environment": dict(env), "umask": umask}
    pipes = [os.pipe() for _ in range(3)]
    try:
        FORKER.ask(json.dumps(request).encode(), [write for _, write in pipes])
    finally:
        for _, write in pipes:
            os.close(write)
    out, err, code = _read([read for read, _ in pipes], arguments)
    return Done(int(code), out, err)


def _read(pipes: list[int], arguments: Sequence[str]) -> list[str]:
    """All that comes from each until its end."""
    parts: dict[int, list[bytes]] = {pipe: [] for pipe in pipes}
    end = time.monotonic() + TIMEOUT_S
    with contextlib.ExitStack() as stack:
        for pipe in pipes:
            stack.callback(os.close, pipe)
        selector = stack.enter_context(selectors.DefaultSelector())
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(end - time.monotonic()):
                part = os.read(key.fd, 1 << 16)
                if part:
                    parts[key.fd].append(part)
                else:
                    selector.unregister(key.fd)
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(list(arguments), TIMEOUT_S)
    return [b"".join(parts[pipe]).decode().replace("\r\n", "\n") for pipe in pipes]


AT_START = environment()  # before any test has changed it
FORKER = Forker("PYTEST_COMMANDS", (sys.executable, "-m", "support.warm"), str(TESTS), {**AT_START, **ALONE})
