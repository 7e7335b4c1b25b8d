"""Runs a notebook's cells in a kernel process and keeps an honest record of what happened.

Built on papermill's nbclient class for the messages and outputs; replaces what makes it slow or
untruthful: start-up waits, liveness polling, saving, time-outs that leave the kernel running.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from runner.lean import PAPERMILLS, without

with without(*PAPERMILLS, "pyarrow"):
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from nbformat import NotebookNode
    from papermill.clientwrap import PapermillNotebookClient

from runner.step.ceiling import Ceiling
from runner.step.process import GRACE_S, Kernel, end

READY_S = 60.0
SHUTDOWN_S = 2.0  # for the notebook's own exit handlers

OUTPUTS = {
    "stream": ("name", "text"),
    "display_data": ("data", "metadata"),
    "execute_result": ("data", "metadata", "execution_count"),
    "error": ("ename", "evalue", "traceback"),
}

Ending = Literal["end", "error", "cell timeout", "step timeout", "stopped", "died"]


@dataclass(frozen=True)
class Limits:
    cell_s: float | None = None
    deadline: float | None = None  # on time.monotonic()


@dataclass
class Session:
    """How one execution went, filled in as it goes on."""

    on_cell: Callable[[int, bool], None]  # (index of the cell in the notebook, it is done)
    stop: threading.Event
    limits: Limits
    kernel: Kernel
    save: Callable[[Any, bool], None]  # (notebook, now rather than when it is time)
    ending: Ending | None = None
    index: int | None = None  # of the cell it ended in
    exit_code: int | None = None
    last_words: str = ""
    numbers_injected: bool = False  # the injected cell counts like any other


class _Ended(Exception):
    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class StepClient(PapermillNotebookClient):  # type: ignore[misc]
    """Executes `nb_man.nb` in `session.kernel`; the outcome is in `session`, never in an exception."""

    def __init__(self, nb_man: Any, session: Session, **kwargs: Any) -> None:
        super().__init__(nb_man, **kwargs)
        self.session = session
        self.clear_before_next_output: bool
        self.ceiling = Ceiling()

    def execute(self, **_: Any) -> Any:
        self.reset_execution_trackers()
        asyncio.run(self._run())
        return self.nb

    async def _run(self) -> None:
        session = self.session
        self.death = asyncio.ensure_future(session.kernel.died())
        self.kc = session.kernel.client()
        self.kc.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=True)
        try:
            info = await self._ready()
            self.nb.metadata["language_info"] = info["content"]["language_info"]
            await self._cells()
            session.ending = "end"
            self.set_widgets_metadata()
            await self._shut_down()
        except _Ended as ended:
            session.ending = ended.ending
        finally:
            # closed first: a dying kernel's sockets must not be waited for
            self.kc.stop_channels()
            self.death.cancel()
            await asyncio.gather(self.death, return_exceptions=True)
            if session.kernel.returncode is not None and session.exit_code is None:
                session.exit_code = session.kernel.returncode
            await end(session.kernel, grace_s=0.0 if session.kernel.returncode is not None else GRACE_S)

    async def _ready(self) -> dict[str, Any]:
        """The reply to kernel_info, once outputs arrive too; nbclient waits a fixed 0.2 s for those."""
        give_up = time.monotonic() + READY_S
        while time.monotonic() < give_up:
            request = self.kc.kernel_info()
            reply = await self._until(self._answer(self.kc.shell_channel, request, "kernel_info_reply", 1.0))
            idle = await self._until(self._answer(self.kc.iopub_channel, request, "status", 0.1))
            if reply is not None and idle is not None:
                return cast(dict[str, Any], reply)
        raise _Ended("died")

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
        session = self.session
        for index, cell in enumerate(self.nb.cells):
            session.index = index
            runs = cell.cell_type == "code" and bool(cell.source.strip())
            self.ceiling.begin()
            session.on_cell(index, False)
            self.nb_man.cell_start(cell, index)
            # the injected cell keeps no history, so that numbers are those after Run All of the source
            injected = "injected-parameters" in cell.metadata.get("tags", []) and not session.numbers_injected
            try:
                await self._until(
                    self.async_execute_cell(cell, index, store_history=not injected),
                    limit_s=session.limits.cell_s if runs else None,
                )
            except CellExecutionError:
                self.nb_man.cell_exception(cell, cell_index=index)
                raise _Ended("error") from None
            except _Ended:
                self.nb_man.cell_exception(cell, cell_index=index)
                raise
            finally:
                if injected:
                    cell.execution_count = None
                self._complete(cell, index)
            session.on_cell(index, True)
            session.save(self.nb, False)

    def _complete(self, cell: Any, index: int) -> None:
        """papermill's marks of a cell that is done; its parser for the two moments takes longer than a short cell."""
        marks = cell.metadata.papermill
        started, marks["start_time"] = marks["start_time"], None
        self.nb_man.cell_complete(cell, cell_index=index)
        took = datetime.fromisoformat(marks["end_time"]) - datetime.fromisoformat(started)
        marks.update(start_time=started, duration=took.total_seconds())

    async def _until(self, work: Any, *, limit_s: float | None = None) -> Any:
        """The result of `work`, unless the kernel dies, time runs out, or a stop is asked for first."""
        session = self.session
        task, death = asyncio.ensure_future(work), self.death
        started = time.monotonic()
        why: Ending | None = None
        while why is None:
            left = [0.1]
            if limit_s is not None:
                left.append(started + limit_s - time.monotonic())
            if session.limits.deadline is not None:
                left.append(session.limits.deadline - time.monotonic())
            done, _ = await asyncio.wait({task, death}, timeout=max(0.0, min(left)), return_when="FIRST_COMPLETED")
            if task in done:
                try:
                    return task.result()
                except DeadKernelError:
                    raise _Ended("died") from None
            if death in done:
                why = "died"
                session.exit_code = death.result()
                session.last_words = session.kernel.last_words()
            elif session.stop.is_set():
                why = "stopped"
            elif session.limits.deadline is not None and time.monotonic() >= session.limits.deadline:
                why = "step timeout"
            elif limit_s is not None and time.monotonic() >= started + limit_s:
                why = "cell timeout"
            session.save(self.nb, False)
        if why != "died":
            # an interrupt lets the cell show where it was
            session.kernel.signal(signal.SIGINT)
            await asyncio.wait({task, death}, timeout=GRACE_S, return_when="FIRST_COMPLETED")
        await asyncio.sleep(0.05)  # for outputs that are on their way
        for future in (task, *self._pollers()):
            future.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise _Ended(why)

    def _pollers(self) -> list[Any]:
        return [task for task in asyncio.all_tasks() if task.get_coro().__name__.startswith("_async_poll")]  # type: ignore[union-attr]

    async def _async_poll_kernel_alive(self) -> None:
        await asyncio.Event().wait()  # `_until` knows at once; nbclient would poll every second

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if not self.ceiling.lets(msg["msg_type"], msg["content"]):
            return None
        return super().process_message(msg, cell, cell_index)

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
        made = node(output_type=kind, **{field: msg["content"][field] for field in OUTPUTS[kind]})
        outs.append(made)
        return made

    async def _shut_down(self) -> None:
        """Ask the kernel to exit, so that its exit handlers run and open files are flushed."""
        self.kc.shutdown()
        done, _ = await asyncio.wait({self.death}, timeout=SHUTDOWN_S)
        if not done:
            self.session.kernel.signal(signal.SIGTERM)
