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
from typing import Any, Literal, cast

from jupyter_client.asynchronous.client import AsyncKernelClient

from runner.lean import PAPERMILLS, without

with without(*PAPERMILLS, "pyarrow"):
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient

from runner.step.process import GRACE_S, KernelProcess

READY_S = 60.0
SHUTDOWN_S = 2.0  # for the notebook's own exit handlers
LIMIT_BYTES = 50_000_000  # of one displayed output

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
    kernel: KernelProcess
    save: Callable[[Any, bool], None]  # (notebook, now rather than when it is time)
    ending: Ending | None = None
    index: int | None = None  # of the cell it ended in
    exit_code: int | None = None
    last_words: str = ""


class _Ended(Exception):
    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class StepClient(PapermillNotebookClient):  # type: ignore[misc]
    """Executes `nb_man.nb` in `session.kernel`; the outcome is in `session`, never in an exception."""

    def __init__(self, nb_man: Any, session: Session, **kwargs: Any) -> None:
        super().__init__(nb_man, **kwargs)
        self.session = session

    def execute(self, **_: Any) -> Any:
        self.reset_execution_trackers()
        asyncio.run(self._run())
        return self.nb

    async def _run(self) -> None:
        session = self.session
        self.kc = AsyncKernelClient()
        self.kc.load_connection_info(cast(Any, session.kernel.connection))
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
            if session.kernel.returncode is not None and session.exit_code is None:
                session.exit_code = session.kernel.returncode
            await session.kernel.end(grace_s=0.0 if session.kernel.returncode is not None else GRACE_S)

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
            session.on_cell(index, False)
            self.nb_man.cell_start(cell, index)
            # the injected cell keeps no history, so that numbers are those after Run All of the source
            injected = "injected-parameters" in cell.metadata.get("tags", [])
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
                self.nb_man.cell_complete(cell, cell_index=index)
            session.on_cell(index, True)
            session.save(self.nb, False)

    async def _until(self, work: Any, *, limit_s: float | None = None) -> Any:
        """The result of `work`, unless the kernel dies, time runs out, or a stop is asked for first."""
        session = self.session
        task = asyncio.ensure_future(work)
        death = asyncio.ensure_future(session.kernel.died())
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
                death.cancel()
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
        for future in (task, death, *self._pollers()):
            future.cancel()
        await asyncio.gather(task, death, return_exceptions=True)
        raise _Ended(why)

    def _pollers(self) -> list[Any]:
        return [task for task in asyncio.all_tasks() if task.get_coro().__name__.startswith("_async_poll")]  # type: ignore[union-attr]

    async def _async_poll_kernel_alive(self) -> None:
        await asyncio.Event().wait()  # `_until` knows at once; nbclient would poll every second

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "execute_result", "update_display_data"):
            data = msg["content"]["data"]
            size = sum(len(value) for value in data.values() if isinstance(value, str))
            if size > LIMIT_BYTES:
                msg["content"]["data"] = {"text/plain": f"[not kept: an output of {size:,} characters]"}
        return super().process_message(msg, cell, cell_index)

    async def _shut_down(self) -> None:
        """Ask the kernel to exit, so that its exit handlers run and open files are flushed."""
        self.kc.shutdown()
        try:
            await asyncio.wait_for(self.session.kernel.died(), SHUTDOWN_S)
        except TimeoutError:
            self.session.kernel.signal(signal.SIGTERM)
