"""The fast path: repeats a run of which nothing has changed. Standard library only, so that it costs milliseconds.

After each complete run, `runs/unchanged.json` holds the command line, every file and fact the run depended on, and the
next run's records with placeholders. `repeat` compares, and makes the next run from links to the earlier one, or gives
None for the ordinary path. Losing the file costs time, never truth.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time

from runner.run.checkout import GitFingerprint
from runner.run.ids import make_folder
from runner.run.machine import code_files, facts

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes as long as comparing everything
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

FILE, FORMAT, PAGES = "unchanged.json", 2, "repeated"
KEPT = 5  # command lines
# placeholders for what differs from run to run; no text contains them by chance
SHORT = "7c1e90b2@"  # the run's id, after its last `-`
RUN = f"@run-{SHORT}"
STARTED, ENDED = "8571-03-14T15:09:26.535Z", "8571-03-14T15:09:27.897Z"
FRESH_S = 2.0  # a younger file may change again without a new time
ANY = ""  # any content


class Changed(Exception):
    """Something is not as the run found it."""


class Repetition:
    """What the repeated run has to print, and its exit code."""

    def __init__(self, out: str, err: str, code: int) -> None:
        self.out, self.err, self.code = out, err, code


def repeat(arguments: Sequence[str]) -> Repetition | None:
    """Make the run that `runner run ARGUMENTS` would make, if nothing has changed."""
    root = os.path.dirname(_pipeline(arguments))
    runs = os.path.join(root, "runs")
    try:
        with open(os.path.join(runs, FILE), encoding="utf-8") as file:
            kept = json.load(file)
        entry = kept["commands"].get(command(arguments)) if kept["format"] == FORMAT else None
        if entry is None:
            return None
        with open(os.path.join(runs, "lock"), "a", encoding="utf-8") as shared:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an OSError while garbage is collected
            git = GitFingerprint(root, entry["git"]["names"])  # git works meanwhile
            before = json.dumps([entry["marks"], entry["sealed"]])
            same = _same(entry)
            if git.answer() != entry["git"] or not same:
                return None
            if json.dumps([entry["marks"], entry["sealed"]]) != before:  # what was hashed now need not be the next time
                _write(os.path.join(runs, FILE), json.dumps(kept))
            return _repeat(entry, runs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def command(arguments: Sequence[str]) -> str:
    """The key of a command line: its words and the folder where it was given."""
    return json.dumps([os.getcwd(), *arguments])


class Repeatable:
    """What a run depended on and what its repetition consists of, as `entry`, which is kept as JSON.

    Each method notes something as it is now; those that are given a hash or a stamp raise Changed where it is another.
    """

    def __init__(self, *, manifest: str, out: str, err: str, code: int) -> None:
        """The texts have the placeholders RUN, SHORT, STARTED and ENDED in them."""
        self.entry: dict[str, Any] = {
            "marks": {},
            "sealed": {},
            "real": {},
            "stamps": {},
            "written": {},
            "folders": [],
            "links": {},
            "pages": {},
            "machine": facts(),
            "manifest": manifest,
            "out": out,
            "err": err,
            "code": code,
        }

    def file(self, path: str, sha256: str | None = ANY) -> None:
        """A file with this content; None where it must not exist."""
        mark = _mark(path, _full_stamp)
        if sha256 not in (ANY, mark[1]):
            raise Changed(path)
        self.entry["marks"][path] = mark

    def sealed(self, path: str, sha256: str = ANY) -> None:
        """A file in the store, which is linked from run to run; an object's hash is known."""
        mark = _mark(path, _stamp, sha256)
        if mark[1] is None:
            raise Changed(path)
        self.entry["sealed"][path] = mark

    def source(self, path: str, leads_to: str, stamp: str) -> None:
        """A path and the file it leads to, whose stamp is in the run's records where there is one."""
        self.entry["real"][path] = leads_to
        if stamp:
            self.entry["stamps"][leads_to] = stamp
        if os.path.realpath(path) != leads_to or (stamp and _stamp(os.stat(leads_to)) != stamp):
            raise Changed(path)

    def code(self, place: str) -> None:
        """A package that is imported from where it is written: its modules, and that there are no others."""
        self.entry["written"][place] = code_files(place)
        for path in self.entry["written"][place]:
            self.file(path)

    def environment(self, names: Iterable[str], *, present: Iterable[str], git: dict[str, object]) -> None:
        """Variables by value; secret ones, of which it only counts that they are set; and git's answers."""
        self.entry["names"] = {name: os.environ.get(name) for name in names}
        self.entry["present"] = list(present)
        self.entry["git"] = git

    def folder(self, name: str) -> None:
        """A folder of the new run, beside those of what lies in it."""
        self.entry["folders"].append(name)

    def link(self, name: str, source: str, sha256: str = ANY) -> None:
        """A file of the new run that is a link to a sealed one."""
        self.sealed(source, sha256)
        self.entry["links"][name] = source

    def page(self, name: str, source: str, run: str) -> None:
        """A page to copy; `run` is the id that it has in its head, "" for a page with placeholders."""
        self.sealed(source)
        self.entry["pages"][name] = [source, run]


