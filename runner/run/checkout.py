"""What git says of a project's folder: commit, branch, and which tracked files differ.

`Checkout` is what a run records. The way back for an unchanged run asks `Standing`: while that gives the same answer, so
does `Checkout`, and for it no filter has to run. Standard library only, and without `subprocess`, whose import takes
longer than git does.
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

TIMEOUT_S = 10
HEAD = ("rev-parse", "HEAD", "--symbolic-full-name", "HEAD", "--show-toplevel")
ITSELF = ("-c", "core.fsmonitor=false")  # ours would have filters run
STAGED = (*ITSELF, "diff-index", "--cached", "--raw", "-z", "HEAD")
TOUCHED = (*ITSELF, "diff-files", "--raw", "-z")  # whose size or times are not those in the index
MOST_TOUCHED = 200
STATUS = ("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")


class Question:
    """A git command under way in a folder; `answer` waits for it."""

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
        said, look = [b""], select.poll()
        look.register(self._ends)
        try:
            while look.poll(TIMEOUT_S * 1000):
                if not (part := os.read(self._ends, 1 << 16)):
                    return self._code(), b"".join(said)
                said.append(part)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGTERM)  # so that it takes its lock on the index away
            self._code()
            return -1, b""
        finally:
            os.close(self._ends)

    def _code(self) -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        except ChildProcessError:  # whoever started us ignores its children's ends, and nobody is told of ours
            return 0


class Checkout:
    """The two questions that say at which commit and branch a folder is, and what differs; git works meanwhile."""

    def __init__(self, folder: str) -> None:
        self._head, self._status = Question(folder, *HEAD), Question(folder, *STATUS)

    def answer(self) -> list[str | None]:
        """[commit, branch, top folder, status]; [] outside a repository and before its first commit.

        The branch is None where HEAD is detached; the top folder where there is no work tree; the status, the lines of
        `git status`, where git cannot say, for example because a filter's program is gone.
        """
        head, (code, status) = _head(self._head), self._status.answer()
        return [*head, os.fsdecode(status) if code == 0 else None] if head else []


class Standing:
    """Everything that decides what `Checkout` answers: HEAD, what is staged, which files git would have to read, the state
    of these (`names`, from an earlier answer) and the rules by which it would read them. git works meanwhile."""

    def __init__(self, folder: str, names: Sequence[str] = ()) -> None:
        self._head, self._staged, self._touched = (Question(folder, *words) for words in (HEAD, STAGED, TOUCHED))
        rules = [("config", "--list", "-z"), (*ITSELF, "check-attr", "-z", "-a", "--", *names)] if names else []
        self._rules = [Question(folder, *words) for words in rules]

    def answer(self) -> dict[str, object]:
        """Equal to another answer exactly where nothing has changed for git."""
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


def standing(folder: str) -> dict[str, object] | None:
    """What `Standing` answers now; None where that may not be told apart from another state later: too much is touched,
    or was just now."""
    found = Standing(folder).answer()
    names = found["names"]
    assert isinstance(names, list)
    if not names:
        return found
    settled = len(names) <= MOST_TOUCHED and all(map(_settled, names))
    return Standing(folder, names).answer() if settled else None


def _head(question: Question) -> list[str | None]:
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
