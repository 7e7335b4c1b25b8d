"""What loaded libraries would look up once more in every fork, looked up before: they remember the answers.

Lookups alone: nothing here may start a thread or compute. Runs in the server only.
"""

from __future__ import annotations

import contextlib
import sys

from threadpoolctl import ThreadpoolController


def look_ahead() -> None:
    """Find the libraries that have threads, among several hundred files, and narwhals' plug-ins, in the lists of all
    installed packages, which scikit-learn asks for at its first score."""
    ThreadpoolController()
    if "narwhals.dependencies" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # a narwhals that looks otherwise
            from narwhals import plugins

            plugins._discover_entrypoints()
