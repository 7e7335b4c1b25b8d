"""What running a notebook costs beside what its cells do: one cell and two hundred, each as trivial as can be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.paths import code_cell, notebook
from benchmarks.peers import PEERS

API = "import papermill; papermill.execute_notebook('nb.ipynb', 'out.ipynb', kernel_name='python3', progress_bar=False)"
ENGINE = (
    "import sys; sys.path.append({packages!r}); from ploomber_engine import execute_notebook; "
    "execute_notebook('nb.ipynb', 'out.ipynb', progress_bar=False)"
)
PAPERMILL = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3"]


def trivial(folder: Path, cells: int) -> Path:
    """A pipeline of one notebook with that many cells, for every way to run it."""
    folder.mkdir(parents=True)
    (folder / "nb.ipynb").write_text(notebook([code_cell(f"cell-{at}", f"x = {at}") for at in range(cells)], "python3"))
    (folder / "pipeline.toml").write_text('name = "trivial"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    return folder


def _ploomber_engine(_: Path) -> list[str]:
    (packages,) = PEERS.glob("lib/python*/site-packages")
    return [sys.executable, "-c", ENGINE.format(packages=str(packages))]


OURS = "`runner run`, with report"
QUICK = (OURS, "`runner run --no-report`", "ploomber-engine")
WAYS: dict[str, Callable[[Path], list[str]]] = {
    OURS: lambda _: [sys.executable, "-m", "runner", "run", "--force"],
    "`runner run --no-report`": lambda _: [sys.executable, "-m", "runner", "run", "--force", "--no-report"],
    "`papermill --engine runner`": lambda _: [*PAPERMILL, "--engine", "runner", "nb.ipynb", "out.ipynb"],
    "papermill command": lambda _: [*PAPERMILL, "nb.ipynb", "out.ipynb"],
    "papermill's API": lambda _: [sys.executable, "-c", API],
    "ploomber-engine": _ploomber_engine,
}
