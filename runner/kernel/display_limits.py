"""How much one cell may display, so that a loop of pictures fills neither the notebook nor the memory."""

from __future__ import annotations

from typing import Any

LIMIT_CHARACTERS = 50_000_000  # of one displayed output, and of all that one cell displays
ERROR_CHARACTERS = 100_000  # of an error's text, and of a line of its traceback
ERROR_LINES = 1000
LIMIT_DEPTH = 100  # of lists and tables in one another; Python's own readers of JSON give up before 1000
NUMBER_CHARACTERS = 8  # what a number, true, false or null counts, roughly


class DisplayLimits:
    """Applied by our kernels before they send, and by the client for other kernels."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start at zero, for another cell or one that has cleared its output."""
        self._shown, self._full = 0, False

    def allows(self, kind: str, content: dict[str, Any]) -> bool:
        """Whether the message is sent; its data may be replaced by a note, and its error text cut."""
        if kind in ("clear_output", "execute_input"):
            self.begin()
        if kind in ("error", "execute_reply") and "traceback" in content:  # the reply repeats the error
            content["evalue"] = _cut(content.get("evalue", ""))
            content["traceback"] = [_cut(line) for line in content["traceback"][-ERROR_LINES:]]
        if kind not in ("display_data", "execute_result", "update_display_data"):
            return True
        if _deeper([content["data"], content.get("metadata")], LIMIT_DEPTH):
            _note(content, f"an output of more than {LIMIT_DEPTH} lists or tables in one another")
        size = _size([content["data"], content.get("metadata")])
        if size > LIMIT_CHARACTERS:
            _note(content, f"an output of more than {LIMIT_CHARACTERS:,} characters")
        elif kind == "display_data":
            self._shown += size
            if self._shown > LIMIT_CHARACTERS:
                was_full, self._full = self._full, True
                _note(content, f"what this cell displays after {LIMIT_CHARACTERS:,} characters")
                return not was_full
        return True


def _note(content: dict[str, Any], dropped: str) -> None:
    content["data"], content["metadata"] = {"text/plain": f"[not kept: {dropped}]"}, {}


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and tables are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit + 1):
        parts = (part for nested in level for part in (nested.values() if isinstance(nested, dict) else nested))
        level = [part for part in parts if isinstance(part, dict | list | tuple)]
        if not level:
            return False
    return True


def _cut(text: str) -> str:
    if len(text) <= ERROR_CHARACTERS:
        return text
    note = f"\n[not kept: the rest of {len(text):,} characters]"
    return text[: ERROR_CHARACTERS - len(note)] + note  # no longer than the limit: the client looks at it once more


def _size(value: Any) -> int:
    """Roughly the number of characters of its JSON; counting stops beyond the limit."""
    size, pending = 0, [value]
    while pending and size <= LIMIT_CHARACTERS:
        part = pending.pop()
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, dict):
            pending += part.keys()
            pending += part.values()
        elif isinstance(part, list | tuple):
            pending += part
        else:
            size += NUMBER_CHARACTERS
    return size
