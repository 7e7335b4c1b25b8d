"""Hashes known from before, for files that were not touched since: by size, modification time and inode."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact, folder_artifact, walk
from runner.records import Artifact, FileFact

# a file changed twice within a clock tick of the file system has equal stamps, so a fresh one is read again
FRESH_S = 2.0


class Checked:
    """The index in `runs/checked.json`. Losing or damaging it costs time, never truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[str, str]] = {}
        self._changed = False
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, str]])

    def fact(self, path: Path) -> FileFact:
        """Hash and size of the file, read only where its stamp is new. Raises as `runner.content.file_fact`."""
        status = path.stat()
        stamp = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
        name = str(path.absolute())
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return FileFact(sha256=known[1], size_bytes=status.st_size)
        fact = file_fact(path)
        if time.time() - status.st_mtime > FRESH_S:
            self._known[name] = (stamp, fact.sha256)
            self._changed = True
        return fact

    def artifact(self, path: Path, *, name: str) -> Artifact:
        """As `runner.content.artifact`, with untouched files not read."""
        if not path.is_dir():
            fact = self.fact(path)
            return Artifact(path=name, sha256=fact.sha256, size_bytes=fact.size_bytes)
        return folder_artifact(name, {relative: self.fact(file) for relative, file in walk(path)})

    def save(self) -> None:
        if self._changed:
            with contextlib.suppress(OSError):
                atomic_write(self.path, msgspec.json.encode(self._known))
            self._changed = False
