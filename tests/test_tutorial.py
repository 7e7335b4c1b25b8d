"""docs/tutorial.md is walked: each command in its order, as it stands there, with the notebooks and the table that ship."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.commands import environment
from support.projects import PAGES, ROOT, program

pytestmark = pytest.mark.soak  # test_churn.py runs the same pipeline
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHIPPED = ("Makefile", "pyproject.toml", "pipeline.toml", "requirements.lock", "requirements-all.lock")
SERVED = "runner serve churn --port 8080"


def commands() -> list[str]:
    lines = "".join(BLOCK.findall(PAGE.read_text(encoding="utf-8"))).splitlines()
    assert all(line.startswith("$ ") for line in lines), lines
    return [line.removeprefix("$ ") for line in lines]


@dataclass
class Walk:
    """A checkout's copy, in a shell whose environment is this one's, and what each command printed."""

    folder: Path
    port: int
    said: dict[str, str] = field(default_factory=dict)

    def command(self, line: str) -> subprocess.Popen[str]:
        """As it stands there but for the port, which another program may have."""
        return subprocess.Popen(
            ["bash", "-c", f". .venv/bin/activate 2> /dev/null; exec 2>&1; {line.replace('8080', str(self.port))}"],
            cwd=self.folder, env=environment({**PAGES, "PATH": self.path}), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def path(self) -> str:
        return f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    program("make")
    program("curl")
    folder = tmp_path_factory.mktemp("tutorial")
    for name in SHIPPED:
        shutil.copy2(ROOT / name, folder / name)
    (folder / "data").mkdir()
    shutil.copy2(ROOT / "data" / "churn.csv", folder / "data")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("work", "__pycache__"))
    (folder / ".venv").symlink_to(sys.prefix)  # made from the lock, by the command that the page begins with
    for lock in folder.glob("requirements*.lock"):
        os.utime(lock, (0, 0))
    os.utime(folder / "pyproject.toml", (0, 0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        walk = Walk(folder, taken.getsockname()[1])
    served: subprocess.Popen[str] | None = None
    try:
        for line in commands():
            if line == SERVED:
                served = walk.command(f"exec {line}")
                answers(walk, served)
                continue
            done = walk.command(line)
            walk.said[line] = done.communicate(timeout=240)[0]
            assert done.returncode == 0, f"$ {line}\n{walk.said[line]}"
        assert served is not None
        served.send_signal(signal.SIGINT)  # Ctrl-C ends it
        served.communicate(timeout=60)
        assert served.returncode in (0, 130)
    finally:
        if served is not None:
            served.kill()
            served.communicate()
    return walk


def answers(walk: Walk, served: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert served.poll() is None, served.communicate()[0]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{walk.port}/ping", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise AssertionError("no answer to /ping in a minute")


def test_the_page_begins_with_make_run_and_ends_with_an_answer_and_its_audit() -> None:
    lines = commands()
    assert lines[0] == "make run"
    assert SERVED in lines
    assert lines[-2:] == ["runner verify --all", "runner history churn"]


def test_the_run_passes_its_gate_and_says_what_the_page_shows(walk: Walk) -> None:
    said = walk.said["make run"]
    shown = re.search(r"^```\n(run .*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert shown is not None
    times = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}|\d+\.\d s|report [0-9a-f]{4}|   main@\w+|   not in git.*")
    for line in times.sub("…", shown[1]).splitlines()[1:]:
        assert re.sub(r" +", " ", line) in re.sub(r" +", " ", times.sub("…", said)), said


def test_nothing_is_executed_where_nothing_has_changed(walk: Walk) -> None:
    assert walk.said["runner run"].count("cached") + walk.said["runner run"].count("unchanged") >= 4, walk.said[
        "runner run"
    ]


def test_the_report_that_is_named_is_there(walk: Walk) -> None:
    page = Path(walk.folder, walk.said["runner report latest"].strip().splitlines()[-1])
    assert "Passed" in page.read_text(encoding="utf-8")


def test_the_file_and_the_server_give_the_same_answers_by_the_approved_version(walk: Walk) -> None:
    (line,) = [line for line in walk.said if line.startswith("curl")]
    answer = json.loads(walk.said[line])
    rows = (walk.folder / "scored.csv").read_text().splitlines()
    assert answer["model"] == "churn/1"
    assert len(answer["predictions"]) == len(rows) - 1 == 3
    scored = [float(row.rpartition(",")[2]) for row in rows[1:]]
    assert [one["probability"] for one in answer["predictions"]] == pytest.approx(scored)


def test_the_auditor_finds_it_sound_and_sees_the_decision(walk: Walk) -> None:
    assert "sound" in walk.said["runner verify --all"]
    assert "first model, metrics reviewed" in walk.said["runner history churn"]
