"""What a run was made of besides its inputs: the commit and what differs from it, the interpreter and its packages."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import pwd
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from runner.manifest import Environment, GitState
from runner.pipeline.notebook import code_cells
from runner.run import packages

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
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def git_state(root: Path, notebooks: Iterable[Path]) -> GitState | None:
    """The commit `root` is at, and the code cells of `notebooks` that differ from it; None outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(root, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")
    top = Path((_git(root, "rev-parse", "--show-toplevel") or ".").strip())
    paths = {entry[3:] for entry in (status or "").split("\0") if entry}
    modified: dict[str, list[str]] = {}
    others = set(paths)
    for notebook in notebooks:
        with contextlib.suppress(ValueError):
            relative = notebook.resolve().relative_to(top.resolve()).as_posix()
            if relative in paths or status is None:
                others.discard(relative)
                cells = _changed_cells(root, relative, notebook)
                if cells:
                    modified[relative] = cells
    branch = _git(root, "symbolic-ref", "--short", "-q", "HEAD")
    return GitState(
        commit=commit.strip(),
        branch=branch.strip() if branch else None,
        modified=modified,
        dirty=bool(others) or status is None,  # git cannot say, for example where a filter's environment is gone
    )


def _changed_cells(root: Path, relative: str, notebook: Path) -> list[str]:
    """The code cells, as `[n]`, whose source is not in the committed notebook; outputs and prose do not count."""
    before = _git(root, "show", f"HEAD:{relative}")
    if before is None:
        return ["new"]
    try:
        committed = code_cells(json.loads(before))
    except ValueError:
        return ["new"]  # what was committed is no notebook
    now = code_cells(json.loads(notebook.read_bytes()))
    if now == committed:
        return []
    known = set(committed)
    return [f"[{number}]" for number, source in enumerate(now, 1) if source not in known] or ["order"]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
