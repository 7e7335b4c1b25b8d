"""One execution of a notebook, shared by the code that starts, runs and judges it. Imports nothing heavy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.kernel.standard import Kernel
from runner.notebook.recorded import Report

# "left": a cell called exit(); "silent": the kernel runs, but did not reply that the cell had ended;
# "lost": the cluster that it worked on has ended
Ending = Literal["end", "error", "left", "cell timeout", "step timeout", "stopped", "died", "silent", "lost"]


@dataclass(frozen=True)
class TimeLimits:
    cell_s: float | None = None
    deadline: float | None = None  # on time.monotonic()


@dataclass(frozen=True)
class CellError:
    """The exception that ended a cell, as the kernel's reply has it; not every one is among the cell's outputs."""

    ename: str
    evalue: str
    traceback: list[str] = field(default_factory=list)


@dataclass
class Execution:
    """One execution, updated while it runs."""

    on_cell: Callable[[int, bool], None]  # (index of the cell in the notebook, it is done)
    stop: threading.Event
    limits: TimeLimits
    kernel: Kernel
    save: Callable[[Any, bool], None]  # (notebook, now rather than when it is time)
    ending: Ending | None = None
    index: int | None = None  # of the cell it ended in
    error: CellError | None = None  # where it ended with an error
    limit_s: float | None = None  # where it ended with a cell's time-out
    exit_code: int | None = None
    last_words: str = ""
    lost: threading.Event = field(default_factory=threading.Event)  # the cluster has ended
    numbers_injected: bool = False  # the injected cell counts like any other
    saves_within_cells: bool = True
    on_report: Callable[[Report], None] = lambda _: None
