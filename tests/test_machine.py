"""The tests themselves on a machine that lacks something: skipped with the reason, and a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.projects import ROOT

TESTS = """
import pytest
from support.projects import chromium, program

def test_looks_with_a_chromium():
    chromium()

def test_looks_with_a_program():
    program("no-such-program")

@pytest.mark.skipif(True, reason="no table beside this checkout")
def test_reads_a_table():
    pass

@pytest.mark.xfail(reason="known")
def test_is_known_to_fail():
    assert 0

def test_needs_nothing():
    pass
"""


@pytest.mark.soak
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "in a worker"])
def test_what_a_machine_lacks_is_skipped_with_its_reason_and_fails_in_ci(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    shutil.copyfile(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_some.py").write_text(TESTS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    kept["PYTHONPATH"] = str(ROOT / "tests")

    def tested(**variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *workers, str(tmp_path)],
            cwd=tmp_path, env={**kept, "PATH": str(tmp_path), **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    reasons = (
        "chromium or chromium-browser or google-chrome is not installed here; .ci/run installs it",
        "no-such-program is not installed here",
        "no table beside this checkout",
    )
    code, said = tested()
    assert (code, "1 passed, 3 skipped, 1 xfailed" in said) == (0, True), said
    assert all(reason in said for reason in reasons)
    code, said = tested(PYTEST_ADDOPTS="--no-skips")
    assert (code, "2 failed, 1 passed, 1 xfailed, 1 error" in said) == (1, True), said
    assert all(reason in said for reason in reasons)


def test_ci_allows_no_skip_and_installs_every_program_that_the_tests_ask_for() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "export PYTEST_ADDOPTS=--no-skips" in script
    asked = {
        line.split('program("')[1].split('"')[0]
        for path in (ROOT / "tests").rglob("*.py")
        if path.name != "test_machine.py"
        for line in path.read_text().splitlines()
        if 'program("' in line
    }
    assert {"git", "chromium", "mount", "pgrep"} <= asked
    basic = {"bash", "make", "sh", "cat", "cp", "rm", "mktemp", "dirname"}  # of every Debian, or of whoever starts it
    assert all(f"[{name}]=" in script for name in asked - basic)
