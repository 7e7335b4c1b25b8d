"""What running a notebook costs beside what its cells do: one cell and two hundred, each as trivial as can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

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
    document = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{at}",
                "metadata": {},
                "source": f"x = {at}",
                "outputs": [],
                "execution_count": None,
            }
            for at in range(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (folder / "nb.ipynb").write_text(json.dumps(document))
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
