"""`papermill --engine runner`: this package's kernels and honesty for papermill's own users.

papermill loads this module whenever it is imported, so it imports nothing heavy, and papermill least of all. Runs,
caches, gates and registries have no part in it.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.escape import terminal

if TYPE_CHECKING:
    from runner.kernel.standard import Kernel
    from runner.step.session import Session

# options that are meant for others than nbclient's client, or that it gets by another name
NOT_THE_CLIENTS = {"input_path", "output_path", "progress_bar", "autosave_cell_every", "execution_timeout", "timeout",
                   "start_timeout", "startup_timeout", "km", "kernel_manager_class"}  # fmt: skip
HISTORY, NO_HISTORY = "--HistoryManager.hist_file", ":memory:"
LEAVES = [("SystemExit", ""), ("SystemExit", "0")]  # no error to papermill; an early end to us


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

        Raises what papermill's users know: nbclient's CellTimeoutError and DeadKernelError, and PapermillExecutionError
        for a cell that left the notebook or whose error is not among its outputs; the others papermill finds there.
        """
        from runner.step.engine import RunnerEngine

        _refuse(options)
        _write_whole_files()
        client = _client_options(options)
        save = _save(options.get("output_path") or "", options.get("autosave_cell_every", 30))
        shown = {name: options.get(name) for name in ("progress_bar", "log_output")}

        def attempt(kernel: Kernel) -> tuple[Session, Any]:
            session = _session(kernel, options, save)
            return session, RunnerEngine.execute_notebook(
                nb, kernel_name, session=session, secrets={}, client=client, **shown
            )

        session, done = attempt(_kernel(nb, kernel_name, options))
        why = session.kernel.instead or session.kernel.refused
        if why:
            client["log"].warning("Executed by the standard kernel, because %s", terminal(why))
        if session.kernel.refused:
            session, done = attempt(_kernel(nb, kernel_name, options, forked=False))
        _raise(session, done)
        return done


def _refuse(options: dict[str, Any]) -> None:
    """PapermillException for what papermill's own engine takes and this one would have to ignore."""
    from papermill.exceptions import PapermillException

    for name in ("km", "kernel_manager_class"):
        if options.get(name) is not None:
            raise PapermillException(
                f"The engine runner starts kernels of its own and takes no {name}. "
                f"Leave {name} out, or use papermill's own engine (engine_name='nbclient')."
            )


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    """What nbclient's client is made with: the caller's options, as papermill's own engine hands them on."""
    from papermill.log import logger

    return {
        **{name: value for name, value in options.items() if name not in NOT_THE_CLIENTS and value is not None},
        "timeout": options.get("execution_timeout") or options.get("timeout"),
        "startup_timeout": options.get("start_timeout") or 60,
        "log": logger,
    }


def _save(path: str, within_cells_s: float) -> Any:
    """What keeps the notebook while it runs, at least every `within_cells_s` seconds.

    FileNotFoundError where the folder of a local file is missing, before anything runs.
    """
    from papermill.iorw import LocalHandler, papermill_io

    from runner.step.saving import SAVE_EVERY_S, Saver

    every_s = min(SAVE_EVERY_S, within_cells_s or SAVE_EVERY_S)
    if not path:
        return _keep_nothing
    handler = papermill_io.get_handler(path)
    if isinstance(handler, LocalHandler):
        return Saver(_place(handler, path), None, every_s=every_s)
    return Saver(Path(path), None, every_s=every_s, put=lambda content: handler.write(content.decode(), path))


def _session(kernel: Kernel, options: dict[str, Any], save: Any) -> Session:
    from runner.step.session import Limits, Session

    made = Session(_tell_nobody, threading.Event(), Limits(), kernel, save)
    made.numbers_injected = True  # as papermill's own engine does
    made.saves_within_cells = options.get("autosave_cell_every") != 0
    return made


