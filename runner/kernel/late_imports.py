"""Packages that a fork server leaves to the cells that import them, because importing them starts threads, which a fork
does not have. Some are known; others are remembered in the user's cache, with the time of their installed file.
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
    """The known packages, and those remembered that have not changed since."""
    packages = set(KNOWN)
    for file, (package, changed_ns) in _remembered().items():
        with contextlib.suppress(OSError):
            if Path(file).stat().st_mtime_ns == changed_ns:
                packages.add(package)
    return packages


def remember_late(package: str) -> None:
    """Idempotent; if the cache cannot be written, the next run finds out once more."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            kept = {file: fact for file, fact in _remembered().items() if Path(file).exists()}
            kept[spec.origin] = (package, Path(spec.origin).stat().st_mtime_ns)
            _file().parent.mkdir(parents=True, exist_ok=True)
            atomic_write(_file(), json.dumps(kept, indent=1).encode())


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runner" / "late.json"


def _remembered() -> dict[str, tuple[str, int]]:
    """(package, when its file was changed) by file; {} if the cache cannot be read."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, AttributeError):
        cached = json.loads(_file().read_text(encoding="utf-8"))
        return {str(file): (str(package), int(changed_ns)) for file, (package, changed_ns) in cached.items()}
    return {}
