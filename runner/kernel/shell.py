"""What both kernels change in ipykernel's kernel and in IPython's shell, and what they are started with as in Jupyter."""
# mypy: disallow-untyped-calls=False
# (ipykernel is not annotated)

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ipykernel.ipkernel import IPythonKernel

from runner.kernel.stream import named_as

# nothing of the user's own history is read or written; nbclient says the same on the kernel's command line
MEMBERS = 3  # of an exception group, that its error names
HISTORY = "--HistoryManager.hist_file=:memory:"


@named_as(IPythonKernel)
class NotebookKernel(IPythonKernel):
    """Answers every request to execute, whatever went wrong as it told of an error."""

    async def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # of this cell and no earlier one; where it awaits something, IPython forgets to begin anew
        shell: Any = self.shell
        shell._last_traceback, shell._last_traceback_during_displayhook = None, False
        try:
            reply: dict[str, Any] = await super().do_execute(code, silent, *args, **kwargs)
        except Exception as error:
            # an exception whose own text cannot be had, for one; the runner would wait for ever
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
        """Nothing: exit handlers may wait for children, those of a pool say, and the runner ends all that is left.
        ipykernel waits half a minute for a child that nobody has waited for."""


def _members(group: BaseExceptionGroup[BaseException]) -> str:
    """The exceptions that the group and the groups in it hold, the first of them by name."""
    found: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        one = pending.pop(0)
        if isinstance(one, BaseExceptionGroup):
            pending[:0] = one.exceptions
        else:
            found.append(one)
    named = "; ".join("".join(traceback.format_exception_only(one)).strip() for one in found[:MEMBERS])
    return f"{named} … ({len(found)} in all)" if len(found) > MEMBERS else named


def settle_in(app: Any) -> None:
    """What our kernels do without: what Jupyter has for people who sit at it."""
    # a copy of all that cells print, for `%notebook`, without a ceiling
    app.shell._tee = lambda **_: nullcontext()
    # Jupyter's debugger ignores `breakpoint()` while nobody is attached; it is not loaded here
    if find_spec("debugpy") is not None:
        sys.breakpointhook = lambda *_, **__: None
    for handler in app.log.handlers:  # the kernel's log belongs to no cell
        handler.stream = open(os.devnull, "w")  # noqa: SIM115


def name_as_jupyter(connection_file: str) -> None:
    """Have sys.argv be what it is in a kernel that Jupyter has started."""
    import ipykernel

    launcher = Path(ipykernel.__file__).parent.with_name("ipykernel_launcher.py")
    sys.argv = [str(launcher), "-f", connection_file, HISTORY]


def find_in(folders: Sequence[str]) -> None:
    """Have imports look into `folders` where IPython has them look into the working folder, behind the standard library
    and before what is installed; PYTHONPATH's come next, so that what the run has recorded is what it imports."""
    named = {os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place}  # noqa: PTH100
    others = [place for place in sys.path if place not in named]
    ends = ("", "site-packages", "dist-packages")
    at = next((n for n, place in enumerate(others) if place.rpartition(os.sep)[2] in ends), 0)
    sys.path[:] = [*others[:at], *folders, *(place for place in sys.path if place in named), *others[at:]]


def hide(hidden: Callable[[str], bool]) -> None:
    """Have IPython's formatters not see packages that were loaded ahead and are `hidden` still: `%precision`, and how
    numpy's numbers are shown, go by whether it is in sys.modules."""
    import IPython.core.formatters

    IPython.core.formatters.sys = _System(hidden)  # type: ignore[assignment,attr-defined]


class _System:
    """The module `sys`, with other modules."""

    def __init__(self, hidden: Callable[[str], bool]) -> None:
        self.modules = _Modules(hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class _Modules:
    def __init__(self, hidden: Callable[[str], bool]) -> None:
        self._hidden = hidden

    def __contains__(self, name: str) -> bool:
        return name in sys.modules and not self._hidden(name)

    def __getitem__(self, name: str) -> Any:
        return sys.modules[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules, name)
