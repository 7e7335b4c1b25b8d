"""Runs a notebook's cells in a kernel process and records what happened.

Built on papermill's nbclient class for messages and outputs. Replaces what makes it slow or its record wrong: waits at
the start, liveness polling, saving, time-outs that leave the kernel running.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, cast

from runner.import_blocking import lean_papermill

with lean_papermill():
    from nbclient.client import timestamp
    from nbclient.exceptions import CellExecutionComplete, CellExecutionError
    from nbclient.util import run_hook
    from nbformat import NotebookNode
    from papermill.clientwrap import PapermillNotebookClient

from runner.kernel.display_limits import DisplayLimits
from runner.kernel.standard import GRACE_S, end
from runner.notebook.recorded import report_in
from runner.step.execution import CellError, Ending, Execution

LEAVE_S = 30.0  # for the notebook's own threads and exit handlers
HURRY_S = 2.0  # where a time-out or somebody ends it, and in other languages
PATIENCE_S = 10  # between a cell's last output and the kernel's reply, which normally come together

log = logging.getLogger(__name__)

OUTPUTS = {
    "stream": ("name", "text"),
    "display_data": ("data", "metadata"),
    "execute_result": ("data", "metadata", "execution_count"),
    "error": ("ename", "evalue", "traceback"),
}
JSON_TYPE = re.compile(r"application/(.*\+)?json")  # what nbformat lets hold more than text


class ExecutionEnded(Exception):
    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class StepClient(PapermillNotebookClient):  # type: ignore[misc]
    """Executes `nb_man.nb` in `session.kernel`; the outcome is in `session`, never in an exception."""

    def __init__(self, nb_man: Any, execution: Execution, **kwargs: Any) -> None:
        super().__init__(nb_man, **{"iopub_timeout": PATIENCE_S, **kwargs})
        self.execution = execution
        self.clear_before_next_output: bool
        self.display_limits = DisplayLimits()
        self.heard = 0  # messages about outputs so far
        self.busy = False  # with a cell that cannot be interrupted

    def execute(self, **_: Any) -> Any:
        """In a separate thread if a loop runs in this one already, as in every notebook's cells."""
        self.reset_execution_trackers()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._run())
            return self.nb
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(lambda: asyncio.run(self._run())).result()
            except BaseException:  # Ctrl-C is raised here, not in the thread
                self.execution.stop.set()
                raise
        return self.nb

    async def _run(self) -> None:
        execution = self.execution
        self.death = asyncio.ensure_future(execution.kernel.died())
        self.kc = execution.kernel.client()
        self.kc.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=True)
        try:
            try:
                info = await self._ready()
                self.nb.metadata["language_info"] = info["content"]["language_info"]
                await run_hook(self.on_notebook_start, notebook=self.nb)
                await self._cells()
                execution.ending = "end"
            except ExecutionEnded as ended:
                execution.ending = ended.ending
            if execution.ending == "died" and not execution.kernel.refused:
                await run_hook(self.on_notebook_error, notebook=self.nb)
            self.set_widgets_metadata()
            if execution.ending not in ("died", "silent") and not self.busy and self.shutdown_kernel == "graceful":
                await self._shut_down()
        finally:
            # closed first: a dying kernel's sockets must not be waited for
            self.kc.stop_channels()
            self.death.cancel()
            await asyncio.gather(self.death, return_exceptions=True)
            if execution.kernel.returncode is not None and execution.exit_code is None:
                execution.exit_code = execution.kernel.returncode
            at_once = execution.kernel.returncode is not None or self.shutdown_kernel == "immediate"
            await end(execution.kernel, grace_s=0.0 if at_once else GRACE_S)
            if not execution.kernel.refused:
                await run_hook(self.on_notebook_complete, notebook=self.nb)

    async def _ready(self) -> dict[str, Any]:
        """The reply to kernel_info, once outputs arrive too; for those nbclient waits a fixed 0.2 s."""
        give_up = time.monotonic() + self.startup_timeout
        while time.monotonic() < give_up:
            request = self.kc.kernel_info()
            reply = await self._until(self._answer(self.kc.shell_channel, request, "kernel_info_reply", 1.0))
            idle = await self._until(self._answer(self.kc.iopub_channel, request, "status", 0.1))
            if reply is not None and idle is not None:
                return cast(dict[str, Any], reply)
        raise ExecutionEnded("died")

    async def _answer(self, channel: Any, request: str, kind: str, timeout_s: float) -> dict[str, Any] | None:
        from queue import Empty

        while True:
            try:
                message: dict[str, Any] = await channel.get_msg(timeout=timeout_s)
            except Empty:
                return None
            idle = kind != "status" or message["content"].get("execution_state") == "idle"
            if message["parent_header"].get("msg_id") == request and message["msg_type"] == kind and idle:
                return message

    async def _cells(self) -> None:
        execution = self.execution
        for index, cell in enumerate(self.nb.cells):
            execution.index = index
            runs = cell.cell_type == "code" and bool(cell.source.strip())
            self.display_limits.begin()
            execution.on_cell(index, False)
            self.nb_man.cell_start(cell, index)
            # the injected cell keeps no history, so that numbers are those after Run All of the source
            injected = "injected-parameters" in cell.metadata.get("tags", []) and not execution.numbers_injected
            try:
                await self._until(
                    self.async_execute_cell(cell, index, store_history=not injected),
                    limit_s=self._limit_s(cell) if runs else None,
                )
            except CellExecutionError as error:
                execution.error = CellError(error.ename, error.evalue)
                self.nb_man.cell_exception(cell, cell_index=index)
                raise ExecutionEnded("error") from None
            except ExecutionEnded:
                self.nb_man.cell_exception(cell, cell_index=index)
                raise
            finally:
                if injected:
                    cell.execution_count = None
                self._complete(cell, index)
            execution.on_cell(index, True)
            execution.save(self.nb, False)

    def _limit_s(self, cell: Any) -> float | None:
        """The time-out that ends the notebook in this cell."""
        if self.interrupt_on_timeout:  # then the cell's end is not the notebook's
            return None
        limit_s: float | None = self.execution.limits.cell_s or self._get_timeout(cell)
        return limit_s

    def _complete(self, cell: Any, index: int) -> None:
        """papermill's metadata of a completed cell; its own parser of the two times takes longer than a short cell."""
        metadata = cell.metadata.papermill
        started, metadata["start_time"] = metadata["start_time"], None
        self.nb_man.cell_complete(cell, cell_index=index)
        duration = datetime.fromisoformat(metadata["end_time"]) - datetime.fromisoformat(started)
        metadata.update(start_time=started, duration=duration.total_seconds())

    async def _until(self, work: Any, *, limit_s: float | None = None) -> Any:
        """The result of `work`. Raises ExecutionEnded if the kernel dies, a limit passes, or a stop is requested."""
        execution = self.execution
        task, death = asyncio.ensure_future(work), self.death
        cell_deadline = time.monotonic() + limit_s if limit_s is not None else math.inf
        deadline = execution.limits.deadline or math.inf
        why: Ending | None = None
        while why is None:
            wait_s = max(0.0, min(0.1, min(cell_deadline, deadline) - time.monotonic()))
            await asyncio.wait({task, death}, timeout=wait_s, return_when="FIRST_COMPLETED")
            if task.done():
                return task.result()
            if death.done():
                why = "died"
                execution.exit_code = death.result()
                execution.last_words = execution.kernel.last_words()
            elif execution.stop.is_set() or execution.lost.is_set():
                why = "stopped" if execution.stop.is_set() else "lost"
            elif time.monotonic() >= deadline:
                why = "step timeout"
            elif time.monotonic() >= cell_deadline:
                why, execution.limit_s = "cell timeout", limit_s
            if execution.saves_within_cells:
                execution.save(self.nb, False)
        return await self._cut_short(task, why)

    async def _cut_short(self, task: asyncio.Future[Any], why: Ending) -> Any:
        """Interrupt the cell unless its kernel has died, and raise ExecutionEnded."""
        if why != "died":
            # an interrupt lets the cell show where it was
            self.execution.kernel.signal(signal.SIGINT)
            await asyncio.wait({task, self.death}, timeout=GRACE_S, return_when="FIRST_COMPLETED")
            self.busy = not task.done()
        await asyncio.wait({task}, timeout=0.05)  # for outputs that are on their way
        if why == "died" and task.done():  # it died after the cell had ended, as after exit()
            return task.result()
        for future in (task, *self._pollers()):
            future.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise ExecutionEnded(why)

    def _pollers(self) -> list[Any]:
        running: Any = asyncio.all_tasks()
        return [task for task in running if task.get_coro().__name__.startswith("_async_poll")]

    async def _async_poll_kernel_alive(self) -> None:
        await asyncio.Event().wait()  # `_until` notices at once; nbclient polls every second

    async def _async_poll_for_reply(
        self, msg_id: str, cell: Any, timeout: int | None, outputs: asyncio.Future[None], alive: asyncio.Future[None]
    ) -> dict[str, Any]:
        """The kernel's reply to the cell, once its outputs have arrived too.

        nbclient's waits for ever if no reply comes, and gives up on outputs that still arrive after 4 s.
        """
        reply: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(self._reply(msg_id, cell))
        try:
            while self.interrupt_on_timeout and not (await asyncio.wait({reply}, timeout=timeout))[0]:
                self.log.error(f"Timeout waiting for execute reply ({timeout}s). Interrupting kernel")
                self.execution.kernel.signal(signal.SIGINT)
                if self.error_on_timeout:
                    reply.cancel()
                    reply = asyncio.get_running_loop().create_future()
                    reply.set_result({"content": {**self.error_on_timeout, "status": "error"}})
            await asyncio.wait({reply, outputs}, return_when="FIRST_COMPLETED")  # type: ignore[type-var]
            while not outputs.done():
                heard = self.heard
                if not (await asyncio.wait({outputs}, timeout=self.iopub_timeout))[0] and heard == self.heard:
                    if self.raise_on_iopub_timeout:
                        raise ExecutionEnded("silent")
                    self.log.warning("Timeout waiting for IOPub output")
                    outputs.cancel()
            if not outputs.cancelled():
                outputs.result()  # raises what went wrong with one of them
            if not reply.done() and not (await asyncio.wait({reply}, timeout=self.iopub_timeout))[0]:
                raise ExecutionEnded("silent")
            return reply.result()
        finally:
            reply.cancel()
            alive.cancel()

    async def _reply(self, msg_id: str, cell: Any) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = await self.kc.shell_channel.get_msg(timeout=None)
            if message["parent_header"].get("msg_id") == msg_id:
                if self.record_timing:
                    cell.metadata["execution"]["shell.execute_reply"] = timestamp(message)
                return message

    async def _check_raise_for_error(self, cell: Any, cell_index: int, exec_reply: dict[str, Any]) -> None:
        await super()._check_raise_for_error(cell, cell_index, exec_reply)
        # ipykernel goes down in its own time then, in this cell or in one after it
        for asked in exec_reply["content"].get("payload", ()):
            if asked.get("source") == "ask_exit" and not asked.get("keepkernel"):
                raise ExecutionEnded("left")

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.heard += 1
        kind, content = msg["msg_type"], msg["content"]
        try:
            if not self.display_limits.allows(kind, content):
                return None
            if kind in ("display_data", "execute_result", "update_display_data"):
                content["data"] = {
                    name: _storable(name, value) for name, value in content["data"].items() if value is not None
                }
                if (report := report_in(content["data"])) is not None:
                    self.execution.on_report(report)
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            raise
        except Exception as error:  # a message of a widget, for example, that nbclient cannot handle
            sentence = f"a message of the kernel ({kind}) cannot be taken in: {error!r}"
            self.execution.error = CellError("KernelMessageError", sentence)
            raise ExecutionEnded("error") from error

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        """As nbclient's, without checking each output against the notebook format's schema."""
        kind = msg["msg_type"]
        if kind not in OUTPUTS or self.output_hook_stack[msg["parent_header"].get("msg_id")]:
            return super().output(outs, msg, display_id, cell_index)
        if self.clear_before_next_output:
            outs.clear()
            self.clear_display_id_mapping(cell_index)
            self.clear_before_next_output = False
        if display_id:
            self._display_id_map.setdefault(display_id, {}).setdefault(cell_index, []).append(len(outs))
        node: Any = NotebookNode
        outs.append(node(output_type=kind, **{field: msg["content"][field] for field in OUTPUTS[kind]}))
        return outs[-1]

    async def _shut_down(self) -> None:
        """Ask the kernel to exit, so that the notebook's own threads end, its exit handlers run, and its open files are
        written. A stop, and the step's time-out, shorten that."""
        execution, was_stopped = self.execution, self.execution.stop.is_set()
        in_python = self.nb.metadata.get("language_info", {}).get("name") == "python"
        patience_s = LEAVE_S if execution.ending in ("end", "error", "left") and in_python else HURRY_S
        now, deadline = time.monotonic(), execution.limits.deadline or math.inf
        give_up = min(now + patience_s, max(deadline, now + HURRY_S))
        self.kc.shutdown()
        while not self.death.done() and time.monotonic() < give_up and execution.stop.is_set() == was_stopped:
            await asyncio.wait({self.death}, timeout=0.1)
        if not self.death.done():
            if in_python:  # kernels of other languages may ignore the request
                text = "The notebook's own threads or exit handlers had not ended after %.0f s; they were ended"
                log.warning(text, time.monotonic() - now)
            execution.kernel.signal(signal.SIGTERM)


def _storable(mime: str, value: Any) -> Any:
    """The value as nbformat accepts it: any if the type is JSON, otherwise text or its lines."""
    is_lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return value if JSON_TYPE.fullmatch(mime) or isinstance(value, str) or is_lines else json.dumps(value)
