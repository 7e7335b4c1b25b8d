"""Importing a package without the optional ones it would load only to have them.

papermill loads every cloud's client for paths this program never hands to it; and where Jupyter is installed,
jsonschema, which nbformat imports, builds a grammar for one kind of format check (IRIs) in 2.6 s.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# what papermill, scrapbook and nbformat can do without: other stores, and checks of formats that no notebook declares
PAPERMILLS = (
    "rfc3987_syntax", "rfc3986_validator", "isoduration", "webcolors", "uri_template", "fqdn", "boto3", "azure", "gcsfs"
)  # fmt: skip


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Importing any of `names` fails inside, as if it were not installed; those loaded already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what makes an import fail
    collects = gc.isenabled()
    gc.disable()  # what modules make stays; looking for rubbish among it takes an eighth of the time
    try:
        yield
    finally:
        if collects:
            gc.enable()
        for name in hidden:
            del sys.modules[name]
