"""A kernel's stdout and stderr with a ceiling per cell, so that endless printing costs no memory.

Lives in the kernel process, because a ceiling at the receiving end comes after the gigabyte was sent.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ipykernel.iostream import OutStream

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


def keep_no_copy(shell: Any) -> None:
    """Have IPython print without keeping all that cells print in its history, for `%notebook`, without a ceiling."""
    shell._tee = lambda **_: nullcontext()
