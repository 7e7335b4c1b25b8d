"""What every fork would look up, compile or load once more, done before: they find it done.

Nothing here may start a thread or compute. Runs in the server only.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:  # loaded already, by the server
    from runner.kernel.forked.kernel_app import ForkedApp

STARTUP = ("*.py", "*.ipy")  # IPython looks for files of these names before the first cell


def look_ahead() -> Sequence[Any]:
    """Find the libraries that have threads, among several hundred files, and narwhals' plug-ins, in the lists of all
    installed packages, which scikit-learn asks for at its first score. Returns threadpoolctl's controllers."""
    discover = getattr(sys.modules.get("narwhals.plugins"), "_discover_entrypoints", None)
    if discover is not None:  # a narwhals that looks otherwise does so in the kernel
        discover()
    controllers: Sequence[Any] = ThreadpoolController().lib_controllers
    return controllers


def warm_up(app: ForkedApp) -> None:
    """What any notebook's start and first cell compile, find and load."""
    app.shell.transform_cell("x = 1\n")  # the tokenizer's regular expressions are large
    for pattern in STARTUP:
        fnmatch.fnmatch("", pattern)
    with contextlib.suppress(OSError):  # nowhere to write, which the cell says that needs it
        tempfile.gettempdir()
    _load_extensions(app)


def _load_extensions(app: ForkedApp) -> None:
    """IPython's own, of which the fork then loads none. One that the user has configured may import the project's
    modules; the fork loads it, where they are found."""
    if "StoreMagics" not in app.config:
        with contextlib.suppress(Exception):  # said by the fork, which tries again
            for name in app.default_extensions:
                app.shell.extension_manager.load_extension(name)
            app.default_extensions = []
