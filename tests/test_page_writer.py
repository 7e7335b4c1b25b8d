"""The process that writes a run's pages beside it: a fork of the command, or one that is started."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import environment
from support.projects import Project

WRITE = """
import sys
from pathlib import Path
from runner.cli import page_writer
writer = getattr(page_writer, sys.argv[2])(Path(sys.argv[1]), again=False)
writer.ended("only")
sys.exit(writer.finish())
"""
DIE = """
import fcntl, os, signal, sys, time
from pathlib import Path
from runner.cli.page_writer import start
folder = Path(sys.argv[1])
lock = open(folder / "lock of the command", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
writer = start(folder, again=False)
print(type(writer).__name__, flush=True)
writer.ended("only")
while not (folder / "steps/only/executed.html").exists():
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("project"))
    project.write("nb.ipynb", "1 + 1", "print('shown')")
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    assert project.runner("run").code == 0
    (manifest,) = project.folder.glob("runs/*/run.json")
    return manifest.parent


def pages(folder: Path) -> dict[str, bytes]:
    """The pages of the run by their names, which are taken away."""
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.html")}
    for name in written:
        (folder / name).unlink()
    return written


def python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, str(folder), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks are for Linux")
def test_a_fork_writes_what_a_process_of_its_own_writes(run_folder: Path) -> None:
    written = {}
    for writer in ("StartedWriter", "ForkedWriter"):
        done = python(WRITE, run_folder, writer)
        assert (done.returncode, done.stderr) == (0, "")
        written[writer] = pages(run_folder)
    assert written["ForkedWriter"].keys() == {"report.html", "steps/only/executed.html"}
    assert written["ForkedWriter"] == written["StartedWriter"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks are for Linux")
def test_a_killed_command_leaves_a_report_and_no_lock(run_folder: Path) -> None:
    done = python(DIE, run_folder)
    assert (done.returncode, done.stdout) == (-9, "ForkedWriter\n")
    with (run_folder / "lock of the command").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    until = time.monotonic() + 60
    while not (run_folder / "report.html").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert b"shown" in pages(run_folder)["steps/only/executed.html"]


def test_a_report_that_cannot_be_written_is_told_by_the_exit_code(tmp_path: Path) -> None:
    done = python(WRITE, tmp_path, "ForkedWriter" if sys.platform.startswith("linux") else "StartedWriter")
    assert done.returncode == 1
