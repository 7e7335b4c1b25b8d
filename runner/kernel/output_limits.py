"""How much one cell may display, so that a loop of pictures fills neither the notebook nor anybody's memory."""

from __future__ import annotations

from typing import Any

LIMIT_CHARACTERS = 50_000_000  # of one displayed output, and of all that one cell displays
ERROR_CHARACTERS = 100_000  # of an error's text, and of a line of its traceback
ERROR_LINES = 1000
LIMIT_DEPTH = 100  # of lists and tables in one another; Python's own readers of JSON give up before 1000
NUMBER_CHARACTERS = 8  # what a number, true, false or null counts, roughly


class Ceiling:
    """Kept by a kernel of ours before it sends, and by the client for those that are not."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another cell, or one that has cleared what it displayed."""
        self._shown, self._full = 0, False

    def lets(self, kind: str, content: dict[str, Any]) -> bool:
        """Whether the message of that kind goes on; its data may be a note now, its error text cut."""
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
                said, self._full = self._full, True
                _note(content, f"what this cell displays after {LIMIT_CHARACTERS:,} characters")
                return not said
        return True


def _note(content: dict[str, Any], what: str) -> None:
    content["data"], content["metadata"] = {"text/plain": f"[not kept: {what}]"}, {}


def _deeper(value: Any, limit: int) -> bool:
    """Whether more than so many lists and tables stand in one another."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def _cut(text: str) -> str:
    if len(text) <= ERROR_CHARACTERS:
        return text
    note = f"\n[not kept: the rest of {len(text):,} characters]"
    return text[: ERROR_CHARACTERS - len(note)] + note  # no longer than the limit: the client looks at it once more


def _size(value: Any) -> int:
    """About as many characters as its JSON has; counting stops beyond the limit."""
    size, pending = 0, [value]
    while pending and size <= LIMIT_CHARACTERS:
        one = pending.pop()
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, dict):
            pending += one.keys()
            pending += one.values()
        elif isinstance(one, list | tuple):
            pending += one
        else:
            size += NUMBER_CHARACTERS
    return size
