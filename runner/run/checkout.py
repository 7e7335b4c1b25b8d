"""What git knows of a project's folder: commit, branch, and which tracked files differ.

A run records `GitStatus`. The fast path asks `GitFingerprint`: while its answer is equal, so is that of `GitStatus`,
and it needs no filter to run. Both do without `subprocess`, whose import takes longer than git does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from subprocess import CompletedProcess

TIMEOUT_S = 10
HEAD = ("rev-parse", "HEAD", "--symbolic-full-name", "HEAD", "--show-toplevel")
ITSELF = ("-c", "core.fsmonitor=false")  # a monitor of ours would run filters
STAGED = (*ITSELF, "diff-index", "--cached", "--raw", "-z", "HEAD")
TOUCHED = (*ITSELF, "diff-files", "--raw", "-z")  # whose size or times are not those in the index
MOST_TOUCHED = 200
STATUS = ("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> CompletedProcess[bytes]:
    """A git command off the fast path, ended. Raises UsageError where git is not installed."""
    import subprocess

    from runner.errors import UsageError

    try:
        return subprocess.run(["git", "-C", folder, *arguments], input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        raise UsageError("git is not installed.") from None


class GitCommand:
    """A git command that is running in a folder; `answer` waits for it."""

    def __init__(self, folder: str, *arguments: str) -> None:
        self._ends, write = os.pipe()
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        command = ["git", "-C", folder or ".", *arguments]
        try:
            # Python ignores SIGPIPE, and what is ignored stays so in a program that is started
            self._process = os.posix_spawnp(
                "git", command, os.environ, file_actions=actions, setsigdef=[signal.SIGPIPE]
            )
        except OSError:  # there is no git
            self._process = 0
        finally:
            os.close(write)

    def answer(self) -> tuple[int, bytes]:
        """(exit code, what it printed); -1 where there is no git, or it took too long."""
        if not self._process:
            os.close(self._ends)
            return -1, b""
        parts, poll = [b""], select.poll()
        poll.register(self._ends)
        try:
            while poll.poll(TIMEOUT_S * 1000):
                if not (part := os.read(self._ends, 1 << 16)):
                    return self._code(), b"".join(parts)
                parts.append(part)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGTERM)  # so that it removes its lock on the index
            self._code()
            return -1, b""
        finally:
            os.close(self._ends)

    def _code(self) -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        except ChildProcessError:  # the parent process ignores SIGCHLD, so the exit code is lost
            return 0


class GitStatus:
    """The commit and branch of a folder, and what differs from them; git works until `answer` is called."""

    def __init__(self, folder: str) -> None:
        self._head, self._status = GitCommand(folder, *HEAD), GitCommand(folder, *STATUS)

    def answer(self) -> list[str | None]:
        """[commit, branch, top folder, status]; [] outside a repository and before its first commit.

        The branch is None where HEAD is detached; the top folder where there is no work tree; the status, the lines of
        `git status`, where git cannot say, for example because a filter's program is gone.
        """
        head, (code, status) = _head(self._head), self._status.answer()
        return [*head, os.fsdecode(status) if code == 0 else None] if head else []


class GitFingerprint:
    """Everything that decides the answer of `GitStatus`: HEAD, what is staged, which files git would have to read, the
    state of these (`names`, from an earlier answer) and the rules by which it would read them."""

    def __init__(self, folder: str, names: Sequence[str] = ()) -> None:
        self._head, self._staged, self._touched = (GitCommand(folder, *words) for words in (HEAD, STAGED, TOUCHED))
        rules = [("config", "--list", "-z"), (*ITSELF, "check-attr", "-z", "-a", "--", *names)] if names else []
        self._rules = [GitCommand(folder, *words) for words in rules]

    def answer(self) -> dict[str, object]:
        """Equal to another answer exactly if nothing has changed for git."""
        head, staged, touched = _head(self._head), self._staged.answer(), self._touched.answer()
        rules = [question.answer() for question in self._rules]
        top = head[2] or "" if head else ""
        names = [os.path.join(top, name) for name in os.fsdecode(touched[1]).split("\0")[1::2]]
        return {
            "head": head,
            "staged": [staged[0], os.fsdecode(staged[1])],
            "touched": [touched[0], os.fsdecode(touched[1])],
            "names": names,
            "stamps": [_stamp(name) for name in names],
            "rules": _digest(rules) if rules else "",  # the settings may have credentials in them
        }


def git_fingerprint(folder: str) -> dict[str, object] | None:
    """What `GitFingerprint` answers now; None where a later state could have the same answer: too many files are
    touched, or one was a moment ago."""
    answer = GitFingerprint(folder).answer()
    names = answer["names"]
    assert isinstance(names, list)
    if not names:
        return answer
    settled = len(names) <= MOST_TOUCHED and all(map(_settled, names))
    return GitFingerprint(folder, names).answer() if settled else None


def _head(question: GitCommand) -> list[str | None]:
    """[commit, branch, top folder] from the answer to HEAD; [] without a commit."""
    commit, _, rest = question.answer()[1].partition(b"\n")
    name, _, top = rest.partition(b"\n")
    if len(commit) < 40 or not name:
        return []
    branch = name.decode(errors="replace").removeprefix("refs/heads/")
    return [commit.decode(), None if branch == "HEAD" else branch, os.fsdecode(top.removesuffix(b"\n")) or None]


def _stamp(path: str) -> str:
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    return f"{status.st_mode}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def _settled(path: str) -> bool:
    """Whether the file's next change gives it another time: some file systems have whole seconds, or every other."""
    try:
        changed_ns = os.lstat(path).st_ctime_ns
    except OSError:
        return True
    return time.time() - changed_ns / 1e9 > (2.0 if changed_ns % 1_000_000_000 == 0 else 0.05)


def _digest(answers: list[tuple[int, bytes]]) -> str:
    import hashlib  # most times nothing is touched

    return hashlib.sha256(repr(answers).encode()).hexdigest()
