"""Importing a package without the optional packages that it imports but does not need here.

In the runner's own process papermill need not load every cloud's client, as it gets no paths for them. In a notebook's
process nothing may be missing. In both, where Jupyter is installed, jsonschema, which nbformat and many others import,
builds a grammar for one kind of format check (IRIs) in 2.6 s; here it does so at the first such check.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# papermill, scrapbook and nbformat need none of these: other stores, and checks of formats that no notebook declares
PAPERMILLS = (
    "rfc3987_syntax", "rfc3986_validator", "isoduration", "webcolors", "uri_template", "fqdn", "boto3", "azure", "gcsfs"
)  # fmt: skip
GRAMMAR = "rfc3987_syntax"


@contextmanager
def without(*names: str, error: Callable[[str], BaseException] | None = None) -> Iterator[None]:
    """Importing any of `names` fails inside, in this thread, as if it were not installed, or with `error(name)`; those
    loaded already stay."""
    hidden = _Hidden(names, threading.get_ident(), error)
    sys.meta_path.insert(0, hidden)
    try:
        with _uncollected():
            yield
    finally:
        sys.meta_path.remove(hidden)


@contextmanager
def deferred() -> Iterator[None]:
    """Packages imported inside get a replacement of the grammar, whose check loads the real one at its first call;
    other uses of the grammar, inside or later, get the real one."""
    spec = None if GRAMMAR in sys.modules or "jsonschema" in sys.modules else find_spec(GRAMMAR)
    replacement = ModuleType(GRAMMAR)

    def remove_replacement() -> None:
        if sys.modules.get(GRAMMAR) is replacement:
            for name in [name for name in sys.modules if name.partition(".")[0] == GRAMMAR]:
                del sys.modules[name]

    def grammar() -> Any:
        remove_replacement()
        return importlib.import_module(GRAMMAR)

    def is_valid_syntax(term: str, value: str) -> Any:
        return grammar().is_valid_syntax(term, value)

    if spec is not None:
        vars(replacement).update(
            __spec__=spec,
            __path__=spec.submodule_search_locations,
            __getattr__=lambda name: getattr(grammar(), name),
            is_valid_syntax=is_valid_syntax,
        )
        sys.modules[GRAMMAR] = replacement
    try:
        with _uncollected():
            yield
    finally:
        remove_replacement()


class _Hidden:
    """A finder before all others, which raises for `names`."""

    def __init__(self, names: Sequence[str], thread: int, error: Callable[[str], BaseException] | None) -> None:
        self.names, self.thread, self.error = names, thread, error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self.names and threading.get_ident() == self.thread:
            raise self.error(name) if self.error else ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Modules' objects stay; searching them for garbage takes an eighth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
