"""The way back for a run of which nothing has changed: standard library only, so that it takes no longer than a look.

After each complete run its owner leaves `runs/unchanged.json`: the command line, every file and fact the run depended
on, and the new run's records ready to be filled in. `again` compares, and either makes the next run from links to the
earlier one, or gives None, and the ordinary way is gone. Losing the file costs time, never truth.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.run.ids import make_folder

FILE, FORMAT = "unchanged.json", 1
RUN, STARTED, ENDED = "@run@", "@started@", "@ended@"
FRESH_S = 2.0  # younger than this, a file may change again without a new time
LINKED = ("steps", "verdict.json", "pipeline.toml", "report.html")


def again(arguments: Sequence[str]) -> int | None:
    """Make the run that `runner run ARGUMENTS` would make, if all is as it was; its exit code, or None."""
    runs = os.path.join(os.path.dirname(_pipeline(arguments)), "runs")
    try:
        with open(os.path.join(runs, FILE), encoding="utf-8") as file:
            kept = json.load(file)
        entry = kept["commands"][_command(arguments)] if kept["format"] == FORMAT else None
        if entry is None:
            return None
        with open(os.path.join(runs, "lock"), "a", encoding="utf-8") as shared:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an OSError while garbage is collected
            before = json.dumps(entry["files"])
            if not _same(entry, runs):
                return None
            if json.dumps(entry["files"]) != before:  # what was hashed this time need not be the next
                _write(os.path.join(runs, FILE), json.dumps(kept))
            return _repeat(entry, runs)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(
    runs: str,
    arguments: Sequence[str],
    *,
    run: str,
    manifest: str,
    out: str,
    err: str,
    code: int,
    files: Iterable[str],
    folders: Iterable[str],
    variables: Mapping[str, str],
    names: Sequence[str],
) -> None:
    """Keep what `again` needs. `manifest`, `out` and `err` have the placeholders RUN, STARTED, ENDED in them.

    `files` are all that the run depended on, sealed outputs included; `folders` those whose Python files could come
    to be imported; `variables` the environment's, of all `names` that count.
    """
    entry = {
        "run": run,
        "manifest": manifest,
        "out": out,
        "err": err,
        "code": code,
        "files": {path: _mark(path) for path in files},
        "folders": {path: _python_files(path) for path in folders},
        "interpreter": _interpreter(),
        "variables": dict(variables),
        "names": list(names),
    }
    path = os.path.join(runs, FILE)
    commands: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8") as file:
            commands = json.load(file)["commands"]
    except (OSError, ValueError, KeyError):
        commands = {}
    commands = {**dict(list(commands.items())[-4:]), _command(arguments): entry}
    _write(path, json.dumps({"format": FORMAT, "commands": commands}))


def _same(entry: dict[str, Any], runs: str) -> bool:
    if entry["interpreter"] != _interpreter() or not os.path.isdir(os.path.join(runs, entry["run"])):
        return False
    if {name: os.environ[name] for name in entry["names"] if name in os.environ} != entry["variables"]:
        return False
    if any(_python_files(path) != names for path, names in entry["folders"].items()):
        return False
    return all(_unchanged(path, mark) for path, mark in entry["files"].items())


def _repeat(entry: dict[str, Any], runs: str) -> int:
    now, run = time.time(), make_folder(runs)
    folder, earlier = os.path.join(runs, run), os.path.join(runs, entry["run"])
    with open(os.path.join(folder, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        for name in LINKED:
            source, target = os.path.join(earlier, name), os.path.join(folder, name)
            if os.path.isdir(source):
                shutil.copytree(source, target, symlinks=True, copy_function=_link)
            elif os.path.exists(source):
                _link(source, target)
        started = _utc(now)
        text = entry["manifest"].replace(RUN, run).replace(STARTED, started).replace(ENDED, _utc(time.time()))
        _write(os.path.join(folder, "run.json"), text)
    sys.stderr.write(entry["err"].replace(RUN, run))
    sys.stdout.write(entry["out"].replace(RUN, run))
    return int(entry["code"])


def _unchanged(path: str, mark: list[Any]) -> bool:
    """By size, time and inode; where these are new or were too fresh to trust, by content, and `mark` is renewed."""
    stamp = _stamp(path)
    if stamp is None or mark[1] is None:
        return stamp is None and mark[1] is None
    if stamp == mark[0]:
        return True
    now = _mark(path)
    same = bool(now[1] == mark[1])
    if same:
        mark[0] = now[0]
    return same


def _mark(path: str) -> list[Any]:
    """[stamp, hash]; the stamp is "" where it is too fresh to trust, the hash None where there is no such file."""
    stamp = _stamp(path)
    if stamp is None:
        return ["", None]
    fresh = time.time() - os.stat(path).st_mtime < FRESH_S
    return ["" if fresh else stamp, _sha256(path)]


def _stamp(path: str) -> str | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _interpreter() -> str:
    """This Python and the packages installed for it, by the names of their metadata folders."""
    digest = hashlib.sha256(f"{sys.prefix} {sys.version} {os.uname().nodename}".encode())
    for place in sys.path:
        try:
            names = sorted(name for name in os.listdir(place or ".") if name.endswith(".dist-info"))
        except OSError:
            continue
        digest.update("\n".join(names).encode())
    return digest.hexdigest()


def _python_files(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".py") or "." not in name)
    except OSError:
        return []


def _pipeline(arguments: Sequence[str]) -> str:
    for number, argument in enumerate(arguments):
        if argument == "--pipeline" and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith("--pipeline="):
            return argument.partition("=")[2]
    return "pipeline.toml"


def _command(arguments: Sequence[str]) -> str:
    return json.dumps([os.getcwd(), *arguments])


def _utc(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _write(path: str, text: str) -> None:
    beside = f"{path}.{secrets.token_hex(4)}"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
