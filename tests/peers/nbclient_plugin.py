"""A pytest plugin for nbclient's own tests: their NotebookClient is our client with a kernel of ours.

`PEERS_KERNEL` says which: forked or standard.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import nbclient
import nbclient.client
import nbclient.exceptions
from papermill.engines import NotebookExecutionManager

from runner.kernel.standard import Kernel
from runner.step import plugin
from runner.step.client import StepClient
from runner.step.session import Limits, Session

FORKED = os.environ.get("PEERS_KERNEL") == "forked"


class NotebookClient(StepClient):
    """Executes as the engine does, and then raises what nbclient's callers know."""

    def __init__(self, nb: Any, km: Any = None, **options: Any) -> None:
        manager = NotebookExecutionManager(nb, progress_bar=False)
        nothing: Any = None
        session = Session(lambda *_: None, threading.Event(), Limits(), nothing, lambda *_: None)
        super().__init__(manager, session, km=km, **{"raise_on_iopub_timeout": False, **options})

    def execute(self, **_: Any) -> Any:
        self._attempt(self._kernel(forked=FORKED))
        if self.session.kernel.refused:
            self._attempt(self._kernel(forked=False))
        if self.session.ending == "error":
            cell, raised = self.nb.cells[self.session.index or 0], self.session.raised
            told: dict[str, Any] = {"ename": raised.ename, "evalue": raised.evalue} if raised else {}
            told["traceback"] = [line for out in cell.outputs for line in out.get("traceback", ())]
            raise nbclient.exceptions.CellExecutionError.from_cell_and_msg(cell, told)
        plugin._raise(self.session, self.nb)
        return self.nb

    async def async_execute(self, **_: Any) -> Any:
        return await asyncio.to_thread(self.execute)

    def _attempt(self, kernel: Kernel) -> None:
        self.nb.metadata.setdefault("papermill", {})
        self.nb_man.notebook_start()
        before = self.session
        self.session = Session(before.on_cell, before.stop, before.limits, kernel, before.save, numbers_injected=True)
        super().execute()

    def _kernel(self, *, forked: bool) -> Kernel:
        name = self.kernel_name or self.nb.metadata.get("kernelspec", {}).get("name") or "python3"
        options = {given: getattr(self, given) for given in ("resources", "extra_arguments", "ipython_hist_file")}
        return plugin._kernel(self.nb, name, options, forked=forked)


def pytest_configure() -> None:
    nbclient.NotebookClient = nbclient.client.NotebookClient = NotebookClient