def keep(runs: str, arguments: Sequence[str], repeatable: Repeatable) -> None:
    """Write what `repeat` needs for this command line; the oldest of KEPT others is dropped."""
    path = os.path.join(runs, FILE)
    commands: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        commands = kept["commands"] if kept["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        commands = {}
    commands.pop(command(arguments), None)
    commands = {**dict(list(commands.items())[1 - KEPT :]), command(arguments): repeatable.entry}
    _write(path, json.dumps({"format": FORMAT, "commands": commands}))
    waiting = {os.path.basename(page) for entry in commands.values() for page, _ in entry["pages"].values()}
    for other in os.scandir(os.path.join(runs, PAGES)) if repeatable.entry["pages"] else ():
        if other.name not in waiting:
            os.unlink(other.path)


def _same(entry: dict[str, Any]) -> bool:
    try:
        return (
            entry["machine"] == facts()
            and {name: os.environ.get(name) for name in entry["names"]} == entry["names"]
            and all(name in os.environ for name in entry["present"])
            and all(os.path.realpath(path) == leads_to for path, leads_to in entry["real"].items())
            and all(code_files(place) == files for place, files in entry["written"].items())
            and all(_stamp(os.stat(path)) == stamp for path, stamp in entry["stamps"].items())
            and all(_unchanged(path, mark, _full_stamp) for path, mark in entry["marks"].items())
            and all(_unchanged(path, mark, _stamp) for path, mark in entry["sealed"].items())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _repeat(entry: dict[str, Any], runs: str) -> Repetition:
    now, run = time.time(), make_folder(runs)
    folder = os.path.join(runs, run)

    def filled(text: str) -> str:
        ids = text.replace(RUN, run).replace(SHORT, run.rpartition("-")[2])
        return ids.replace(STARTED, _utc(now)).replace(ENDED, _utc(time.time()))

    try:
        with open(os.path.join(folder, "lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"process {os.getpid()} on {os.uname().nodename}")
            inside = {os.path.dirname(name) for name in (*entry["links"], *entry["pages"])}
            for name in inside.union(entry["folders"]):
                os.makedirs(os.path.join(folder, name), exist_ok=True)
            for name, source in entry["links"].items():
                _link(source, os.path.join(folder, name))
            for name, (source, old) in entry["pages"].items():
                with open(source, encoding="utf-8", newline="") as page:
                    text = page.read()
                text = text.replace(old, run, 2) if old else filled(_in_words(text, now))
                with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as page:
                    page.write(text)
            _write(os.path.join(folder, "run.json"), filled(entry["manifest"]))
    except BaseException:  # also a full disk, which the ordinary path reports
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Repetition(filled(entry["out"]), filled(entry["err"]), int(entry["code"]))


def _in_words(page: str, started: float) -> str:
    """The page with its times filled in, as `runner.report.files.when` writes them."""
    for placeholder, seconds in ((STARTED, started), (ENDED, time.time())):
        words = f"{placeholder[:10]} {placeholder[11:19]} UTC"
        page = page.replace(words, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)))
    return page


def _unchanged(path: str, mark: list[Any], stamp_of: Callable[[os.stat_result], str]) -> bool:
    """By size, times and inode; where these are new or were too fresh to trust, by content, and `mark` is renewed."""
    try:
        if mark[1] is not None and stamp_of(os.stat(path)) == mark[0]:
            return True
    except OSError:
        return mark[1] is None
    now = _mark(path, stamp_of)
    if now[1] != mark[1]:
        return False
    mark[0] = now[0]
    return True


def _mark(path: str, stamp_of: Callable[[os.stat_result], str], sha256: str = ANY) -> list[Any]:
    """[stamp, hash]; the stamp is "" where it is too fresh to trust, the hash None where there is no such file.

    The file is not read where its hash is given.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ["", None]
    if not stat.S_ISREG(status.st_mode):  # a pipe would never end
        return ["", "not a file"]
    changed = status.st_mtime if stamp_of is _stamp else max(status.st_mtime, status.st_ctime)
    return ["" if time.time() - changed < FRESH_S else stamp_of(status), sha256 or _sha256(path)]


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _full_stamp(status: os.stat_result) -> str:
    """With the time that cannot be set; each link to the file changes it, so not for sealed files."""
    return f"{_stamp(status)}-{status.st_ctime_ns}"


def _sha256(path: str) -> str:
    import hashlib  # most times nothing has to be hashed

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pipeline(arguments: Sequence[str]) -> str:
    for number, argument in enumerate(arguments):
        if argument == "--pipeline" and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith("--pipeline="):
            return argument.partition("=")[2]
    return "pipeline.toml"


def _utc(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        import shutil

        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def _write(path: str, text: str) -> None:
    beside = f"{path}.{os.urandom(4).hex()}"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