def _kernel(nb: Any, name: str, options: dict[str, Any], *, forked: bool = True) -> Kernel:
    """A kernel of ours where the kernel of that name is this interpreter's; otherwise that kernel."""
    from runner.kernel.choose import general_environment
    from runner.kernel.kernelspec import installed_kernel
    from runner.kernel.standard import KernelProcess, start_kernel

    asked = installed_kernel(name)
    here = Path.cwd() / (options.get("resources", {}).get("metadata", {}).get("path") or ".")
    environment = {**general_environment(0), **asked.environment, "JPY_PARENT_PID": str(os.getpid())}
    environment.pop("PYTHONHASHSEED") if "PYTHONHASHSEED" not in os.environ else None
    arguments, history = list(options.get("extra_arguments", ())), options.get("ipython_hist_file", NO_HISTORY)
    if not asked.is_this_interpreters or arguments or history != NO_HISTORY:
        if asked.is_ipykernel and history and not any(one.startswith(HISTORY) for one in arguments):
            arguments.append(f"{HISTORY}={history}")  # as nbclient does
        return KernelProcess([*asked.argv, *arguments], cwd=here, environment=environment)
    ours = {**environment, "RUNNER_PATH": str(here)}
    made, why = _forked_kernel(nb, name, here, ours) if forked else (None, "")
    if made is not None:
        return made
    standard = start_kernel(cwd=here, environment=ours, language="python", kernel_name=name)
    standard.instead = why
    return standard


def _forked_kernel(nb: Any, name: str, here: Path, environment: dict[str, str]) -> tuple[Kernel | None, str]:
    """It, or why the notebook needs the standard one."""
    from runner.kernel.choose import Imports, needs_standard
    from runner.kernel.forked.client import ForkServer
    from runner.notebook.source import Cell, Notebook

    cells = tuple(
        Cell(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ())), number)
        for number, cell in enumerate(nb.cells, start=1)
        if cell.cell_type == "code" and cell.source.strip()
    )
    notebook = Notebook(path=here / "notebook.ipynb", cells=cells, language="python", kernel_name=name)
    imports = Imports(notebook)
    why = needs_standard(notebook, imports)
    if why:
        return None, why
    made = ForkServer(environment).kernel(cwd=here, environment=environment, modules=imports.ahead)
    made.owns_server = True
    return made, ""


def _raise(session: Session, nb: Any) -> None:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from runner.notebook.redaction import Redactor
    from runner.records import StepJob
    from runner.step.outcome import why_ended

    job = StepJob(run="", step="", notebook="", parameters={}, outputs={})
    found = why_ended(session, nb.cells, job, out_of_memory=False, redactor=Redactor())
    if found is None:
        return
    cell = nb.cells[session.index or 0]
    if session.ending == "cell timeout":
        timeout: Any = session.limit_s
        raise CellTimeoutError.error_from_timeout_and_cell("Cell execution timed out", timeout, cell)
    if session.ending in ("died", "silent"):
        raise DeadKernelError(f"Cell [{found.cell}]: {found.evalue}")
    if any(out.output_type == "error" and (out.ename, out.evalue) not in LEAVES for out in cell.outputs):
        return  # papermill looks for it, and raises
    error = PapermillExecutionError(
        session.index,
        cell.execution_count,
        cell.source,
        found.ename,
        found.evalue,
        [*found.traceback, f"{found.ename}: {found.evalue}"],
    )
    _mark(nb, error)
    raise error


def _mark(nb: Any, error: Any) -> None:
    """Write papermill's two cells about an error, which it makes itself only for those among the outputs."""
    from nbformat.v4 import new_markdown_cell
    from papermill.execute import ERROR_ANCHOR_MSG, ERROR_MARKER_TAG, ERROR_MESSAGE_TEMPLATE
    from papermill.iorw import write_ipynb

    for index, said in ((error.cell_index, ERROR_ANCHOR_MSG), (0, ERROR_MESSAGE_TEMPLATE % error.exec_count)):
        cell: Any = new_markdown_cell(said)  # type: ignore[no-untyped-call]
        cell.metadata["tags"] = [ERROR_MARKER_TAG]
        nb.cells.insert(index, cell)
    write_ipynb(nb, nb.metadata.papermill.get("output_path"))


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
