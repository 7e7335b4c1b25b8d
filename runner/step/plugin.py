"""`papermill --engine runner`: this package's kernels and checks for papermill's own users.

papermill loads this module whenever it is imported, so it imports nothing heavy, papermill included.
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
    from runner.step.execution import Execution

# options that nbclient's client does not take, or takes by another name
NOT_THE_CLIENTS = {
    "input_path", "output_path", "progress_bar", "autosave_cell_every", "execution_timeout", "timeout",
    "start_timeout", "startup_timeout", "km", "kernel_manager_class",
}  # fmt: skip
HISTORY, NO_HISTORY = "--HistoryManager.hist_file", ":memory:"
EXITS = [("SystemExit", ""), ("SystemExit", "0")]  # no error for papermill; an early end for us


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

        Raises nbclient's CellTimeoutError and DeadKernelError, and PapermillExecutionError for a cell that left the
        notebook or whose error is not among its outputs; papermill raises for those that are.
        """
        from runner.step.engine import RunnerEngine

        _refuse(options)
        _write_whole_files()
        client = _client_options(options)
        save = _save(options.get("output_path") or "", options.get("autosave_cell_every", 30))
        shown = {name: options.get(name) for name in ("progress_bar", "log_output")}

        def attempt(kernel: Kernel) -> tuple[Execution, Any]:
            execution = _execution(kernel, options, save)
            return execution, RunnerEngine.execute_notebook(
                nb, kernel_name, execution=execution, secrets={}, client=client, **shown
            )

        execution, executed = attempt(_kernel(nb, kernel_name, options))
        why = execution.kernel.instead or execution.kernel.refused
        if why:
            client["log"].warning("Executed by the standard kernel, because %s", terminal(why))
        if execution.kernel.refused:
            execution, executed = attempt(_kernel(nb, kernel_name, options, forked=False))
        _raise(execution, executed)
        return executed


def _refuse(options: dict[str, Any]) -> None:
    """Raise PapermillException for options that papermill's own engine takes and this one would have to ignore."""
    from papermill.exceptions import PapermillException

    for name in ("km", "kernel_manager_class"):
        if options.get(name) is not None:
            raise PapermillException(
                f"The engine runner starts kernels of its own and takes no {name}. "
                f"Leave {name} out, or use papermill's own engine (engine_name='nbclient')."
            )


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of nbclient's client: the caller's options, as papermill's own engine passes them."""
    from papermill.log import logger

    return {
        **{name: value for name, value in options.items() if name not in NOT_THE_CLIENTS and value is not None},
        "timeout": options.get("execution_timeout") or options.get("timeout"),
        "startup_timeout": options.get("start_timeout") or 60,
        "log": logger,
    }


def _save(path: str, within_cells_s: float) -> Any:
    """The function that saves the notebook while it runs, at least every `within_cells_s` seconds.

    Raises FileNotFoundError if the folder of a local file is missing.
    """
    from papermill.iorw import LocalHandler, papermill_io

    from runner.step.saving import SAVE_EVERY_S, Saver

    every_s = min(SAVE_EVERY_S, within_cells_s or SAVE_EVERY_S)
    if not path:
        return lambda *_: None
    handler = papermill_io.get_handler(path)
    if isinstance(handler, LocalHandler):
        return Saver(_local_file(handler, path), None, every_s=every_s)
    return Saver(Path(path), None, every_s=every_s, put=lambda content: handler.write(content.decode(), path))


def _execution(kernel: Kernel, options: dict[str, Any], save: Any) -> Execution:
    from runner.step.execution import Execution, TimeLimits

    execution = Execution(lambda *_: None, threading.Event(), TimeLimits(), kernel, save)
    execution.numbers_injected = True  # as papermill's own engine does
    execution.saves_within_cells = options.get("autosave_cell_every") != 0
    return execution


