"""How far a run's steps are at this moment, in a file beside run.json, for whoever looks from another process.

Temporary: it is written while steps run, at most a few times a second, and removed at the run's end.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from runner.step.execute import Progress

PROGRESS = "progress.json"
EVERY_S = 0.25  # between two writes; the last one before a pause may be missed, the next cell writes again


class ProgressFile:
    """Notes each step's progress in the run's folder. Safe to call from several threads."""

    def __init__(self, folder: Path, tell: Callable[[Progress], None] = lambda _: None) -> None:
        """`tell` is told of each progress too."""
        self._path, self._tell = folder / PROGRESS, tell
        self._steps: dict[str, Progress] = {}
        self._written = 0.0
        self._lock = threading.Lock()

    def note(self, progress: Progress) -> None:
        self._tell(progress)
        with self._lock:
            is_new = progress.step not in self._steps
            self._steps[progress.step] = replace(progress, report=None)
            if is_new or time.monotonic() - self._written >= EVERY_S:
                self._written = time.monotonic()
                with contextlib.suppress(OSError):  # a full disk must not end the run
                    self._write()

    def _write(self) -> None:
        """Whole or not at all; not flushed to disk, as nobody needs it after a crash."""
        beside = self._path.with_name(f".{PROGRESS}-{secrets.token_hex(4)}")
        beside.write_text(json.dumps([asdict(step) for step in self._steps.values()]), encoding="utf-8")
        beside.replace(self._path)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Progress]:
    """By step, as last noted; empty where nothing is, or it cannot be read."""
    try:
        steps = json.loads((folder / PROGRESS).read_bytes())
        return {step["step"]: Progress(**step) for step in steps}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
