"""One execution of a notebook, as those who start, follow and judge it share it. Imports nothing heavy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from runner.kernel.standard import Kernel

# "left": a cell called exit(); "silent": the kernel lives, and never said that the cell had ended, or how
Ending = Literal["end", "error", "left", "cell timeout", "step timeout", "stopped", "died", "silent"]


@dataclass(frozen=True)
class Limits:
    cell_s: float | None = None
    deadline: float | None = None  # on time.monotonic()


@dataclass(frozen=True)
class Raised:
    """The exception that ended a cell, in the kernel's words; not every one is among the cell's outputs."""

    ename: str
    evalue: str


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
    raised: Raised | None = None  # where it ended with an error
    limit_s: float | None = None  # where it ended with a cell's time-out
    exit_code: int | None = None
    last_words: str = ""
    numbers_injected: bool = False  # the injected cell counts like any other
    saves_within_cells: bool = True