def _kernel(nb: Any, name: str, options: dict[str, Any], *, forked: bool = True) -> Kernel:
    """A kernel of ours where the kernel of that name is this interpreter's; otherwise that kernel."""
    from runner.kernel.choose import general_environment
    from runner.kernel.kernelspec import installed_kernel
    from runner.kernel.standard import KernelProcess, start_kernel

    installed = installed_kernel(name)
    cwd = Path.cwd() / (options.get("resources", {}).get("metadata", {}).get("path") or ".")
    environment = {**general_environment(0), **installed.environment, "JPY_PARENT_PID": str(os.getpid())}
    environment.pop("PYTHONHASHSEED") if "PYTHONHASHSEED" not in os.environ else None
    arguments, history = list(options.get("extra_arguments", ())), options.get("ipython_hist_file", NO_HISTORY)
    if not installed.is_this_interpreters or arguments or history != NO_HISTORY:
        if installed.is_ipykernel and history and not any(argument.startswith(HISTORY) for argument in arguments):
            arguments.append(f"{HISTORY}={history}")  # as nbclient does
        return KernelProcess([*installed.argv, *arguments], cwd=cwd, environment=environment)
    environment["RUNNER_PATH"] = str(cwd)
    kernel, why = _forked_kernel(nb, name, cwd, environment) if forked else (None, "")
    if kernel is not None:
        return kernel
    standard = start_kernel(cwd=cwd, environment=environment, language="python", kernel_name=name)
    standard.instead = why
    return standard


def _forked_kernel(nb: Any, name: str, cwd: Path, environment: dict[str, str]) -> tuple[Kernel | None, str]:
    """The kernel; or None, and why the notebook needs the standard one."""
    from runner.kernel.choose import Imports, needs_standard
    from runner.kernel.forked.client import ForkServer
    from runner.notebook.source import Cell, Notebook

    cells = tuple(
        Cell(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ())), number)
        for number, cell in enumerate(nb.cells, start=1)
        if cell.cell_type == "code" and cell.source.strip()
    )
    notebook = Notebook(path=cwd / "notebook.ipynb", cells=cells, language="python", kernel_name=name)
    imports = Imports(notebook)
    why = needs_standard(notebook, imports)
    if why:
        return None, why
    kernel = ForkServer(environment).kernel(cwd=cwd, environment=environment, modules=imports.ahead)
    kernel.owns_server = True
    return kernel, ""


def _raise(execution: Execution, nb: Any) -> None:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from runner.notebook.redaction import Redactor
    from runner.records import StepJob
    from runner.step.outcome import why_ended

    job = StepJob(run="", step="", notebook="", parameters={}, outputs={})
    why = why_ended(execution, nb.cells, job, out_of_memory=False, redactor=Redactor())
    if why is None:
        return
    cell = nb.cells[execution.index or 0]
    if execution.ending == "cell timeout":
        timeout: Any = execution.limit_s
        raise CellTimeoutError.error_from_timeout_and_cell("Cell execution timed out", timeout, cell)
    if execution.ending in ("died", "silent"):
        raise DeadKernelError(f"Cell [{why.cell}]: {why.evalue}")
    if any(out.output_type == "error" and (out.ename, out.evalue) not in EXITS for out in cell.outputs):
        return  # papermill looks for it, and raises
    error = PapermillExecutionError(
        execution.index,
        cell.execution_count,
        cell.source,
        why.ename,
        why.evalue,
        [*why.traceback, f"{why.ename}: {why.evalue}"],
    )
    _mark(nb, error)
    raise error


def _mark(nb: Any, error: Any) -> None:
    """Write papermill's two cells about an error; it does so itself only for errors among the outputs."""
    from nbformat.v4 import new_markdown_cell
    from papermill.execute import ERROR_ANCHOR_MSG, ERROR_MARKER_TAG, ERROR_MESSAGE_TEMPLATE
    from papermill.iorw import write_ipynb

    for index, text in ((error.cell_index, ERROR_ANCHOR_MSG), (0, ERROR_MESSAGE_TEMPLATE % error.exec_count)):
        cell: Any = new_markdown_cell(text)  # type: ignore[no-untyped-call]
        cell.metadata["tags"] = [ERROR_MARKER_TAG]
        nb.cells.insert(index, cell)
    write_ipynb(nb, nb.metadata.papermill.get("output_path"))


def _write_whole_files() -> None:
    """Have papermill replace local files instead of writing into them, so that a kill leaves the old file."""
    from papermill.iorw import papermill_io

    handler = papermill_io.get_handler("any.ipynb")
    if "write" not in vars(handler):
        handler.write = functools.partial(_write_whole, handler)


def _write_whole(handler: Any, text: str, path: str) -> None:
    from runner.content import atomic_write

    atomic_write(_local_file(handler, path), text.encode())


def _local_file(handler: Any, path: str) -> Path:
    """The path to which papermill's handler of local files writes; raises its error if the folder is missing."""
    file = Path(handler._cwd or "", path)
    if not file.parent.is_dir():
        raise FileNotFoundError(f"output folder {file.parent} doesn't exist.")
    return file
