"""The same pages as a folder: all runs and versions, without forms, with links that hold wherever it is put."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from runner.content import atomic_write
from runner.errors import Refused, RunnerError
from runner.project import Project
from runner.report import notebook
from runner.ui import model_pages, run_pages
from runner.ui.runs import Query, RunTable
from runner.ui.view import View, styles

MARK = ".runner-site"  # in a folder that was written here, so that no other is written over


@dataclass(frozen=True)
class Written:
    """How much was written; `left_out` has a sentence for each run that cannot be read."""

    runs: int
    versions: int
    left_out: list[str]


def write_site(project: Project, folder: Path) -> Written:
    """Write the pages into the folder, which is made; pages that are there already are written again.

    Raises Refused where the folder has other files, or cannot be written to.
    """
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
            raise Refused(f"{folder} is not empty, and was not written by `runner site`. Name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / MARK, "written by runner site; what is in this folder is written over\n")
        return _write_pages(project, folder)
    except OSError as error:
        raise Refused(f"Cannot write {error.filename or folder}: {error.strerror}.") from error


def _write_pages(project: Project, folder: Path) -> Written:
    view = View(project, static=True)
    (folder / "static").mkdir(exist_ok=True)
    atomic_write(folder / "static" / "ui.css", styles())
    _write(folder / "index.html", run_pages.runs(view, RunTable(), Query(), per_page=None))
    left_out, runs = [], 0
    for run in project.store.runs():
        try:
            if project.store.begun(run):
                _write_run(view, folder, run)
                runs += 1
        except RunnerError as error:
            left_out.append(f"{run}: {error}")
    versions = project.registry.list()
    _write(folder / "models" / "index.html", model_pages.models(replace(view, depth=1)))
    _write(folder / "targets" / "index.html", model_pages.targets(replace(view, depth=1)))
    for version in versions:
        place = folder / "model" / version.name / str(version.version)
        page = model_pages.version(replace(view, depth=3), version.name, version.version)
        _write(place / "index.html", page)
        _write(place / "card" / "index.html", model_pages.card(replace(view, depth=4), version.name, version.version))
    return Written(runs, len(versions), left_out)


def _write_run(view: View, folder: Path, run: str) -> None:
    project, place = view.project, folder / "run" / run
    manifest = run_pages.find(project, run)
    _write(place / "index.html", run_pages.run(replace(view, depth=2), manifest))
    place.mkdir(parents=True, exist_ok=True)
    atomic_write(place / "report.html", run_pages.report(project, manifest, files=False))
    for state in manifest.steps:
        target = place / "steps" / state.name / notebook.PAGE
        with contextlib.suppress(RunnerError):  # a step that was not executed
            content = run_pages.executed(project, manifest, state.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, content)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode("utf-8", "backslashreplace"))
