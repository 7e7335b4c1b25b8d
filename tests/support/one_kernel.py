"""Notebooks executed with parameters in one real kernel, the same for all: most of a notebook's time is its imports."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner.notebook.recorded import read_scraps
from runner.records import Metric

Execute = Callable[..., dict[str, Metric]]


@contextlib.contextmanager
def one_kernel(notebooks: Path, folder: Path) -> Iterator[Execute]:
    """`execute(name, **parameters)` runs a notebook in `folder`, where its executed copy stays, and gives its metrics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the notebook packages' own imports
        import nbformat
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        from papermill.translators import PythonTranslator
    manager = AsyncKernelManager(kernel_name="python3")

    def run(notebook: str, **parameters: Any) -> dict[str, Metric]:
        made = nbformat.read(notebooks / f"{notebook}.ipynb", as_version=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jupyter_client's own: an unencrypted port
            injected = PythonTranslator.codify({key: _plain(value) for key, value in parameters.items()})
            at = next(n for n, cell in enumerate(made.cells) if "parameters" in cell.metadata.get("tags", []))
            made.cells.insert(at + 1, nbformat.v4.new_code_cell(injected))
            client = NotebookClient(made, km=manager, resources={"metadata": {"path": str(folder)}}, timeout=120)
            try:
                client.execute()
            finally:
                client.kc.stop_channels()
                nbformat.write(made, folder / f"{notebook}.ipynb")
        return read_scraps(folder / f"{notebook}.ipynb").metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run
        asyncio.run(manager.shutdown_kernel(now=True))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
