"""What loaded libraries would look up once more in every fork, looked up before: they remember the answers.

Lookups alone: nothing here may start a thread or compute. Runs in the server only.
"""

from __future__ import annotations

import sys

from threadpoolctl import ThreadpoolController


def look_ahead() -> None:
    """Find the libraries that have threads, among several hundred files, and narwhals' plug-ins, in the lists of all
    installed packages, which scikit-learn asks for at its first score."""
    ThreadpoolController()
    discover = getattr(sys.modules.get("narwhals.plugins"), "_discover_entrypoints", None)
    if discover is not None:  # a narwhals that looks otherwise does so in the kernel
        discover()
