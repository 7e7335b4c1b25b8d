"""Importing a package without what it would load only to have it.

In the runner's own process papermill need not load every cloud's client, for paths that this program never hands to it.
In a notebook's, nothing may be missing. In both, where Jupyter is installed, jsonschema, which nbformat and many
others import, builds a grammar for one kind of format check (IRIs) in 2.6 s; here it does when that check is made.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# what papermill, scrapbook and nbformat can do without: other stores, and checks of formats that no notebook declares
PAPERMILLS = (
    "rfc3987_syntax", "rfc3986_validator", "isoduration", "webcolors", "uri_template", "fqdn", "boto3", "azure", "gcsfs"
)  # fmt: skip
GRAMMAR = "rfc3987_syntax"


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Importing any of `names` fails inside, in this thread, as if it were not installed; those loaded already stay."""
    hidden = _Hidden(names, threading.get_ident())
    sys.meta_path.insert(0, hidden)
    try:
        with _uncollected():
            yield
    finally:
        sys.meta_path.remove(hidden)


@contextmanager
def deferred() -> Iterator[None]:
    """What is imported inside finds the grammar's check, which loads it when it is asked; whoever imports the grammar
    for something else, inside or later, gets it."""
    spec = None if GRAMMAR in sys.modules or "jsonschema" in sys.modules else find_spec(GRAMMAR)
    stands_in = ModuleType(GRAMMAR)

    def leave() -> None:
        if sys.modules.get(GRAMMAR) is stands_in:
            for name in [name for name in sys.modules if name.partition(".")[0] == GRAMMAR]:
                del sys.modules[name]

    def grammar() -> Any:
        leave()
        return importlib.import_module(GRAMMAR)

    def is_valid_syntax(term: str, value: str) -> Any:
        return grammar().is_valid_syntax(term, value)

    if spec is not None:
        vars(stands_in).update(
            __spec__=spec,
            __path__=spec.submodule_search_locations,
            __getattr__=lambda name: getattr(grammar(), name),
            is_valid_syntax=is_valid_syntax,
        )
        sys.modules[GRAMMAR] = stands_in
    try:
        with _uncollected():
            yield
    finally:
        leave()


class _Hidden:
    """Finds nothing; stands before the finders that would."""

    def __init__(self, names: Sequence[str], thread: int) -> None:
        self.names, self.thread = names, thread

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@contextmanager
def _uncollected() -> Iterator[None]:
    """What modules make stays; looking for rubbish among it takes an eighth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
