"""What commands cost, in counts that no machine changes: processes, imports, files read, bytes written.

`make budget` writes tests/budget.json anew, where a rise is meant.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.commands import command, environment
from support.projects import ROOT, Project

from runner.run.fast_path import FRESH_S

BUDGET = Path(__file__).with_name("budget.json")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
MORE = 1.03  # times the budget that is let pass
SOME_FILES = 2  # and so many, where few are read
MORE_ELSEWHERE = 1.2  # by another Python than that of the budget, whose own modules differ
# a line for each event in any of a command's Python processes, also those that it forks: they inherit the hook
SITECUSTOMIZE = """
import os, sys
_file, _kinds = os.environ["COUNTED"], {
    "os.fork": "process", "os.posix_spawn": "process", "subprocess.Popen": "process", "import": "module", "open": "file"
}
def _count(event, args):
    kind = _kinds.get(event)
    if kind is None or args and args[0] == _file:
        return
    if kind == "file" and (not isinstance(args[0], (str, bytes)) or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
        return
    line = f"{kind}\\t{os.fsdecode(args[0]) if args else ''}\\n".encode(errors="replace")
    place = os.open(_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(place, line)
    os.close(place)
sys.addaudithook(_count)
"""
LEFT_OUT = (".py", ".pyc", ".so", ".pth")  # counted as imports; whether bytecode is there is the machine's
NOT_OURS = ("/dev/", "/proc/", "/sys/")
SMOKE = ("run", "--profile", "smoke")
UNCHANGED = "smoke run, nothing changed"
COMMANDS = {"--help": ("--help",), "check": ("check",), "smoke run, cold": SMOKE, UNCHANGED: SMOKE}
Counts = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """Of each command, in a copy of the pipeline that ships."""
    project, hook = Project(tmp_path_factory.mktemp("project")), tmp_path_factory.mktemp("hook")
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("work", "__pycache__"))
    shutil.copy(ROOT / "pipeline.toml", project.folder)
    (hook / "sitecustomize.py").write_text(SITECUSTOMIZE)
    # the list of this machine's fonts is made by whoever is the first to need it
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True)
    made: Counts = {}
    for name, arguments in COMMANDS.items():
        settle(project.folder)
        if name == UNCHANGED:  # after a cold run, files that it left a moment before its end are read once more
            counted(project, hook, *arguments)
            settle(project.folder)
        made[name] = counted(project, hook, *arguments)
    return made


def counts_as_read(name: str) -> bool:
    """Of the records of installed packages, which some commands look through, numpy's stand for all."""
    installed = ".dist-info/" in name and "/numpy-" not in name
    return not (installed or name.endswith(LEFT_OUT) or name.startswith(NOT_OURS))


def settle(folder: Path) -> None:
    """Wait until no file is so young that a command reads it again, as it may change without a new time."""
    newest = max(path.lstat().st_mtime for path in folder.rglob("*"))
    time.sleep(max(0.0, newest + FRESH_S + 0.2 - time.time()))


def counted(project: Project, hook: Path, *arguments: str) -> dict[str, int]:
    """What the command comes to, in a process of its own; bytes and files are those in its run's folder and objects."""
    log, before = hook / "log", stored(project)
    log.unlink(missing_ok=True)
    env = environment({"PYTHONPATH": str(hook), "COUNTED": str(log)})
    env.pop("RUNNER_NO_REPORT")
    subprocess.run(command(*arguments), cwd=project.folder, env=env, check=True, capture_output=True, timeout=240)
    lines = [line.split("\t", 1) for line in log.read_text().splitlines()]
    kinds = Counter(kind for kind, name in lines if kind != "file" or counts_as_read(name))
    after = stored(project)
    return {
        "processes": kinds["process"],
        "modules imported": kinds["module"],
        "files read": kinds["file"],
        "files written": len(after.keys() - before.keys()),
        "bytes written": sum(after[file] for file in after.keys() - before.keys()),
    }


def stored(project: Project) -> dict[tuple[int, int], int]:
    """The size of each file below runs/, by inode and time: two links to an object are one file."""
    statuses = [path.lstat() for path in (project.folder / "runs").rglob("*") if path.is_file()]
    return {(status.st_ino, status.st_mtime_ns): status.st_size for status in statuses}


def limit(what: str, before: int, most: float) -> float:
    return max(most * before, before + SOME_FILES) if what == "files read" and before else most * before


def risen(now: Counts, budget: Counts, *, most: float) -> list[str]:
    """A table of what is above its budget by more than that; [] where nothing is."""
    rows = [
        (name, what, budget.get(name, {}).get(what, 0), count)
        for name, one in now.items()
        for what, count in one.items()
        if count > limit(what, budget.get(name, {}).get(what, 0), most)
    ]
    return [f"{name:28} {what:18} {before:>10,} -> {count:>10,}" for name, what, before, count in rows]


@pytest.mark.soak
def test_no_command_costs_more_than_its_budget(counts: Counts, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--renew-budget"):
        BUDGET.write_text(json.dumps({"python": PYTHON, "commands": counts}, indent=1) + "\n")
    budget = json.loads(BUDGET.read_text())
    rows = risen(counts, budget["commands"], most=MORE if budget["python"] == PYTHON else MORE_ELSEWHERE)
    assert not rows, "\n".join(["these have risen; where that is meant, `make budget`:", *rows])


@pytest.mark.soak
def test_what_is_counted_is_what_happens(counts: Counts) -> None:
    cold, again = counts["smoke run, cold"], counts["smoke run, nothing changed"]
    assert cold["processes"] >= 4, "a kernel for each of three notebooks, and the server that forks them"
    assert cold["files read"] > again["files read"] > 0
    assert cold["bytes written"] > 100_000
    assert 0 < again["modules imported"] < counts["check"]["modules imported"] < cold["modules imported"]
    assert counts["--help"]["files read"] == counts["--help"]["processes"] == 0


def test_a_rise_is_said_with_its_numbers_and_a_fall_is_none() -> None:
    budget = {"check": {"files read": 100, "processes": 0}}
    assert risen({"check": {"files read": 103, "processes": 0}}, budget, most=1.03) == []
    assert risen({"check": {"files read": 20, "processes": 0}}, budget, most=1.03) == []
    (row,) = risen({"check": {"files read": 104, "processes": 0}}, budget, most=1.03)
    assert row.split() == ["check", "files", "read", "100", "->", "104"]
    assert len(risen({"check": {"processes": 1}, "new": {"files read": 1}}, budget, most=1.03)) == 2
