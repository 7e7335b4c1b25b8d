"""Libraries loaded ahead of the cells that import them, and their imports' effects, kept for those cells.

Importing a library also prints, warns, displays, and adds filters of warnings. These effects belong to the cell that
imports it first, where the filters of earlier cells decide what is shown. So they are kept when a library is loaded
here, and replayed when a cell imports the package, or one that imports it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from runner.import_blocking import deferred, without
from runner.kernel.import_effects import ImportEffects, Replay, import_module


@dataclass(frozen=True)
class KeptEffect:
    """An effect of importing `package`."""

    package: str
    replay: Replay


class Preload:
    """`load` is called in the kernel, or in the server that forks it; then `begin` in the kernel. From then on cells
    notice the libraries in `sys.modules` alone."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._effects: list[KeptEffect] = []
        self._needs: dict[str, set[str]] = {}  # package -> those that it imports, if they or their imports have effects
        self._noticed: dict[str, _Initializing] = {}  # the packages whose imports are noticed
        self._imported: set[str] = set()  # those of them that cells have imported
        self._loading = ""
        self._complete = self._begun = False

    def load(self, name: str, avoid: Collection[str] = ()) -> None:
        """Import the module, unless that would import a package in `avoid`; errors are left to the cell's import."""
        self._loading = name.partition(".")[0]
        counts, modules = self._counts(), set(sys.modules)
        effects = ImportEffects(self.shell, self._keep)
        # pandas asks get_ipython() how to display
        with effects.kept(), deferred(), without(*avoid, error=_Avoided), self.shell.builtin_trap:
            try:
                import_module(name)
            except (Exception, SystemExit, _Avoided):
                _remove_orphans(modules)
        # a package that could not be imported is imported again by the cell, with all effects
        self._effects = [effect for effect in self._effects if effect.package in sys.modules]
        self._loading = ""
        self._complete = False
        if self._counts() != counts:
            self._listen()

    def complete(self) -> None:
        """Call it when everything is loaded; in a server before it forks, as each fork would write its own copy."""
        if not self._complete:
            self._listen()
            self._complete = True

    def begin(self) -> None:
        """Call it before the first cell."""
        from runner.kernel.shell import hide_from_formatters

        self.complete()
        self._begun = True
        # known only for packages with effects, such as numpy
        hide_from_formatters(lambda package: package in self._noticed and package not in self._imported)

    def imported(self, package: str, by: FrameType) -> bool:
        """The package, loaded already, is imported; returns whether by a cell."""
        while by.f_back is not None and by.f_code.co_filename.startswith("<frozen importlib"):
            by = by.f_back
        if self._begun:
            self._do_again(package, by)
        elif self._loading and by.f_code.co_name == "<module>":
            self._needs.setdefault(_package(by), set()).add(package)
        return self._begun

    def _keep(self, replay: Replay) -> None:
        packages = _importing() or [self._loading]
        for inner, outer in itertools.pairwise(packages):
            self._needs.setdefault(outer, set()).add(inner)
        self._effects.append(KeptEffect(packages[0], replay))

    def _counts(self) -> tuple[int, int]:
        return len(self._effects), sum(map(len, self._needs.values()))

    def _listen(self) -> None:
        """Notice imports of loaded modules: an import statement asks the module's spec whether it is still being
        initialised. (If a later Python does not ask, effects are not replayed.)"""
        for name in {*self._needs, *(effect.package for effect in self._effects)}:
            self._noticed.setdefault(name, _Initializing(self, name))
        for name, module in list(sys.modules.items()):
            package = self._noticed.get(name.partition(".")[0])
            if package is not None and isinstance(module, ModuleType):
                # not by attribute, which has lazy modules load
                spec = object.__getattribute__(module, "__dict__").get("__spec__")
                if isinstance(spec, ModuleSpec) and spec._initializing is not package:  # type: ignore[attr-defined]
                    spec._initializing = package  # type: ignore[attr-defined]

    def _do_again(self, package: str, importing: FrameType) -> None:
        pending = [package]
        while pending:
            self._imported.add(needed := pending.pop())
            pending += self._needs.get(needed, set()) - self._imported
        due = [effect for effect in self._effects if effect.package in self._imported]
        self._effects = [effect for effect in self._effects if effect.package not in self._imported]
        for effect in due:
            try:
                effect.replay(importing)
            except Exception as error:  # a warning that cells have made an error; the import itself has succeeded
                sys.stderr.write(f"{type(error).__name__}: {error}\n")


class _Initializing:
    """False in a condition; that it is evaluated shows that a module of the package is being imported."""

    def __init__(self, preload: Preload, package: str) -> None:
        self.preload, self.package, self.done = preload, package, False

    def __bool__(self) -> bool:
        if not self.done:
            self.done = self.preload.imported(self.package, sys._getframe(1))
        return False


class _Avoided(BaseException):
    """Not an Exception, which libraries catch to work without a package."""


def _remove_orphans(known: Collection[str]) -> None:
    """Remove modules that are not `known` and whose package could not be imported: it will import them once more."""
    for name in sorted(set(sys.modules).difference(known)):
        parent = name.rpartition(".")[0]
        if parent and parent not in sys.modules:
            del sys.modules[name]


def _importing() -> list[str]:
    """The packages whose modules are being executed, the innermost first."""
    packages: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not Preload.load.__code__:
        if frame.f_code.co_name == "<module>" and _package(frame) not in packages[-1:]:
            packages.append(_package(frame))
        frame = frame.f_back
    return packages


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
