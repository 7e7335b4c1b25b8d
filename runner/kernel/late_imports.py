"""Packages that a fork server leaves to the cells that import them, because importing them starts threads, of which a
fork has none. Some are known; what is found out is remembered in the user's cache, for this installation of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

from runner.content import atomic_write

KNOWN = frozenset({"polars", "blosc2", "ddtrace", "deltalake", "lancedb", "onnxruntime"})


def late_packages() -> set[str]:
    """The known, and those remembered that are still as they were."""
    found = set(KNOWN)
    for file, (package, changed_ns) in _remembered().items():
        with contextlib.suppress(OSError):
            if Path(file).stat().st_mtime_ns == changed_ns:
                found.add(package)
    return found


def remember_late(package: str) -> None:
    """Calling twice is safe; where the cache cannot be written, the next run finds out once more."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            kept = {file: known for file, known in _remembered().items() if Path(file).exists()}
            kept[spec.origin] = (package, Path(spec.origin).stat().st_mtime_ns)
            _file().parent.mkdir(parents=True, exist_ok=True)
            atomic_write(_file(), json.dumps(kept, indent=1).encode())


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runner" / "late.json"


def _remembered() -> dict[str, tuple[str, int]]:
    """(package, when its file was changed) by file; {} where there is nothing that can be read."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, AttributeError):
        known = json.loads(_file().read_text(encoding="utf-8"))
        return {str(file): (str(package), int(changed_ns)) for file, (package, changed_ns) in known.items()}
    return {}
