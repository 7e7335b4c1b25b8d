"""How much one cell may display, so that a loop of pictures fills neither the notebook nor anybody's memory."""

from __future__ import annotations

from typing import Any

LIMIT_CHARACTERS = 50_000_000  # of one displayed output, and of all that one cell displays


class Ceiling:
    """Kept by a kernel of ours before it sends, and by the client for those that are not."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another cell, or one that has cleared what it displayed."""
        self._shown, self._full = 0, False

    def lets(self, kind: str, content: dict[str, Any]) -> bool:
        """Whether the message of that kind goes on; its data may be a note now."""
        if kind == "clear_output":
            self.begin()
        if kind not in ("display_data", "execute_result", "update_display_data"):
            return True
        size = sum(len(value) for value in content["data"].values() if isinstance(value, str))
        if size > LIMIT_CHARACTERS:
            content["data"] = {"text/plain": f"[not kept: an output of {size:,} characters]"}
        elif kind == "display_data":
            self._shown += size
            if self._shown > LIMIT_CHARACTERS:
                said, self._full = self._full, True
                content["data"] = {
                    "text/plain": f"[not kept: what this cell displays after {LIMIT_CHARACTERS:,} characters]"
                }
                return not said
        return True
