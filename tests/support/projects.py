"""Projects to run: real notebooks in real folders, executed by real kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.commands import Done, command, environment, fork

ROOT = Path(__file__).parents[2]
REAL_TABLE = ROOT.parent / "shared" / "data" / "churn.txt"
PAGES = {"RUNNER_NO_REPORT": "0"}  # the environment of a run whose report is looked at

# Jupyter's Run All: each notebook named, one after the other, saved with its outputs
RUN_ALL = """
import sys, warnings
from runner.import_blocking import deferred
warnings.simplefilter("ignore")
with deferred():
    import nbclient, nbformat
for name in sys.argv[1:]:
    made = nbformat.read(name, as_version=4)
    nbclient.NotebookClient(made, timeout=120).execute()
    nbformat.write(made, name)
"""


def program(*names: str) -> str:
    """The path of the first of these programs that this machine has; the test is skipped where it has none."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{' or '.join(names)} is not installed here; .ci/run installs it")
    return found


def chromium() -> str:
    return program("chromium", "chromium-browser", "google-chrome")


def code(source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "tags": list(tags)}


def parameters(source: str) -> dict[str, Any]:
    return code(source, "parameters")


def text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source, "tags": []}


def recorded(name: str, value: str) -> str:
    """A cell that records as scrapbook does, without the second that importing it takes. `value` is source text."""
    return (
        "from IPython.display import display\n"
        f"display({{'application/scrapbook.scrap.json+json': {{'name': '{name}', 'data': {value}, 'encoder': 'json', "
        f"'version': 1}}}}, metadata={{'scrapbook': {{'name': '{name}', 'data': True, 'display': False}}}}, raw=True)"
    )


def notebook(*cells: dict[str, Any] | str, kernel: str = "runner", language: str = "python") -> dict[str, Any]:
    """A notebook's JSON; strings are code cells."""
    made = []
    for number, cell in enumerate(cells):
        cell = code(cell) if isinstance(cell, str) else cell
        entry: dict[str, Any] = {
            "id": f"cell-{number}",
            "cell_type": cell["cell_type"],
            "metadata": {"tags": cell["tags"]} if cell["tags"] else {},
            "source": cell["source"],
        }
        if cell["cell_type"] == "code":
            entry |= {"outputs": [], "execution_count": None}
        made.append(entry)
    spec = {"name": kernel, "display_name": kernel, "language": language}
    return {"cells": made, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}


@dataclass(frozen=True)
class Project:
    """A folder with a pipeline.toml and notebooks, and the command to run in it."""

    folder: Path

    def write(self, name: str, *cells: dict[str, Any] | str, **options: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(*cells, **options)), encoding="utf-8")
        return path

    def toml(self, content: str) -> Path:
        path = self.folder / "pipeline.toml"
        path.write_text(content, encoding="utf-8")
        return path

    def runner(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        return fork(*arguments, folder=cwd or self.folder, env=environment(env))

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*arguments),
            cwd=self.folder,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def runs(self) -> list[Path]:
        return sorted(file.parent for file in (self.folder / "runs").glob("*/run.json"))

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the newest run."""
        made: dict[str, Any] = json.loads((self.runs[-1] / "run.json").read_text())
        return made

    def step(self, name: str) -> dict[str, Any]:
        """The step's state in the newest run's manifest."""
        return next(step for step in self.manifest["steps"] if step["name"] == name)

    def executed(self, step: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads((self.runs[-1] / "steps" / step / "executed.ipynb").read_text())
        return made


def children_of(pid: int) -> Iterator[int]:
    """All living descendants of the process, and members of their sessions started by it."""
    table: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            table.setdefault(parent, []).append(int(entry.name))
    pending = [pid]
    while pending:
        for child in table.get(pending.pop(), []):
            yield child
            pending.append(child)
