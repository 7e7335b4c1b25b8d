"""papermill's way to our client: an engine, and one function that runs a notebook with papermill's parts and with it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.import_blocking import PAPERMILLS, without
from runner.records import Value

with without(*PAPERMILLS, "pyarrow"):  # nothing in this process reads tables
    import papermill
    from nbformat import NotebookNode, v4
    from papermill.engines import Engine
    from papermill.execute import prepare_notebook_metadata, remove_error_markers
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

from runner.step.client import StepClient  # after papermill, which it imports too
from runner.step.session import Session

NEWEST = 5  # minor version of nbformat 4


class RunnerEngine(Engine):  # type: ignore[misc]
    """Executes in `session.kernel`. papermill's own saves are off: `session.save` writes, atomically and seldom."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        session: Session = kwargs["session"]
        try:
            done = super().execute_notebook(nb, kernel_name, **kwargs)
        except BaseException:  # Ctrl-C too: what has been executed is kept, and told as it is
            _tell_the_truth(nb, session.index)
            with contextlib.suppress(Exception):  # must not hide the first one; another store has errors of its own
                session.save(nb, True)
            raise
        if session.ending != "end":
            _tell_the_truth(done, session.index)
        session.save(done, True)
        return done

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
        _look_up(nb_man.nb, kwargs["secrets"])
        StepClient(nb_man, kwargs["session"], kernel_name=kernel_name, **kwargs.get("client", {})).execute()


def execute(
    notebook: Path,
    parameters: dict[str, Value],
    *,
    language: str,
    kernel_name: str,
    session: Session,
    secrets: Mapping[str, str],
) -> list[Any]:
    """The executed notebook's cells; how it ended is in `session`.

    What papermill.execute_notebook does, without what it does for a file that is not written here, and without its
    verdict: it goes by the error outputs it finds, so cells tagged `raises-exception` count too.
    """
    nb = _load(notebook)
    if parameters:
        nb = parameterize_notebook(nb, parameters, kernel_name=kernel_name, language=language)
    nb = remove_error_markers(prepare_notebook_metadata(nb, str(notebook), None))
    done = RunnerEngine.execute_notebook(nb, kernel_name, progress_bar=False, session=session, secrets=secrets)
    return list(done.cells)


def _load(path: Path) -> Any:
    """As papermill's load_notebook_node. A notebook of the newest format with proper ids needs no validator for it,
    which takes 0.1 s to be made; the notebook has been read before, by runner.notebook.source."""
    nb: Any = v4.reads(  # type: ignore[no-untyped-call]
        path.read_text(encoding="utf-8")
    )
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


def _look_up(nb: Any, secrets: Mapping[str, str]) -> None:
    """Have the injected cell take each secret from the environment: the value stands in no file."""
    for cell in nb.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            for name, variable in secrets.items():
                line = f'{name} = __import__("os").environ["{variable}"]  # secret'
                cell.source = cell.source.replace(f'{name} = "env:{variable}"', line)


def _tell_the_truth(nb: Any, index: int | None) -> None:
    """papermill marks every cell completed, also those that never ran: put them back to pending."""
    for position, cell in enumerate(nb.cells):
        marks = cell.metadata.get("papermill", {})
        if index is not None and position == index:
            marks.update(status="failed", exception=True)
        elif index is None or position > index:
            marks.update(status="pending", exception=None)
    nb.metadata.papermill["exception"] = True
