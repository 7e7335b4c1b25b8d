"""Importing a package without the optional packages that it imports but does not need here.

In the runner's own process papermill need not load every cloud's client, as it gets no paths for them. In a notebook's
process nothing may be missing. In both, where Jupyter is installed, jsonschema, which nbformat and many others import,
builds a grammar for one kind of format check (IRIs) in 2.6 s; here it does so at the first such check.

papermill also reads the entry points of every installed package twice, with a slow parser, and loads requests for
notebooks at web addresses. Its plug-ins are found here too, by one look; requests is loaded when it is first used.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
def lean_papermill() -> Iterator[None]:
    """papermill, imported inside for the first time, loads only what executing a local notebook needs; nothing in this
    process reads tables, so without pyarrow."""
    with without(*PAPERMILLS, "pyarrow"), lazily("requests"), _plug_ins_of("papermill."):
        yield


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


@contextmanager
def lazily(package: str) -> Iterator[None]:
    """Modules imported inside get a replacement of the package, which loads the real one when it is first asked for
    something; whoever imports the package later gets the real one."""
    replacement = ModuleType(package)

    def remove_replacement() -> None:
        if sys.modules.get(package) is replacement:
            del sys.modules[package]

    def from_real(name: str) -> Any:
        remove_replacement()
        return getattr(importlib.import_module(package), name)

    if package not in sys.modules and find_spec(package) is not None:
        vars(replacement)["__getattr__"] = from_real
        sys.modules[package] = replacement
    try:
        yield
    finally:
        remove_replacement()


@contextmanager
def _plug_ins_of(prefix: str) -> Iterator[None]:
    """Inside, the package `entrypoints` looks at the installed packages once, and parses only the files in which the
    prefix of a group stands."""
    entrypoints: Any = None
    with suppress(ImportError):
        entrypoints = importlib.import_module("entrypoints")
    if entrypoints is None:  # a papermill that finds its plug-ins otherwise
        yield
        return
    look, parser = entrypoints.iter_files_distros, entrypoints.CaseSensitiveConfigParser
    looks: dict[str, list[Any]] = {}

    class Parser(parser):  # type: ignore[misc, valid-type]
        def read(self, filenames: Sequence[str], encoding: str | None = None) -> Any:
            naming = [name for name in filenames if prefix.encode() in _bytes(name)]
            return super().read(naming, encoding) if naming else []

    def look_once(path: Sequence[str] | None = None, repeated_distro: str = "first") -> list[Any]:
        key = repr((path or sys.path, repeated_distro))
        if key not in looks:
            looks[key] = list(look(path, repeated_distro))
        return looks[key]

    entrypoints.iter_files_distros, entrypoints.CaseSensitiveConfigParser = look_once, Parser
    try:
        yield
    finally:
        entrypoints.iter_files_distros, entrypoints.CaseSensitiveConfigParser = look, parser


def _bytes(file: str) -> bytes:
    with open(file, "rb") as opened:  # pathlib would be imported for this alone
        return opened.read()


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
