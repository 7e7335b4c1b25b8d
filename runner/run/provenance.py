"""What a run was made of besides its inputs: the commit and what differs from it, the interpreter and its packages."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import socket
from collections.abc import Iterable
from pathlib import Path

from runner.manifest import Environment, GitState
from runner.notebook.source import code_cells
from runner.run import packages
from runner.run.checkout import Checkout, Question

# what can change a result and holds no secret
VARIABLES = ("LANG", "LC_ALL", "TZ", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
             "OPENBLAS_CORETYPE", "CUDA_VISIBLE_DEVICES")  # fmt: skip


def who() -> str:
    """`account@host`: the account that this process runs as. LOGNAME, USER and SUDO_USER can be set to anything."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"


def environment() -> Environment:
    return Environment(
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        packages=packages.versions(),
        variables={
            name: os.environ[name].encode(errors="backslashreplace").decode()
            for name in VARIABLES
            if name in os.environ
        },
    )


def git_state(root: Path, notebooks: Iterable[Path]) -> GitState | None:
    """The commit `root` is at, and the code cells of `notebooks` that differ from it; None outside a repository."""
    answer = Checkout(str(root)).answer()
    if not answer:
        return None
    commit, branch, top, status = answer
    assert commit is not None
    paths = {entry[3:] for entry in (status or "").split("\0") if entry}
    modified: dict[str, list[str]] = {}
    others = set(paths)
    for notebook in notebooks:
        with contextlib.suppress(ValueError):
            relative = notebook.resolve().relative_to(Path(top or ".").resolve()).as_posix()
            if relative in paths or status is None:
                others.discard(relative)
                cells = _changed_cells(root, relative, notebook)
                if cells:
                    modified[relative] = cells
    return GitState(
        commit=commit,
        branch=branch,
        modified=modified,
        dirty=bool(others) or status is None,  # git cannot say, for example where a filter's environment is gone
    )


def _changed_cells(root: Path, relative: str, notebook: Path) -> list[str]:
    """The code cells, as `[n]`, whose source is not in the committed notebook; outputs and prose do not count."""
    code, before = Question(str(root), "show", f"HEAD:{relative}").answer()
    if code != 0:
        return ["new"]
    try:
        committed = code_cells(json.loads(before))
    except (ValueError, RecursionError):
        return ["new"]  # what was committed is not a notebook
    now = code_cells(json.loads(notebook.read_bytes()))
    if now == committed:
        return []
    known = set(committed)
    return [f"[{number}]" for number, source in enumerate(now, 1) if source not in known] or ["order"]
