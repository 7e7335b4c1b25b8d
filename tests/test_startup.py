"""A command imports what it shows, and nothing heavy before there is work: start-up is part of the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import environment
from support.projects import Project

# the command, then the installed packages that it has imported, on the last line of stderr
LOOK = """
import json, sys
from runner.__main__ import main
try:
    main()
finally:
    places = {name.partition(".")[0]: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    print(json.dumps(sorted(name for name, place in places.items() if "site-packages" in place)), file=sys.stderr)
"""
PAPERMILL = """
import sys
import runner.step.engine
from papermill import iorw
from papermill.engines import papermill_engines
print("requests" in sys.modules, papermill_engines.get_engine("mine").__name__)
print(iorw.papermill_io.get_handler("mine://there").__name__)
print(iorw.requests.get.__module__ == "requests.api")
import requests, entrypoints
print(requests.get is iorw.requests.get and entrypoints.get_group_all("console_scripts") != [])
"""
PUT_THERE = {"_distutils_hack", "_virtualenv", "runner"}  # by the environment itself, not by an import


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One with a run, of which only looking is asked here."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.write("nb.ipynb", "1")
    made.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    assert made.runner("run").code == 0
    return made


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("--help", {"click"}),
        ("--version", {"click"}),
        ("run", set[str]()),  # nothing has changed
        *(
            (command, {"click", "msgspec", "typing_extensions"})
            for command in ("runs", "check", "models", "show latest", "run --help", "run --dry-run")
        ),
    ],
)
def test_a_command_imports_only_what_it_shows(project: Project, command: str, allowed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *command.split()],
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stderr.splitlines()[-1])) - PUT_THERE <= allowed


def test_papermill_is_imported_without_requests_and_with_the_plug_ins_that_are_installed(tmp_path: Path) -> None:
    plug_in = tmp_path / "plug_in-1.0.dist-info"
    plug_in.mkdir()
    (plug_in / "METADATA").write_text("Metadata-Version: 2.1\nName: plug_in\nVersion: 1.0\n")
    (plug_in / "entry_points.txt").write_text(
        "[papermill.engine]\nmine = fractions:Fraction\n[papermill.io]\nmine:// = fractions:Fraction\n"
    )
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info" / "entry_points.txt").write_text(
        "[console_scripts]\nother = fractions:Fraction\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PAPERMILL],
        env=environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["False", "Fraction", "Fraction", "True", "True"], done.stderr
