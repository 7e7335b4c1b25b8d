"""The way back for a run of which nothing has changed: standard library only, so that it takes no longer than a look.

After each complete run its owner leaves `runs/unchanged.json`: the command line, every file and fact the run depended
on, and the new run's records ready to be filled in. `again` compares, and either makes the next run from links to the
earlier one, or gives None, and the ordinary way is gone. Losing the file costs time, never truth.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time

from runner.run.checkout import Standing
from runner.run.ids import make_folder
from runner.run.machine import code_files, facts

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes as long as comparing everything
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

FILE, FORMAT, PAGES = "unchanged.json", 2, "repeated"
KEPT = 5  # command lines
# in what is kept, for what differs from run to run; no text of anybody's has them in it by chance
SHORT = "7c1e90b2@"  # the run's id, after its last `-`
RUN = f"@run-{SHORT}"
STARTED, ENDED = "8571-03-14T15:09:26.535Z", "8571-03-14T15:09:27.897Z"
FRESH_S = 2.0  # younger than this, a file may change again without a new time
ANY = ""  # a file may have whatever content it has when the run ends


class Changed(Exception):
    """Something is not as the run found it."""


class Repeated:
    """What `again` has made, still to be said."""

    def __init__(self, out: str, err: str, code: int) -> None:
        self.out, self.err, self.code = out, err, code


def again(arguments: Sequence[str]) -> Repeated | None:
    """Make the run that `runner run ARGUMENTS` would make, if all is as it was."""
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
            git = Standing(root, entry["git"]["names"])  # it looks while we do
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
    """By what a command line is known: its words and where it was given."""
    return json.dumps([os.getcwd(), *arguments])


class Dependencies:
    """What a run depended on. Each method notes something as it is now; raises Changed where the run found another."""

    def __init__(self) -> None:
        self.entry: dict[str, Any] = {
            "marks": {},
            "sealed": {},
            "real": {},
            "stamps": {},
            "written": {},
            "names": {},
            "present": [],
        }

    def file(self, path: str, sha256: str | None = ANY) -> None:
        """A file with this content; None where it must not be there."""
        mark = _mark(path, _full_stamp)
        if sha256 not in (ANY, mark[1]):
            raise Changed(path)
        self.entry["marks"][path] = mark

    def sealed(self, path: str, sha256: str = ANY) -> None:
        """A file in the store, which is linked from run to run; of an object its hash is known."""
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

    def environment(self, names: Iterable[str], *, present: Iterable[str]) -> None:
        """Variables by value, and those of which it only counts that they are there: they are secret."""
        self.entry["names"] = {name: os.environ.get(name) for name in names}
        self.entry["present"] = list(present)


def remember(
    runs: str,
    arguments: Sequence[str],
    depends: Dependencies,
    *,
    machine: list[object],
    git: dict[str, object],
    code: int,
    texts: Mapping[str, str],
    folders: Sequence[str],
    links: Mapping[str, str],
    pages: Mapping[str, tuple[str, str]],
) -> None:
    """Keep what `again` needs.

    `texts` are "manifest", "out" and "err", with the placeholders RUN, SHORT, STARTED, ENDED in them. The new run's
    folder has these `folders` (beside those of what lies in it), these `links` (its path -> the file), and these `pages`
    (its path -> the page to copy, and the run's id that this has in its head, or "" for one with placeholders).
    """
    entry = {**depends.entry, "machine": machine, "git": git, "code": code, **texts}
    entry |= {
        "folders": list(folders),
        "links": dict(links),
        "pages": {name: list(page) for name, page in pages.items()},
    }
    path = os.path.join(runs, FILE)
    commands: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        commands = kept["commands"] if kept["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        commands = {}
    mine = command(arguments)
    commands.pop(mine, None)
    commands = {**dict(list(commands.items())[1 - KEPT :]), mine: entry}
    _write(path, json.dumps({"format": FORMAT, "commands": commands}))
    waiting = {os.path.basename(page) for entry in commands.values() for page, _ in entry["pages"].values()}
    for other in os.scandir(os.path.join(runs, PAGES)) if pages else ():
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


def _repeat(entry: dict[str, Any], runs: str) -> Repeated:
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
    except BaseException:  # a full disk among them: the ordinary way says so
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Repeated(filled(entry["out"]), filled(entry["err"]), int(entry["code"]))


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
    """With the time that nobody can set back; it is another after each link to the file, so not for sealed ones."""
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
