"""A pipeline with its notebooks and modules as they were at a git commit, read from git's objects."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from runner.errors import UsageError
from runner.pipeline.file import load


def commit(root: Path, revision: str) -> str:
    """The full name of the commit that `revision` means in the repository of `root`. Raises UsageError."""
    if _git(root, "rev-parse", "--show-toplevel") is None:
        raise UsageError(f"{root} is in no git repository. Name two runs, or one revision inside a repository.")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found is None:
        raise UsageError(
            f"git knows no revision {revision!r} in {root}. See `git log --oneline`; to compare runs, name two."
        )
    return found.decode().strip()


def check_out(root: Path, name: str, commit: str, scratch: Path) -> Path:
    """The pipeline file, its notebooks and the modules beside them, as they were at the commit, below `scratch`.

    Raises UsageError where the commit has no such file, PipelineError where it does not read.
    """
    prefix = (_git(root, "rev-parse", "--show-prefix") or b"").decode().strip()
    file = f"{prefix}{name}"
    if not _write(root, commit, [file], scratch):
        raise UsageError(f"There is no {file} at {commit[:12]}.")
    notebooks = [os.path.normpath(f"{prefix}{spec.notebook}") for spec in load(scratch / file).steps.values()]
    inside = [path for path in dict.fromkeys(notebooks) if not path.startswith(("/", ".."))]
    folders = {str(Path(path).parent) for path in inside}
    listed = _git(root, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, "--", *sorted(folders)) or b""
    modules = [path for path in os.fsdecode(listed).split("\0") if path.endswith(".py")]
    _write(root, commit, [*inside, *modules], scratch)
    return scratch / file


def _write(root: Path, commit: str, paths: Sequence[str], scratch: Path) -> int:
    """Write the files as they were at the commit, those that it has; how many."""
    asked = "".join(f"{commit}:{path}\n" for path in paths if "\n" not in path)
    answer = _git(root, "cat-file", "--batch", stdin=os.fsencode(asked)) or b""
    written = 0
    for path in paths:
        if "\n" in path:
            continue
        head, _, answer = answer.partition(b"\n")
        if head.endswith(b" missing"):
            continue
        size = int(head.split()[-1])
        if head.split()[-2] == b"blob":
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(answer[:size])
            written += 1
        answer = answer[size + 1 :]
    return written


def _git(root: Path, *arguments: str, stdin: bytes = b"") -> bytes | None:
    """What git prints; None where it does not succeed. Raises UsageError where there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], input=stdin, capture_output=True, timeout=60, check=False
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed here; name two runs instead.") from error
    return done.stdout if done.returncode == 0 else None
