"""Hashes of files that were not touched since they were read, by size, modification time and inode."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact, stamp
from runner.records import FileFact

FRESH_S = 2.0  # a younger file is read again: two changes within a clock tick of the file system have equal stamps


class HashCache:
    """The index in `runs/checked.json`. Losing or damaging it costs time, never truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[str, str]] = {}
        self._changed = False
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, str]])

    def fact(self, path: Path) -> FileFact:
        """Hash and size of the file, read only where its stamp is new. Raises as `runner.content.file_fact`."""
        status, now = path.stat(), stamp(path)
        name = str(path.absolute())
        known_stamp, sha256 = self._known.get(name, ("", ""))
        if known_stamp == now:
            return FileFact(sha256=sha256, size_bytes=status.st_size)
        fact = file_fact(path)
        if time.time() - status.st_mtime > FRESH_S:
            self._known[name] = (now, fact.sha256)
            self._changed = True
        return fact

    def save(self) -> None:
        if self._changed:
            with contextlib.suppress(OSError):
                atomic_write(self.path, msgspec.json.encode(self._known))
            self._changed = False
