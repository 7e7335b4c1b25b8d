"""The papermill engine that uses our client, and one function that executes a notebook by papermill's parts and it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.import_blocking import lean_papermill
from runner.records import Value

with lean_papermill():
    import papermill
    from nbformat import NotebookNode, v4
    from papermill.engines import Engine
    from papermill.execute import prepare_notebook_metadata, remove_error_markers
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

from runner.step.client import StepClient  # after papermill, which it imports too
from runner.step.execution import Execution

NEWEST = 5  # minor version of nbformat 4


class RunnerEngine(Engine):  # type: ignore[misc]
    """Executes in `session.kernel`. papermill's own saves are off: `session.save` writes, atomically and seldom."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        execution: Execution = kwargs["execution"]
        try:
            done = super().execute_notebook(nb, kernel_name, **kwargs)
        except BaseException:  # Ctrl-C too: the notebook so far is saved, with true marks
            _mark_unfinished(nb, execution.index)
            with contextlib.suppress(Exception):  # must not hide the first error
                execution.save(nb, True)
            raise
        if execution.ending != "end":
            _mark_unfinished(done, execution.index)
        execution.save(done, True)
        return done

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
        _read_secrets_from_environment(nb_man.nb, kwargs["secrets"])
        StepClient(nb_man, kwargs["execution"], kernel_name=kernel_name, **kwargs.get("client", {})).execute()


def execute(
    notebook: Path,
    parameters: dict[str, Value],
    *,
    language: str,
    kernel_name: str,
    execution: Execution,
    secrets: Mapping[str, str],
) -> list[Any]:
    """The executed notebook's cells; how it ended is in `session`.

    As papermill.execute_notebook, without writing the file and without its verdict, which counts error outputs of cells
    tagged `raises-exception` too.
    """
    nb = _load(notebook)
    if parameters:
        nb = parameterize_notebook(nb, parameters, kernel_name=kernel_name, language=language)
    nb = remove_error_markers(prepare_notebook_metadata(nb, str(notebook), None))
    done = RunnerEngine.execute_notebook(nb, kernel_name, progress_bar=False, execution=execution, secrets=secrets)
    return list(done.cells)


def _load(path: Path) -> Any:
    """As papermill's load_notebook_node, without its validator, which takes 0.1 s to make: a notebook of the newest
    format with proper ids needs none, as runner.notebook.source has read it before."""
    reader: Any = v4
    nb = reader.reads(path.read_text(encoding="utf-8"))
    ids = [cell.get("id") for cell in nb.cells]
    if nb.get("nbformat_minor") != NEWEST or None in ids or len(set(ids)) < len(ids):
        return load_notebook_node(str(path))
    node: Any = NotebookNode
    nb.metadata.setdefault(
        "papermill",
        node(default_parameters=node(), parameters=node(), environment_variables=node(), version=papermill.__version__),
    )
    for cell in nb.cells:
        cell.metadata.setdefault("tags", [])
        cell.metadata.setdefault("papermill", node())
    return nb


def _read_secrets_from_environment(nb: Any, secrets: Mapping[str, str]) -> None:
    """Have the injected cell take each secret from the environment, so that no file has its value."""
    for cell in nb.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            for name, variable in secrets.items():
                line = f'{name} = __import__("os").environ["{variable}"]  # secret'
                cell.source = cell.source.replace(f'{name} = "env:{variable}"', line)


def _mark_unfinished(nb: Any, index: int | None) -> None:
    """papermill marks every cell completed, also those that never ran: mark these as pending."""
    for position, cell in enumerate(nb.cells):
        metadata = cell.metadata.get("papermill", {})
        if index is not None and position == index:
            metadata.update(status="failed", exception=True)
        elif index is None or position > index:
            metadata.update(status="pending", exception=None)
    nb.metadata.papermill["exception"] = True
