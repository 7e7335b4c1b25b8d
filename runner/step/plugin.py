"""`papermill --engine runner`: this package's kernels and honesty for papermill's own users.

papermill loads this module whenever it is imported, so it imports nothing heavy, and papermill least of all. Runs,
caches, gates and registries have no part in it.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.step.process import Kernel
    from runner.step.session import Session


class PapermillEngine:
    """What papermill asks of an engine. Registered under the name `runner`."""

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> Any:
        from papermill.utils import nb_kernel_name

        return nb_kernel_name(nb, name)

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> Any:
        from papermill.utils import nb_language

        return nb_language(nb, language)

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **options: Any) -> Any:
        """The executed notebook. The file at `output_path` is replaced, whole, while it runs and at the end.

        Raises what papermill's users know: nbclient's CellTimeoutError and DeadKernelError, and for a cell that left
        the notebook PapermillExecutionError; errors of cells papermill finds in the outputs.
        """
        from runner.step.engine import RunnerEngine

        _write_whole_files()
        shown = {name: options.get(name) for name in ("progress_bar", "log_output")}
        client = {name: options.get(name) for name in ("log_output", "stdout_file", "stderr_file")}
        save = _save(options.get("output_path") or "")
        session = _session(_kernel(nb, kernel_name), options, save)
        done = RunnerEngine.execute_notebook(nb, kernel_name, session=session, secrets={}, client=client, **shown)
        why = session.kernel.instead or session.kernel.refused
        if why:
            from papermill.log import logger

            logger.warning("Executed by the standard kernel, because %s", why)
        if session.kernel.refused:
            session = _session(_kernel(nb, kernel_name, forked=False), options, save)
            done = RunnerEngine.execute_notebook(nb, kernel_name, session=session, secrets={}, client=client, **shown)
        _raise(session, done)
        return done


def _save(path: str) -> Any:
    """What keeps the notebook while it runs. FileNotFoundError where its folder is missing, before anything runs."""
    from papermill.iorw import LocalHandler, papermill_io

    from runner.step.saving import Saver

    handler = papermill_io.get_handler(path) if path else None
    return Saver(_place(handler, path), None) if isinstance(handler, LocalHandler) else _keep_nothing


def _session(kernel: Kernel, options: dict[str, Any], save: Any) -> Session:
    from runner.step.session import Limits, Session

    limits = Limits(options.get("execution_timeout") or options.get("timeout"))
    made = Session(_tell_nobody, threading.Event(), limits, kernel, save)
    made.numbers_injected = True  # as papermill's own engine does
    return made


def _kernel(nb: Any, name: str, *, forked: bool = True) -> Kernel:
    """A forked kernel where the kernel of that name is this interpreter's; otherwise that kernel."""
    from jupyter_client.kernelspec import KernelSpecManager

    from runner.pipeline.notebook import Cell, Notebook
    from runner.step.forked import ForkServer
    from runner.step.process import KernelProcess
    from runner.step.start import Imports, general_environment, needs_standard

    spec = KernelSpecManager().get_kernel_spec(name)
    here = Path.cwd()
    environment = {**general_environment(0), **spec.env, "JPY_PARENT_PID": str(os.getpid())}
    environment.pop("PYTHONHASHSEED") if "PYTHONHASHSEED" not in os.environ else None
    why = ""
    generic = {"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    argv = [sys.executable if spec.argv[0] in generic else spec.argv[0], *spec.argv[1:]]  # as jupyter_client does
    if forked and argv[:3] == [sys.executable, "-m", "ipykernel_launcher"]:
        cells = tuple(
            Cell(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ())), number)
            for number, cell in enumerate(nb.cells, start=1)
            if cell.cell_type == "code" and cell.source.strip()
        )
        notebook = Notebook(path=here / "notebook.ipynb", cells=cells, language="python", kernel_name=name)
        imports = Imports(notebook)
        why = needs_standard(notebook, imports)
        if not why:
            server = ForkServer(environment)
            made = server.kernel(cwd=here, environment={**environment, "RUNNER_PATH": str(here)}, modules=imports.ahead)
            made.owns_server = True
            return made
    standard = KernelProcess(argv, cwd=here, environment=environment)
    standard.instead = why
    return standard


def _raise(session: Session, nb: Any) -> None:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from runner.pipeline.credentials import Redactor
    from runner.records import StepJob
    from runner.step.ending import why_ended

    job = StepJob(run="", step="", notebook="", parameters={}, outputs={})
    if session.ending == "cell timeout":
        cell = nb.cells[session.index or 0]
        raise CellTimeoutError.error_from_timeout_and_cell(
            "Cell execution timed out", int(session.limits.cell_s or 0), cell
        )
    found = why_ended(session, nb.cells, job, out_of_memory=False, redactor=Redactor())
    if found is None:
        return
    if session.ending == "died":
        raise DeadKernelError(f"Cell [{found.cell}]: {found.evalue}")
    if found.kind == "stopped early":
        cell = nb.cells[session.index or 0]
        raise PapermillExecutionError(
            session.index, cell.execution_count, cell.source, found.ename, found.evalue, [found.evalue]
        )


def _write_whole_files() -> None:
    """Have papermill replace local files instead of writing into them: what is killed then leaves the old one."""
    from papermill.iorw import papermill_io

    handler = papermill_io.get_handler("any.ipynb")
    if "write" not in vars(handler):
        handler.write = functools.partial(_write_whole, handler)


def _write_whole(handler: Any, text: str, path: str) -> None:
    from runner.content import atomic_write

    atomic_write(_place(handler, path), text.encode())


def _place(handler: Any, path: str) -> Path:
    """Where papermill's handler of local files writes; in its words where that cannot be."""
    place = Path(handler._cwd or "", path)
    if not place.parent.is_dir():
        raise FileNotFoundError(f"output folder {place.parent} doesn't exist.")
    return place


def _keep_nothing(nb: Any, now: bool) -> None: ...


def _tell_nobody(index: int, done: bool) -> None: ...
