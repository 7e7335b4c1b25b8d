"""What a kernel's cells print and display, with a ceiling per cell, so that endless output costs no memory.

Lives in the kernel process, because a ceiling at the receiving end comes after the gigabyte was sent.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

from ipykernel.iostream import OutStream
from jupyter_client.session import Session

from runner.step.ceiling import Ceiling

LIMIT_CHARACTERS = 1_000_000  # of one stream in one cell
NOTE = f"\n[capped: this cell wrote more than {LIMIT_CHARACTERS:,} characters here; the rest was not kept]\n"


class CappedStream(OutStream):
    """ipykernel's stream, silent after LIMIT_CHARACTERS in one cell."""

    _cell: Any = None
    _written = 0

    def write(self, string: str) -> int:
        cell = self.parent_header.get("msg_id")
        if cell != self._cell:
            self._cell, self._written = cell, 0
        room = LIMIT_CHARACTERS - self._written
        if len(string) <= room:
            super().write(string)
        elif room >= 0:
            super().write(string[:room] + NOTE)
            room = -1
        self._written = LIMIT_CHARACTERS + 1 if room < 0 else self._written + len(string)
        return len(string)


class CappedSession(Session):
    """The standard kernel's session: what a cell displays is bounded before it is sent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ceiling = Ceiling()

    def send(self, stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **kwargs: Any) -> Any:
        whole = isinstance(msg_or_type, dict)
        kind = msg_or_type["header"]["msg_type"] if whole else msg_or_type
        said = msg_or_type["content"] if whole else content
        if said is not None and not self.ceiling.lets(kind, said):
            return None
        return super().send(stream, msg_or_type, content, *args, **kwargs)


def keep_no_copy(shell: Any) -> None:
    """Have IPython print without keeping all that cells print in its history, for `%notebook`, without a ceiling."""
    shell._tee = lambda **_: nullcontext()


def answer_every_error(shell: Any) -> None:
    """Have ipykernel find what it looks for after an error that IPython prints by itself, an exception group, in a
    cell that awaits; without it no reply is sent (ipykernel 7.4)."""
    shell._last_traceback = getattr(shell, "_last_traceback", None)


def ignore_breakpoints() -> None:
    """Have `breakpoint()` do nothing, as Jupyter's debugger has it while nobody is attached; it is not loaded here."""
    if find_spec("debugpy") is not None:
        sys.breakpointhook = lambda *_, **__: None
