"""What both kernels change in ipykernel's kernel and IPython's shell, and how they are started as in Jupyter."""
# mypy: disallow-untyped-calls=False
# (ipykernel is not annotated)

from __future__ import annotations

import os
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ipykernel.ipkernel
from ipykernel.ipkernel import IPythonKernel

from runner.kernel.stream import named_as

MEMBERS = 3  # of an exception group, that its error names
# the user's own history is neither read nor written; nbclient starts kernels with this argument too
HISTORY = "--HistoryManager.hist_file=:memory:"


@named_as(IPythonKernel)
class NotebookKernel(IPythonKernel):
    """Replies to every request to execute, also if showing an error fails."""

    async def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # of this cell and no earlier one: IPython does not reset it if the cell awaits something
        shell: Any = self.shell
        shell._last_traceback, shell._last_traceback_during_displayhook = None, False
        try:
            reply: dict[str, Any] = await super().do_execute(code, silent, *args, **kwargs)
        except Exception as error:
            # an exception whose __str__ raises, for example; the runner would wait for ever
            return {
                "status": "error",
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": traceback.format_exception(error),
                "execution_count": shell.execution_count - 1,
                "user_expressions": {},
                "payload": [],
            }
        group = getattr(sys, "last_value", None)
        if isinstance(group, BaseExceptionGroup) and reply.get("evalue") == str(group):
            reply["evalue"] += f": {_members(group)}"
        return reply

    async def _progressively_terminate_all_children(self) -> None:
        """Nothing: exit handlers may wait for children, such as a pool's, and the runner ends the others. ipykernel
        waits half a minute for a zombie."""


def _members(group: BaseExceptionGroup[BaseException]) -> str:
    """The first exceptions in the group and its groups, as text."""
    errors: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending[:0] = error.exceptions
        else:
            errors.append(error)
    first = "; ".join("".join(traceback.format_exception_only(error)).strip() for error in errors[:MEMBERS])
    return f"{first} … ({len(errors)} in all)" if len(errors) > MEMBERS else first


def configure_app(app: Any) -> None:
    """Turn off what Jupyter has for interactive use."""
    # a copy of all that cells print, for `%notebook`, without a limit
    app.shell._tee = lambda **_: nullcontext()
    _look_once(app.shell)
    # Jupyter's debugger ignores `breakpoint()` while nobody is attached; it is not loaded here
    if find_spec("debugpy") is not None:
        sys.breakpointhook = lambda *_, **__: None
    for handler in app.log.handlers:  # the kernel's log belongs to no cell
        handler.stream = open(os.devnull, "w")  # noqa: SIM115


def _look_once(shell: Any) -> None:
    """ipykernel and IPython each translate a cell's magics, and look at the signature of the method that runs it: have
    the second find what the first has found. A notebook's own transformers are called as often as ever."""
    manager = shell.input_transformer_manager
    translate, unchanged = manager.transform_cell, _transformers(manager)
    last: tuple[str | None, str] = (None, "")

    def transform_cell(cell: str) -> str:
        nonlocal last
        if _transformers(manager) != unchanged:
            return str(translate(cell))
        if last[0] != cell:
            last = (cell, translate(cell))
        return last[1]

    manager.transform_cell = transform_cell
    module: Any = ipykernel.ipkernel
    accepted = module._accepts_parameters
    known: list[tuple[Any, Any, Any]] = []  # of the last method

    def accepts_parameters(method: Any, names: Any) -> Any:
        if not known or known[0][:2] != (method, names):
            known[:] = [(method, names, accepted(method, names))]
        return known[0][2]

    module._accepts_parameters = accepts_parameters


def _transformers(manager: Any) -> list[Any]:
    return [*manager.cleanup_transforms, *manager.line_transforms, *manager.token_transformers]


def set_jupyter_argv(connection_file: str) -> None:
    """Set sys.argv as in a kernel that Jupyter has started."""
    launcher = Path(ipykernel.__file__).parent.with_name("ipykernel_launcher.py")
    sys.argv = [str(launcher), "-f", connection_file, HISTORY]


def set_import_path(folders: Sequence[str]) -> None:
    """Put `folders` into sys.path where IPython has the working folder: behind the standard library, before installed
    packages. PYTHONPATH's folders come after them, so that imports find the modules that the run has recorded."""
    pythonpath = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = {os.path.abspath(folder) for folder in pythonpath if folder}  # noqa: PTH100
    others = [folder for folder in sys.path if folder not in named]
    ends = ("", "site-packages", "dist-packages")
    at = next((n for n, folder in enumerate(others) if folder.rpartition(os.sep)[2] in ends), 0)
    sys.path[:] = [*others[:at], *folders, *(folder for folder in sys.path if folder in named), *others[at:]]


def hide_from_formatters(hidden: Callable[[str], bool]) -> None:
    """Hide packages that were loaded ahead and not yet imported from IPython's formatters: `%precision`, and how
    numpy's numbers are shown, depend on whether numpy is in sys.modules."""
    import IPython.core.formatters

    IPython.core.formatters.sys = _System(hidden)  # type: ignore[assignment,attr-defined]


class _System:
    """The module `sys`, with other modules."""

    def __init__(self, hidden: Callable[[str], bool]) -> None:
        self.modules = _Modules(hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class _Modules(UserDict[str, Any]):
    def __init__(self, hidden: Callable[[str], bool]) -> None:
        self.data, self._hidden = sys.modules, hidden

    def __contains__(self, name: object) -> bool:
        return name in self.data and not self._hidden(str(name))
